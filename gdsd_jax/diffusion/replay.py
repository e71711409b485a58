"""A rollout's own states gone through again: the log-probability of each token where it was unmasked."""

import functools

import jax
import jax.numpy as jnp

from gdsd_jax.checks import require
from gdsd_jax.diffusion.block_canvas import Canvas
from gdsd_jax.diffusion.config import Rollout, SamplerConfig
from gdsd_jax.diffusion.trajectory import drawn, state_before
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.models.windows import window_of, with_chosen


@functools.partial(jax.jit, static_argnames=("denoiser", "config"))
def replay(denoiser: Denoiser, params, prompt, prompt_mask, rollout: Rollout, config: SamplerConfig):
  """Goes through a rollout's own states again: log-probability and entropy of each token where it was unmasked.

  On the weights that it was sampled by, the log-probability is `rollout.logp`: every ratio is 1.

  Args:
    denoiser, params: the model whose log-probabilities are asked for.
    prompt: int[B, P], left-padded.
    prompt_mask: bool[B, P], False at padding; None when no prompt is padded.
    rollout: what the sampler gave, which remembers `steps`.
    config: the sampler, which computes the whole sequence in each step, or the block sampler with its cache or without.

  Returns:
    (logp, entropy): float32[B, L].

  Raises:
    ValueError: the sampler has an approximate cache, whose steps see keys and values of other states, or replaces set
      tokens, whose states no rollout tells, or is one's own. Or it is not for this model.
  """
  require(config.cache in ("none", "exact") and not config.is_own, "sampler.cache",
          "a replay computes every state whole, which neither a sampler with a cache nor one of your own does")
  require(not config.edits, "sampler.editing_threshold",
          "must be None: a rollout remembers when each token was written last, and not what it replaced")
  require(rollout.steps is not None, "rollout.steps", "is None: there is no trajectory to go through")
  config.require_same_attention(denoiser.config)
  of_kind = _replay_of_blocks if config.kind == "block" else _replay
  return of_kind(denoiser, denoiser.cast(params), prompt.astype(jnp.int32), prompt_mask, rollout, config)


def _replay(denoiser: Denoiser, params, prompt, prompt_mask, rollout: Rollout, config: SamplerConfig):
  mask_id = denoiser.config.mask_token_id
  attention_mask = None
  if prompt_mask is not None:
    attention_mask = jnp.concatenate([prompt_mask.astype(bool), jnp.ones(rollout.tokens.shape, bool)], axis=1)
  each = config.block_steps

  def step(index, found):
    start = index // each * config.block_width
    of_block = lambda x: window_of(x, start, config.block_width)
    state = state_before(rollout, index, mask_id)

    def hidden(prompt):
      sequence = jnp.concatenate([prompt, state], axis=1)
      return denoiser.hidden_of_window(params, sequence, prompt.shape[1] + start, config.block_width, attention_mask)

    unconditional = hidden(jnp.full_like(prompt, mask_id)) if config.cfg_scale > 0 else None
    now = drawn(denoiser, params, hidden(prompt), unconditional, of_block(rollout.tokens), config)
    return with_chosen(found, now, of_block(rollout.steps) == index, start)

  zeros = jnp.zeros(rollout.tokens.shape, jnp.float32)
  return jax.lax.fori_loop(0, config.most_steps, step, (zeros, zeros))


def _replay_of_blocks(denoiser: Denoiser, params, prompt, prompt_mask, rollout: Rollout, config: SamplerConfig):
  """One pass gives the keys and values of all finished blocks; then each state is that of a block alone."""
  require(rollout.beyond is not None, "rollout.beyond", "is None: the last block may hold more than the completion")
  canvas, width, mask_id = Canvas(prompt, prompt_mask, config), config.block_length, denoiser.config.mask_token_id
  tokens = canvas.aligned(prompt, jnp.concatenate([rollout.tokens, rollout.beyond.tokens], axis=1))
  steps = canvas.filled(rollout.steps, rollout.beyond.steps)
  cache = canvas.prefilled(denoiser, params, tokens, tokens.shape[1])

  def step(index, found):
    start = canvas.prompt_length + index // config.block_steps * width
    of_block = functools.partial(window_of, start=start, width=width)
    state = jnp.where(steps >= index, mask_id, tokens)
    hidden = denoiser.window(params, state, start, width, cache, canvas.attention_mask)
    now = drawn(denoiser, params, hidden, None, of_block(tokens), config)
    return with_chosen(found, now, of_block(steps) == index, start)

  zeros = jnp.zeros(tokens.shape, jnp.float32)
  found = jax.lax.fori_loop(0, config.most_steps, step, (zeros, zeros))
  return canvas.completions([x[:, canvas.prompt_length:] for x in found])
