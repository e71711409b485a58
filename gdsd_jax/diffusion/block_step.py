"""What a denoising step makes of a block's hidden states: predictions, and which of them it commits."""

import jax.numpy as jnp

from gdsd_jax.diffusion import dream, prediction, random_keys
from gdsd_jax.diffusion.commits import choose
from gdsd_jax.diffusion.config import Predictions, Rollout, SamplerConfig
from gdsd_jax.diffusion.open_places import at_open_places
from gdsd_jax.diffusion.trajectory import comes_with_prediction, remembered
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.models.lm_head import CHUNK
from gdsd_jax.parallel.mesh import device_of


def all_masked(batch: int, length: int, mask_id: int, config: SamplerConfig, record) -> Rollout:
  """Rollouts [batch, length] before any step, that have room for what they remember beside their steps, `record`."""
  # What early stopping fills was unmasked in no step: it was masked in all of them.
  whole = lambda value, dtype, *more: jnp.full((batch, length, *more), value, dtype)
  numbers = lambda: whole(0, jnp.float32)
  rollout = Rollout(whole(mask_id, jnp.int32), numbers(), whole(config.most_steps, jnp.int32), numbers(), numbers(),
                    whole(-1, jnp.int32, config.top_k or 1),
                    Predictions(*(jnp.zeros((batch, config.most_steps, length), x) for x in (jnp.int32, jnp.float32))))
  return rollout.only({"steps", *record})


def commits(denoiser: Denoiser, params, hidden, unconditional, masked, planned, keys, config: SamplerConfig, record):
  """(Rollout, bool[B, K]): predictions of a block, without steps, and which of them to commit.

  Args:
    denoiser, params: the model.
    hidden, unconditional: hidden states of the block, [B, K, D], and those without the prompt, for guidance, or None.
    masked: bool[B, K], positions that may be committed. On a CPU, and of a large vocabulary, only these go through the
      LM head, see `at_open_places`.
    planned: as of `choose`.
    keys: those of tokens and of positions, one for all, or one for each position, [B, K].
    config: the sampler, llada's or dream's.
    record: what the rollout remembers, see `blockwise.sample`.
  """
  with_logp = comes_with_prediction(record, config)

  def at(of_places, places=None):
    hidden, unconditional, masked, *keys_there = of_places
    token_key, position_key = keys_there or keys
    tokens, confidence, *logp = predict(denoiser, params, hidden, unconditional, token_key, config, with_logp=with_logp)
    told = remembered(denoiser, params, hidden, unconditional, tokens, config, record, *logp)
    return Rollout(tokens, confidence, **told), choose(confidence, masked, planned, position_key, config)

  of_block = hidden, unconditional, masked, *(keys if random_keys.is_of_rows(keys[0]) else ())
  # Accelerators would compile several times as long to save what a step that computes whole sequences hardly feels; a
  # head of fewer columns costs less than the choice; and tokens that a mesh splits stay where they are.
  is_worth_it = device_of(denoiser.mesh).platform == "cpu" and denoiser.config.vocab_size >= CHUNK
  if not is_worth_it or denoiser.token_parts > 1:
    return at(of_block)
  return at_open_places(at, masked, of_block)


def predict(denoiser: Denoiser, params, hidden, unconditional, key, config: SamplerConfig, given=None,
            with_logp: bool = False):
  """A token for each position of hidden states [B, K, D], int32[B, K], and the confidence in it, float32[B, K].

  It is drawn by a key, or one for each position, or, for the confidence in tokens of one's own, as `given` says.
  `unconditional` are hidden states without the prompt, for guidance, or None. The third of three, if it is asked for,
  is the log-probability with which the token was drawn, float32[B, K], see `trajectory.drawn`; there must be a
  temperature.
  """
  if config.kind == "dream":
    return dream.predict(denoiser, params, hidden, key, config, given, with_logp)
  special = denoiser.config
  return prediction.predict(
    denoiser.head(params), hidden, key, special.mask_token_id, config.temperature, unconditional, config.cfg_scale,
    config.noise, special.end_token_ids, config.eos_penalty, given, with_logp,
  )
