"""Consistent forward process of a block-causal sampler: any block may be partly masked, with all earlier ones clean.

A step of such a sampler sees clean blocks and one that is partly masked, whatever comes behind. One view can therefore
hold a state of every block, each with a mask level of its own, and is scored in one pass (models/copies.py).
"""

import jax
import jax.numpy as jnp

from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.diffusion.forward import dealt
from gdsd_jax.models.copies import block_bounds


def block_levels(key, blocks, group_size: int = 1):
  """How many tokens are masked of the block that each token is in, int32[B, L]: of K, a number of 0…K with equal odds.

  Over the batch, the levels u ∈ [0, 1) of its blocks, of which ⌊u (K+1)⌋ tokens are masked, are spread evenly, and so
  are those of each completion and of each group. `blocks` are int[B, L], see `completion_blocks`.
  """
  batch, length = blocks.shape
  of_first, of_order = jax.random.split(key)
  first, end = block_bounds(blocks)
  count = blocks[:, -1:] + 1  # of each completion
  shuffled = jnp.where(jnp.arange(length) < count, jax.random.uniform(of_order, blocks.shape, jnp.float32), 2)
  order = jnp.argsort(jnp.argsort(shuffled, axis=1), axis=1)  # in [0, count) for the first `count` of them
  place = jnp.take_along_axis(order, blocks, axis=1)
  between = dealt(batch, group_size)[:, None].astype(jnp.float32) / batch
  level = (jax.random.uniform(of_first, (), jnp.float32) + (place + between) / count) % 1
  return jnp.minimum((level * (end - first + 1)).astype(jnp.int32), end - first)


def block_masks(key, confidence, blocks, num_samples: int, remasking: str = "low_confidence", group_size: int = 1):
  """Masks of states that a block-causal sampler visits, one of each block: bool[B, M, L], True where masked.

  Args:
    key: random key.
    confidence: float[B, L] of the rollouts (`Rollout.confidence`).
    blocks: int[B, L], see `completion_blocks`.
    num_samples: M, the number of Monte Carlo samples, each with levels of its own (`block_levels`).
    remasking: the sampler's: masked are the least sure tokens of a block ("low_confidence"), any ("random"), or the
      last ("sequential").
    group_size: G, how many neighbours answer one prompt.
  """
  shape, (first, _) = confidence.shape, block_bounds(blocks)

  def one_sample(key):
    of_levels, of_tokens = jax.random.split(key)
    priority = confidence
    if remasking == "random":
      priority = jax.random.uniform(of_tokens, shape, jnp.float32)
    elif remasking == "sequential":
      priority = jnp.broadcast_to(-jnp.arange(shape[1], dtype=jnp.float32), shape)
    rank = jnp.argsort(jnp.lexsort((priority, blocks), axis=1), axis=1) - first  # in its block; 0: masked first
    return rank < block_levels(of_levels, blocks, group_size)

  return jax.vmap(one_sample, out_axes=1)(jax.random.split(key, num_samples))


def steps_in_blocks(steps, config: SamplerConfig):
  """A rollout's steps, int32[B, L], counted in each block; `block_steps` for what no step unmasked."""
  return jnp.where(steps < config.most_steps, steps % config.block_steps, config.block_steps)
