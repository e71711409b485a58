"""What a rollout remembers of its trajectory, and the distributions that its tokens were drawn from."""

import dataclasses

import jax
import jax.numpy as jnp

from gdsd_jax.diffusion import dream
from gdsd_jax.diffusion.config import Predictions, Rollout, SamplerConfig
from gdsd_jax.diffusion.prediction import penalize
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.models.lm_head import accumulator, multiply, over_vocabulary, Share


def remembered(denoiser: Denoiser, params, hidden, unconditional, tokens, config: SamplerConfig, record, logp=None):
  """What of `record`, names of a rollout's fields, a step tells of the tokens that it predicted, by name.

  `logp` is their log-probability where the prediction has told it: it is then not computed again.
  """
  told = {} if logp is None else {"logp": logp}
  if (record - set(told)) & {"logp", "entropy"}:
    told = dict(zip(("logp", "entropy"), drawn(denoiser, params, hidden, unconditional, tokens, config))) | told
  if "kept" in record:
    told["kept"] = dream.kept(denoiser, params, hidden, config)
  return {name: value for name, value in told.items() if name in record}


def comes_with_prediction(record, config: SamplerConfig) -> bool:
  """Whether the prediction itself tells the log-probability that a rollout is to remember."""
  return "logp" in record and "entropy" not in record and config.temperature > 0


def by_probability(config: SamplerConfig) -> SamplerConfig:
  """The sampler whose confidence in a prediction is its probability, and that predicts as this one does."""
  return dataclasses.replace(config, alg="maskgit_plus") if config.kind == "dream" else config


def with_step(predictions: Predictions, step, tokens, confidence, before, mask_id: int) -> Predictions:
  """The predictions with those of one more step, [B, L], made of the completions `before`."""
  masked = before == mask_id
  return Predictions(predictions.tokens.at[:, step].set(jnp.where(masked, tokens, before)),
                     predictions.confidence.at[:, step].set(jnp.where(masked, confidence, 0)))


def drawn(denoiser: Denoiser, params, hidden, unconditional, tokens, config: SamplerConfig):
  """Log-probability of tokens under the distributions that a sampler draws from, and the entropies of these in nats.

  These are after guidance, penalty and temperature, top-p and top-k, and without the mask token. A greedy sampler draws
  nothing: both are 0. With noise="official" they are those of the softmax, which that noise falls short of.

  Args:
    denoiser, params: the model.
    hidden: [B, K, D] hidden states, aligned with the tokens.
    unconditional: those without the prompt, for guidance, or None.
    tokens: int32[B, K].
    config: the sampler.

  Returns:
    (logp, entropy): float32[B, K].
  """
  if config.temperature == 0:
    return jnp.zeros(tokens.shape, jnp.float32), jnp.zeros(tokens.shape, jnp.float32)
  of_kind = dream.drawn if config.kind == "dream" or config.is_filtered else _drawn_by_llada
  return of_kind(denoiser, params, hidden, unconditional, tokens, config)


def _drawn_by_llada(denoiser: Denoiser, params, hidden, unconditional, tokens, config: SamplerConfig):
  special, T = denoiser.config, config.temperature

  def compute(share: Share, rows):
    hidden, unconditional, tokens = rows
    flat, goal = hidden.reshape(-1, hidden.shape[-1]), tokens.reshape(-1, 1)
    count = len(flat)
    if unconditional is not None:
      flat = jnp.concatenate([flat, unconditional.reshape(count, -1)])

    def step(carry, weight, start):
      top, total, spread, target = carry
      logits = multiply(flat, weight)
      if unconditional is not None:
        logits, without = logits[:count], logits[count:]
        logits = without + (config.cfg_scale + 1) * (logits - without)
      columns = share.first + start + jnp.arange(logits.shape[1])
      logits = penalize(logits, columns, special.end_token_ids, config.eos_penalty) / T
      target = target + jnp.sum(jnp.where(columns == goal, logits, 0), axis=1)
      logits = jnp.where(columns == special.mask_token_id, -jnp.inf, logits)
      highest = jnp.maximum(top, jnp.max(logits, axis=1))
      gap = jnp.where(jnp.isneginf(logits), 0, highest[:, None] - logits)
      shares, decay = jnp.where(jnp.isneginf(logits), 0, jnp.exp(-gap)), jnp.exp(top - highest)
      spread = decay * (spread + total * (highest - top)) + jnp.sum(shares * gap, axis=1)
      return highest, total * decay + jnp.sum(shares, axis=1), spread, target

    dtype = accumulator(flat.dtype)
    zeros, least = jnp.zeros(count, dtype), jnp.full(count, jnp.finfo(dtype).min / 2)
    top, total, spread, target = share.fold(flat.dtype, step, (least, zeros, zeros, zeros))
    highest = share.max(top)
    scale = jnp.exp(top - highest)
    spread = share.sum(scale * (spread + total * (highest - top)))
    total = share.sum(total * scale)
    found = share.sum(target) - highest - jnp.log(total), jnp.log(total) + spread / total
    return tuple(x.reshape(tokens.shape) for x in found)

  return over_vocabulary(compute, denoiser.head(params), (hidden, unconditional, tokens))


def state_before(rollout: Rollout, step, mask_id: int) -> jax.Array:
  """int32[B, L], the completions as they were before a step: what was unmasked in it or later is masked."""
  return jnp.where(rollout.steps >= step, mask_id, rollout.tokens)
