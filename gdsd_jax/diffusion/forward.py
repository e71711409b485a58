"""Consistent forward process: masks that look like the states a re-masking sampler visits (GDSD, arXiv 2605.29398)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gdsd_jax.checks import require
from gdsd_jax.diffusion.config import REMASKING, SamplerConfig

KINDS = ("sampler", "uniform", "blocks")


@dataclasses.dataclass(frozen=True)
class MaskConfig:
  """In which states of its denoising a rollout is scored; section `masks`."""

  # "sampler", the states that the run's sampler visits; "uniform", any of the whole completion's tokens; or
  # "blocks", as the two fields below say. None is what the objective was published with: "sampler" for GDSD, "uniform"
  # for ESPO. Objectives with views of their own have no such choice.
  kind: str | None = None
  block_length: int | None = None  # tokens of a block, which divide the completion; None for one block, the whole of it
  remasking: str | None = None  # masked first are the "low_confidence" tokens of a block, or "random" ones; None: low
  fresh: bool = True  # whether each update on the same rollouts draws its own; if not, all share theirs

  def __post_init__(self):
    require(self.kind in (None, *KINDS), "masks.kind", f"{self.kind!r} is not one of {', '.join(KINDS)}")
    require(self.remasking in (None, *REMASKING), "masks.remasking",
            f"{self.remasking!r} is not one of {', '.join(REMASKING)}")
    for name in ("block_length", "remasking"):
      require(self.kind == "blocks" or getattr(self, name) is None, f"masks.{name}",
              f"needs masks.kind=blocks; it is {self.kind!r}, which says it already")

  def forward_process(self, sampler: SamplerConfig, default: str = "sampler") -> dict[str, Any]:
    """`block_length` and `remasking` of `rollout_masks`, by the `default` kind where none is chosen.

    Raises ValueError where they do not fit the sampler.
    """
    length, K, kind = sampler.completion_length, self.block_length, self.kind or default
    if kind == "uniform":
      return dict(block_length=None, remasking="random")
    if kind == "blocks":
      require(K is None or K >= 1 and length % K == 0, "masks.block_length",
              f"{K} must divide sampler.completion_length, {length}")
      return dict(block_length=K, remasking=self.remasking or "low_confidence")
    require(not sampler.is_own, "masks.kind", f"which states {sampler.kind} visits is not known here; say it by"
            " --config.masks.kind=blocks with masks.block_length and masks.remasking, or choose uniform")
    return sampler.forward_process


def stratified_counts(key, batch_size: int, length: int, group_size: int = 1):
  """Mask counts spread evenly over 0…length, in the batch and in each group of neighbours. int32[B].

  They are n_c = round(k + c (L+1) / B) mod (L+1) for c = 0…B−1, with k ~ U{0,…,L}. Sequence b has that of c = b without
  groups. Of B/G groups, the jth sequence of group g has that of c = j B/G + g: a group's counts are (L+1)/G apart.
  """
  first = jax.random.randint(key, (), 0, length + 1, jnp.int32)
  spread = (dealt(batch_size, group_size) * (length + 1)).astype(jnp.float32) / batch_size
  return jnp.round(first + spread).astype(jnp.int32) % (length + 1)


def dealt(batch_size: int, group_size: int):
  """0…B−1, int32[B], dealt out to groups of G neighbours in turn, so that each has numbers from all over."""
  b = jnp.arange(batch_size, dtype=jnp.int32)
  return b % group_size * (batch_size // group_size) + b // group_size


def masks_from_counts(key, counts, confidence, block_length: int | None = None, remasking: str = "low_confidence"):
  """Masks of `counts` tokens, int[B], where a block-wise sampler would have left them: bool[B, L], True where masked.

  With n = q K + r tokens, the last q blocks are masked, and r tokens of the block before them: the least confident ones
  ("low_confidence"), or any ("random"). Other arguments are as in `consistent_masks`.
  """
  batch, length = confidence.shape
  K = length if block_length is None else block_length
  num_blocks = length // K
  priority = confidence if remasking == "low_confidence" else jax.random.uniform(key, confidence.shape, jnp.float32)
  blocks = priority.reshape(batch, num_blocks, K)
  rank = jnp.argsort(jnp.argsort(blocks, axis=-1, stable=True), axis=-1)  # 0: masked first
  # Masks go to the last block first: each block gets what is left, up to its K tokens.
  before = jnp.arange(num_blocks)[::-1] * K
  masked_in_block = jnp.clip(counts[:, None] - before, 0, K)
  return (rank < masked_in_block[..., None]).reshape(batch, length)


def rollout_masks(key, confidence, num_samples: int, block_length: int | None = None,
                  remasking: str = "low_confidence", group_size: int = 1):
  """The masks of `consistent_masks` with rollouts first, as everything inside has them: bool[B, M, L]."""
  batch, length = confidence.shape
  if block_length is not None and (block_length < 1 or length % block_length):
    raise ValueError(f"block_length: {block_length} must divide the completion length, {length}")
  if remasking not in REMASKING:
    raise ValueError(f"remasking: {remasking!r} is not one of {', '.join(REMASKING)}")
  if group_size < 1 or batch % group_size:
    raise ValueError(f"group_size: {group_size} must divide the batch of {batch} rollouts")

  def one_sample(key):
    count_key, mask_key = jax.random.split(key)
    counts = stratified_counts(count_key, batch, length, group_size)
    return masks_from_counts(mask_key, counts, confidence, block_length, remasking)

  return jax.vmap(one_sample, out_axes=1)(jax.random.split(key, num_samples))


def consistent_masks(key, confidence, num_samples: int, block_length: int | None = None,
                     remasking: str = "low_confidence", group_size: int = 1):
  """The first mask of each coupled pair; the second is its complement on the completion (GDSD, arXiv 2605.29398).

  Those of block-causal models, in whose views each block has a state of its own, are `block_forward.block_masks`.

  Args:
    key: random key.
    confidence: float[B, L] of the rollouts (`Rollout.confidence`).
    num_samples: M, the number of Monte Carlo samples, each with stratified counts of its own (`stratified_counts`).
    block_length: K, the sampler's; None or L for masks over the whole completion.
    remasking: the sampler's, "low_confidence" or "random".
    group_size: G, how many neighbours answer one prompt. Their counts are spread over 0…L, too, so that each prompt is
      learnt from in early and late states of denoising. With 1 the counts of neighbours are close.

  Returns:
    bool[M, B, L], True where masked.

  Raises:
    ValueError: block_length does not divide L, group_size not B, or remasking is unknown.
  """
  return jnp.swapaxes(
    rollout_masks(key, confidence, num_samples, block_length, remasking, group_size), 0, 1
  )
