"""Which predictions a step commits: its plan, and the choice among the masked positions of a block."""

import jax
import jax.numpy as jnp
import numpy as np

from gdsd_jax.diffusion import dream_schedule, random_keys
from gdsd_jax.diffusion.config import SamplerConfig


def commit_plan(config: SamplerConfig) -> np.ndarray:
  """What each step of a block commits: int32[steps] numbers of tokens, without steps that would commit none.

  LLaDA spreads the tokens of a block evenly, with the remainder on the first steps; for Dream see
  `dream_schedule.commits`; its "origin", which commits at random, has shares of the masked tokens, float32[steps].
  With a threshold or factor the plan is the least that a step commits: one, or, of the block sampler, what its even
  steps would unless it edits.
  """
  length, steps = config.block_width, config.steps // config.num_blocks
  if not config.counts_steps:
    return np.ones(config.block_steps, np.int32)
  if config.kind == "dream":
    if config.alg == "origin":
      return dream_schedule.unmask_shares(steps, config.eps)
    return np.array(dream_schedule.commits(length, steps, config.eps), np.int32)
  each, remainder = divmod(length, steps)
  return np.array([each + (step < remainder) for step in range(min(steps, length))], np.int32)


def choose(confidence, masked, planned, key, config: SamplerConfig):
  """Positions of a block that a step commits, bool[B, K].

  They are some of the masked ones, bool[B, K], by float32[B, K] confidence in the predictions, or drawn by the random
  key, or one for each position, [B, K]. `planned` is the step's entry of `commit_plan`, or, of rows at steps of their
  own, [B, 1].
  """
  number = lambda draw: random_keys.drawn(lambda key, shape: draw(key, shape, jnp.float32), key, masked.shape)
  if config.kind == "dream" and config.alg == "origin":
    return masked & (number(jax.random.uniform) < planned)
  priority = confidence
  if config.kind != "dream" and config.remasking == "random":
    priority = number(jax.random.uniform)
  if config.remasking == "sequential":
    priority = jnp.broadcast_to(-jnp.arange(masked.shape[1], dtype=jnp.float32), masked.shape)
  if config.kind == "dream" and config.alg_temp > 0:
    # Gumbel top-k: positions without replacement, with probability softmax(confidence / alg_temp).
    priority = confidence / config.alg_temp + number(jax.random.gumbel)
  rank = descending_rank(jnp.where(masked, priority, -jnp.inf))
  chosen = rank < planned
  if config.threshold is not None:
    chosen |= confidence > config.threshold
  if config.factor is not None:  # The nth surest token has rank n − 1; the left side grows with the rank.
    chosen |= (rank + 2) * (1 - confidence) < config.factor
  return masked & chosen


def descending_rank(x):
  """Rank of each entry of the last axis: 0 is the largest, and equal ones keep their order. int[...], of x's shape.

  NaN ranks behind all numbers but −inf, which marks what may not be picked. So samplers come to an end even where a
  model gives nothing but NaN.
  """
  x = jnp.where(jnp.isnan(x), jnp.finfo(x.dtype).min, x)
  return jnp.argsort(jnp.argsort(-x, axis=-1, stable=True), axis=-1)
