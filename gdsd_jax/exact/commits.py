"""Which of its predictions a step commits, with what probability."""

import functools

import jax
import numpy as np

from gdsd_jax.diffusion.commits import choose
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.exact.states import all_digits

_choose = jax.jit(choose, static_argnames="config")


def commits(confidence, masked, planned, config: SamplerConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Every set of positions that a step may commit in R cases of what it predicted.

  Args:
    confidence: float32[R, K] in the predictions.
    masked: bool[R, K].
    planned: the step's entry of `commit_plan`.
    config: the sampler.

  Returns:
    (rows, chosen, probability): int[C], bool[C, K] and float64[C]; the probabilities of a row add up to 1.
  """
  if config.kind == "dream" and config.alg == "origin":
    of_subsets = _independent(masked, float(planned))
  elif config.kind == "llada" and config.remasking == "random":
    of_subsets = _in_turn(np.ones(confidence.shape), masked, int(planned))
  elif config.kind == "dream" and config.alg_temp > 0:
    of_subsets = _in_turn(_weights(confidence.astype(np.float64) / config.alg_temp, masked), masked, int(planned))
  else:
    return np.arange(len(masked)), _surest(confidence, masked, planned, config), np.ones(len(masked))
  rows, subsets = np.nonzero(of_subsets)
  return rows, _subsets(masked.shape[1])[subsets], of_subsets[rows, subsets]


def _surest(confidence, masked, planned, config: SamplerConfig) -> np.ndarray:
  """The sampler's own choice. Cases are filled up to a power of two, so that few numbers of them are compiled."""
  missing = 2 ** int(np.ceil(np.log2(max(len(masked), 64)))) - len(masked)
  fill = lambda x: np.pad(x, [(0, missing), (0, 0)])
  chosen = _choose(fill(confidence), fill(masked), planned, jax.random.key(0), config)
  return np.asarray(chosen)[:len(masked)]


@functools.cache
def _subsets(length: int) -> np.ndarray:
  """Every subset of positions, bool[2^K, K]."""
  return all_digits(2, length).astype(bool)


def _weights(priority, masked) -> np.ndarray:
  """exp(priority) up to a factor of each row."""
  return np.exp(priority - np.max(np.where(masked, priority, -np.inf), axis=1, keepdims=True))


def _independent(masked, share: float) -> np.ndarray:
  """Probability of each subset, float64[R, 2^K], where every masked position is committed with probability `share`."""
  subsets = _subsets(masked.shape[1])
  of_positions = np.where(subsets, share, 1 - share)
  within = ~np.any(subsets & ~masked[:, None], axis=-1)
  return within * np.prod(np.where(masked[:, None], of_positions, 1.0), axis=-1)


def _in_turn(weights, masked, count: int) -> np.ndarray:
  """Probability of each subset, float64[R, 2^K], where `count` positions are drawn in turn, without replacement.

  Each draw takes one of those left with probability proportional to its weight, float64[R, K]. That is what the count
  largest of log-weights with Gumbel noise are, and, of equal weights, those of uniform numbers.
  """
  subsets, weights = _subsets(masked.shape[1]), np.where(masked, weights, 0.0)
  left = weights.sum(axis=1, keepdims=True) - weights @ subsets.T
  so_far = np.zeros(left.shape)  # probability that the first |S| of the draws are the set S
  so_far[:, 0] = 1.0
  sizes = subsets.sum(axis=1)
  for size in range(1, count + 1):
    for subset in np.flatnonzero(sizes == size):
      for position in np.flatnonzero(subsets[subset]):
        before = subset - 2**position
        probability = np.divide(weights[:, position], left[:, before], out=np.zeros(len(left)),
                                where=weights[:, position] > 0)
        so_far[:, subset] += so_far[:, before] * probability
  return np.where(sizes == count, so_far, 0.0)
