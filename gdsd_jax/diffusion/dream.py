"""Dream's sampler: the whole completion at once, the surest tokens first (arXiv 2508.15487).

Time runs from 1 to eps in even steps. From t to s, a step commits the share 1 − s/t of the tokens still masked.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gdsd_jax.diffusion.config import Rollout, SamplerConfig
from gdsd_jax.diffusion.ranking import descending_rank, without
from gdsd_jax.models import lm_head
from gdsd_jax.models.denoiser import Denoiser

_POSITIONS = 32  # that have logits in memory at a time; filters and entropy need a position's whole vocabulary
_ENTROPY_OFFSET = 1e-10  # inside the logarithm, as published


def unmask_shares(steps: int, eps: float) -> np.ndarray:
  """Share of the masked tokens that each step commits, 1 − s/t, and 1 for the last. float32[steps], as published."""
  # In float32 from both ends, as torch.linspace counts: int(n · share) must fall on the same side of a whole number.
  span = np.float32((np.float32(eps) - np.float32(1)) / np.float32(steps))
  index = np.arange(steps + 1, dtype=np.float32)
  times = np.where(index < (steps + 1) // 2, 1 + span * index, np.float32(eps) - span * (steps - index))
  times = times.astype(np.float32)
  shares = 1 - times[1:] / times[:-1]
  shares[-1] = 1
  return shares


def commits_per_step(length: int, steps: int, eps: float) -> list[int]:
  """Tokens that each step commits, int(n · share) of the n that are masked; all of them in the last."""
  commits, masked = [], length
  for share in unmask_shares(steps, eps):
    commits.append(int(np.float32(masked) * share))
    masked -= commits[-1]
  return commits


def denoise(denoiser: Denoiser, params, prompt, attention_mask, key, config: SamplerConfig) -> Rollout:
  """See `sampling.sample`. prompt: int32[B, P]; attention_mask: bool[B, P+L] or None."""
  batch, prompt_length = prompt.shape
  length, mask_id = config.completion_length, denoiser.config.mask_token_id
  if config.alg == "origin":
    plan = unmask_shares(config.steps, config.eps)
  else:
    # A step that commits nothing changes nothing.
    plan = np.array([n for n in commits_per_step(length, config.steps, config.eps) if n], np.int32)

  def step(carry, scanned):
    completion, confidence = carry
    planned, step_key = scanned
    token_key, position_key = jax.random.split(step_key)
    hidden = denoiser.hidden(params, jnp.concatenate([prompt, completion], axis=1), attention_mask)
    tokens, sureness = predict(denoiser, params, hidden[:, prompt_length:], token_key, config)
    masked = completion == mask_id
    chosen = choose(sureness, masked, planned, position_key, config)
    return (jnp.where(chosen, tokens, completion), jnp.where(chosen, sureness, confidence)), None

  blank = jnp.full((batch, length), mask_id, jnp.int32), jnp.zeros((batch, length), jnp.float32)
  (tokens, confidence), _ = jax.lax.scan(step, blank, (jnp.asarray(plan), jax.random.split(key, len(plan))))
  return Rollout(tokens, confidence)


def choose(confidence, masked, planned, key, config: SamplerConfig):
  """Positions that a step commits.

  Args:
    confidence: float32[B, L].
    masked: bool[B, L].
    planned: how many, int[]; of alg "origin" the share of the masked ones, float32[].
    key: random key, of alg "origin" and alg_temp alone.
    config: alg, alg_temp.

  Returns:
    bool[B, L].
  """
  if config.alg == "origin":
    return masked & (jax.random.uniform(key, masked.shape) < planned)
  priority = confidence
  if config.alg_temp > 0:  # Gumbel top-k: positions without replacement, by softmax(confidence / alg_temp)
    priority = confidence / config.alg_temp + jax.random.gumbel(key, confidence.shape)
  return masked & (descending_rank(jnp.where(masked, priority, -jnp.inf)) < planned)


def predict(denoiser: Denoiser, params, hidden, key, config: SamplerConfig):
  """See `predict_from_logits`, of hidden states [B, L, D]: some positions at a time have logits in memory."""
  head, hidden = denoiser.head(params).whole(hidden)  # once for all positions

  def at_a_position(scanned):
    hidden, key = scanned
    return predict_from_logits(head.logits(hidden), key, denoiser.config.mask_token_id, config, denoiser.mesh)

  by_position = jnp.moveaxis(hidden, 1, 0), jax.random.split(key, hidden.shape[1])
  predicted = jax.lax.map(at_a_position, by_position, batch_size=_POSITIONS)
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), predicted)


def predict_from_logits(logits, key, mask_id: int, config: SamplerConfig, mesh=None):
  """A token for each position, never the mask token, and the confidence of `config.alg` in it.

  Args:
    logits: float32[B, L, V].
    key: random key, unused at temperature 0.
    mask_id: of the mask token.
    config: temperature, top_p, top_k, alg.
    mesh: that the vocabulary is split over, or None.

  Returns:
    (tokens, confidence): int32[B, L] and float32[B, L].
  """
  if config.temperature > 0:
    logits = logits / config.temperature
  filtered = filter_logits(logits, config.top_p, config.top_k, mesh)
  probabilities = jax.nn.softmax(filtered, axis=-1)
  eligible = without(filtered, mask_id)
  # A nucleus of the mask token alone leaves no token to choose: then any may be.
  nothing_left = jnp.all(jnp.isneginf(eligible), axis=-1, keepdims=True)
  eligible = jnp.where(nothing_left, without(logits, mask_id), eligible)
  if config.temperature > 0:
    eligible = eligible + jax.random.gumbel(key, logits.shape, logits.dtype)
  tokens = jnp.argmax(eligible, axis=-1).astype(jnp.int32)
  if config.alg == "entropy":
    confidence = jnp.sum(probabilities * jnp.log(probabilities + _ENTROPY_OFFSET), axis=-1)
  elif config.alg == "topk_margin":
    top = lm_head.top_k(probabilities, 2, mesh)
    confidence = top[..., 0] - top[..., 1]
  else:
    confidence = lm_head.pick(probabilities, tokens)
  return tokens, confidence


def filter_logits(logits, top_p: float | None, top_k: int | None, mesh=None):
  """Logits [..., V] with −inf for tokens outside the nucleus (top_p), then for those beyond the k largest (top_k)."""
  if top_p is not None and top_p < 1:
    probabilities = jax.nn.softmax(logits, axis=-1)
    logits = jnp.where(probabilities >= _nucleus_threshold(probabilities, top_p), logits, -jnp.inf)
  if top_k is not None and top_k < logits.shape[-1]:
    least = lm_head.top_k(logits, top_k, mesh)[..., -1:]
    logits = jnp.where(logits < least, -jnp.inf, logits)
  return logits


def _nucleus_threshold(probabilities, top_p: float):
  """Least probability [..., 1] of the nucleus: of those that no more than top_p of the mass exceeds.

  By bisection over the bits of a float, which are ordered as the positive numbers are: 30 sums over the vocabulary,
  where a sort would take far longer, on accelerators above all.
  """
  bits = jax.lax.bitcast_convert_type(probabilities.astype(jnp.float32), jnp.int32)

  def halve(_, bounds):
    low, high = bounds
    middle = (low + high) // 2
    above = jnp.sum(jnp.where(bits > middle, probabilities, 0), axis=-1, keepdims=True)
    enough = above <= top_p
    return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

  one = jax.lax.bitcast_convert_type(jnp.float32(1), jnp.int32)  # nothing exceeds it
  shape = (*probabilities.shape[:-1], 1)
  bounds = jnp.zeros(shape, jnp.int32), jnp.full(shape, one)
  _, threshold = jax.lax.fori_loop(0, 30, halve, bounds)
  return jax.lax.bitcast_convert_type(threshold, jnp.float32)
