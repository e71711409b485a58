"""Prediction after the nucleus and top-k filters: Dream's, and that of block-causal models where they have filters.

Filters and entropy need the whole vocabulary of a position, so only some positions at a time have logits in memory.
Source: arXiv 2508.15487 and its published `diffusion_generate`.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gdsd_jax.diffusion import random_keys
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.diffusion.prediction import penalize
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.parallel.mesh import CONTEXT, partition, parts_of

_POSITIONS = 32  # Positions whose logits are in memory at a time.
_ENTROPY_OFFSET = 1e-10  # Added inside the logarithm, as published.


def predict(denoiser: Denoiser, params, hidden, key, config: SamplerConfig, given=None, with_logp: bool = False):
  """`predict_from_logits` of hidden states [B, L, D], some positions at a time; by a key, or one for each, [B, L]."""
  mask_id = denoiser.config.mask_token_id
  if given is not None:
    return _by_position(denoiser, params, (hidden, given), config, lambda logits, given: predict_from_logits(
      logits, key, mask_id, config, denoiser.mesh, given))
  by_row = random_keys.is_of_rows(key)
  keys = jnp.moveaxis(key, 1, 0) if by_row else jax.random.split(key, hidden.shape[1])
  return _by_position(denoiser, params, (hidden,), config, lambda logits, key: predict_from_logits(
    logits, key, mask_id, config, denoiser.mesh, with_logp=with_logp), keys)


def _by_position(denoiser: Denoiser, params, rows, config: SamplerConfig, compute, keys=None):
  """compute(logits [B, V], *rest) at each position, a tree of [B, L, ...]; rows are hidden states [B, L, D] and others.

  Some positions have logits in memory at a time. Keys, one for each position, come last among the rest.
  """
  special, (hidden, *others) = denoiser.config, rows
  head, hidden = denoiser.head(params).whole(hidden)  # Gathered once for all positions.

  def at_a_position(scanned):
    hidden, *rest = scanned
    logits = penalize(head.logits(hidden), jnp.arange(special.vocab_size), special.end_token_ids, config.eos_penalty)
    return compute(logits, *rest)

  by_position = (*(jnp.moveaxis(x, 1, 0) for x in (hidden, *others)), *([] if keys is None else [keys]))
  parts = parts_of("tokens", hidden.shape[1], denoiser.mesh)
  if parts == 1:
    found = jax.lax.map(at_a_position, by_position, batch_size=_POSITIONS)
  else:  # Each chip takes positions of its own at a time: [L / parts, parts, B, ...].
    split = lambda x: jnp.swapaxes(x.reshape(parts, -1, *x.shape[1:]), 0, 1)
    at_positions = jax.vmap(at_a_position, spmd_axis_name=CONTEXT)
    found = jax.lax.map(at_positions, jax.tree.map(split, by_position), batch_size=max(_POSITIONS // parts, 1))
    found = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), found)
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), found)


def predict_from_logits(logits, key, mask_id: int, config: SamplerConfig, mesh=None, given=None, with_logp=False):
  """A token for each position, never the mask token, and the confidence of `config.alg` in it.

  Args:
    logits: float32[B, L, V].
    key: random key, or one for each row, [B]; unused at temperature 0.
    mask_id: the mask token.
    config: the sampler; temperature, top_p, top_k and alg count here.
    mesh: the mesh that the vocabulary is split over, or None.
    given: int32[B, L] tokens in place of drawn ones, for the confidence in them; None draws.
    with_logp: whether it tells the log-probability, too, with which each token was drawn.

  Returns:
    (tokens, confidence): int32[B, L] and float32[B, L]; with a third, float32[B, L], if it tells that.
  """
  filtered, eligible = _filtered(logits, mask_id, config, mesh)
  probabilities = jax.nn.softmax(filtered, axis=-1)
  perturbed = eligible
  if config.temperature > 0 and given is None:
    gumbel = lambda key, shape: jax.random.gumbel(key, shape, logits.dtype)
    perturbed = eligible + random_keys.drawn(gumbel, key, logits.shape)
  tokens = jnp.argmax(perturbed, axis=-1).astype(jnp.int32) if given is None else given
  if config.alg == "entropy":
    confidence = jnp.sum(probabilities * jnp.log(probabilities + _ENTROPY_OFFSET), axis=-1)
  elif config.alg == "topk_margin":
    top = largest(probabilities, 2, mesh)
    confidence = top[..., 0] - top[..., 1]
  else:
    confidence = pick(probabilities, tokens)
  return tokens, confidence, *([pick(jax.nn.log_softmax(eligible, axis=-1), tokens)] if with_logp else [])


def drawn(denoiser: Denoiser, params, hidden, unconditional, tokens, config: SamplerConfig):
  """What `trajectory.drawn` tells, of this sampler: (logp, entropy), float32[B, K]; it has no guidance."""
  return _by_position(
    denoiser, params, (hidden, tokens), config, lambda logits, tokens: _told(logits, tokens, denoiser, config))


def kept(denoiser: Denoiser, params, hidden, config: SamplerConfig):
  """The tokens that may be drawn at hidden states [B, K, D], int32[B, K, top_k], -1 where the filters leave fewer."""

  def at_a_position(logits):
    _, eligible = _filtered(logits, denoiser.config.mask_token_id, config, denoiser.mesh)
    found, tokens = jax.lax.top_k(eligible, min(config.top_k, eligible.shape[-1]))
    return jnp.where(jnp.isneginf(found), -1, tokens)

  return _by_position(denoiser, params, (hidden,), config, at_a_position)


def _told(logits, tokens, denoiser: Denoiser, config: SamplerConfig):
  _, eligible = _filtered(logits, denoiser.config.mask_token_id, config, denoiser.mesh)
  log_probabilities = jax.nn.log_softmax(eligible, axis=-1)
  impossible = jnp.isneginf(log_probabilities)
  of_all = jnp.where(impossible, 0, jnp.exp(log_probabilities) * log_probabilities)
  chosen = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == tokens[..., None]
  return jnp.sum(jnp.where(chosen, log_probabilities, 0), axis=-1), -jnp.sum(of_all, axis=-1)


def _filtered(logits, mask_id: int, config: SamplerConfig, mesh):
  """(filtered, eligible): logits at the temperature with -inf where filters leave none, and for the mask token, too."""
  if config.temperature > 0:
    logits = logits / config.temperature
  filtered = filter_logits(logits, config.top_p, config.top_k, mesh, nucleus_last=config.kind == "block")
  is_mask = jnp.arange(logits.shape[-1]) == mask_id
  eligible = jnp.where(is_mask, -jnp.inf, filtered)
  # Where the filters leave nothing but the mask token, any other token may be chosen.
  nothing_left = jnp.all(jnp.isneginf(eligible), axis=-1, keepdims=True)
  return filtered, jnp.where(nothing_left, jnp.where(is_mask, -jnp.inf, logits), eligible)


def filter_logits(logits, top_p: float | None, top_k: int | None, mesh=None, nucleus_last: bool = False):
  """Logits [..., V] with −inf for tokens outside the nucleus (top_p), then for those beyond the k largest (top_k).

  Or the other way round, so that the nucleus is that of the k largest.
  """
  if nucleus_last:
    return filter_logits(filter_logits(logits, None, top_k, mesh), top_p, None, mesh)
  if top_p is not None and top_p < 1:
    probabilities = jax.nn.softmax(logits, axis=-1)
    logits = jnp.where(probabilities >= _nucleus_threshold(probabilities, top_p), logits, -jnp.inf)
  if top_k is not None and top_k < logits.shape[-1]:
    least = largest(logits, top_k, mesh)[..., -1:]
    logits = jnp.where(logits < least, -jnp.inf, logits)
  return logits


def _nucleus_threshold(probabilities, top_p: float):
  """The least probability [..., 1] that no more than top_p of the mass exceeds.

  It is found by bisection over the bits of a float, which are ordered as the positive numbers are. That takes 30 sums
  over the vocabulary, where a sort would take far longer, above all on accelerators.
  """
  bits = jax.lax.bitcast_convert_type(probabilities.astype(jnp.float32), jnp.int32)

  def halve(_, bounds):
    low, high = bounds
    middle = (low + high) // 2
    above = jnp.sum(jnp.where(bits > middle, probabilities, 0), axis=-1, keepdims=True)
    enough = above <= top_p
    return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

  one = jax.lax.bitcast_convert_type(jnp.float32(1), jnp.int32)  # No probability exceeds it.
  shape = (*probabilities.shape[:-1], 1)
  bounds = jnp.zeros(shape, jnp.int32), jnp.full(shape, one)
  _, threshold = jax.lax.fori_loop(0, 30, halve, bounds)
  return jax.lax.bitcast_convert_type(threshold, jnp.float32)


def pick(x, index):
  """x[..., index] for x [..., V] and index int[...], as a masked sum, which leaves a split last axis where it lies."""
  chosen = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1) == index[..., None]
  return jnp.sum(jnp.where(chosen, x, 0), axis=-1)


def largest(x, k: int, mesh: Mesh | None):
  """The k largest of the last axis, [..., V] -> [..., k], descending; a chip that has a part of it sends k numbers."""
  if mesh is None or mesh.shape["tensor"] == 1:
    return jax.lax.top_k(x, k)[0]

  def of_shares(part):
    best = jax.lax.top_k(part, min(k, part.shape[-1]))[0]
    return jax.lax.top_k(jax.lax.all_gather(best, "tensor", axis=-1, tiled=True), k)[0]

  leading = ("batch", *[None] * (x.ndim - 2))
  split, whole = partition((*leading, "vocab"), x.shape, mesh), partition((*leading, None), x.shape, mesh)
  return jax.shard_map(of_shares, mesh=mesh, in_specs=split, out_specs=whole, check_vma=False)(x)
