"""The exact distribution of a sampler's completions: a sum over all its draws, state by state and step by step.

A step draws a token for every masked position of the block, all of them at once, and commits some. So the probability
of the next state is a sum over V^m joint draws of m masked positions, and over what of each is committed. Beside the
probability of each state, two sums over the ways to it are kept, of the log-probability of the tokens committed on the
way and of its square: what a rollout remembers as `logp`, given its completion.

The logits are the denoiser's in float32, as the sampler sees them; probabilities are float64.
"""

from typing import NamedTuple

import numpy as np

from gdsd_jax.checks import require
from gdsd_jax.diffusion.commits import commit_plan
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.exact.commits import commits
from gdsd_jax.exact.states import all_digits, Space
from gdsd_jax.exact.tables import check_enumerable, sampler_table, SamplerTable
from gdsd_jax.models.denoiser import Denoiser


class Completions(NamedTuple):
  """What a sampler gives for one prompt: numbers for each of the N completions of a `Space`, float64[N] each."""

  probability: np.ndarray
  trajectory_mean: np.ndarray  # of the trajectory's log-probability, over rollouts that end in the completion
  trajectory_std: np.ndarray  # the deviation of it; both not-a-number where no rollout does

  @property
  def log_probability(self) -> np.ndarray:
    """Exact log-likelihoods; −inf where a completion cannot be drawn."""
    with np.errstate(divide="ignore"):
      return np.log(self.probability)


class _Mass(NamedTuple):
  """Sums over the ways to each state, float64[(V+1)^L] each."""

  total: np.ndarray  # of their probabilities
  first: np.ndarray  # of these times the log-probability of the tokens committed on the way
  second: np.ndarray  # and times its square


def enumerate_completions(denoiser: Denoiser, params, prompt, config: SamplerConfig) -> Completions:
  """The exact distribution of `sample`'s completions, row n being completion n of `Space.of(denoiser.config, L)`.

  Args:
    denoiser, params: the model, with a vocabulary of a few tokens.
    prompt: int[P], without padding.
    config: the sampler: LLaDA's or Dream's, with blocks, temperature, filters, guidance, `alg_temp`, threshold, factor.

  Raises:
    ValueError: there are too many states, or the sampler cannot be enumerated: one of one's own, with a cache, with
      `early_stop`, or with the official noise.
  """
  check_enumerable(config)
  space = Space.of(denoiser.config, config.completion_length)
  limit = denoiser.config.max_positions
  require(len(prompt) + config.completion_length <= limit, "sampler.completion_length",
          f"prompt ({len(prompt)}) and completion exceed the model's {limit} positions")
  return of_table(sampler_table(denoiser, params, prompt, space, config), space, config)


def of_table(table: SamplerTable, space: Space, config: SamplerConfig) -> Completions:
  """As `enumerate_completions`, from what the sampler does in each state."""
  mass = _Mass(*(np.zeros(len(space.states)) for _ in range(3)))
  mass.total[space.code(np.full(space.length, space.mask_digit))] = 1.0
  block_length, plan = config.block_width, commit_plan(config)
  for start in range(0, space.length, block_length):
    for planned in plan:
      mass = _step(mass, table, space, slice(start, start + block_length), planned, config)
  of_completions = _Mass(*(x[space.code(space.completions)] for x in mass))
  with np.errstate(divide="ignore", invalid="ignore"):
    mean = of_completions.first / of_completions.total
    variance = of_completions.second / of_completions.total - mean**2
  return Completions(of_completions.total, mean, np.sqrt(np.maximum(variance, 0)))


def _step(mass: _Mass, table: SamplerTable, space: Space, block: slice, planned, config: SamplerConfig) -> _Mass:
  """The states after a step, which denoises a block of positions."""
  masked_of = space.states[:, block] == space.mask_digit
  moves = (mass.total > 0) & masked_of.any(axis=1)
  states = np.flatnonzero(moves)
  if not len(states):
    return mass
  draws = all_digits(space.size, masked_of.shape[1])
  # A draw counts once: what it has where nothing is masked is 0.
  of_state, of_draw = np.nonzero(np.all(masked_of[states][:, None] | (draws == 0), axis=-1))
  state, draw = states[of_state], draws[of_draw]
  masked, positions = masked_of[state], np.arange(block.start, block.stop)
  logp = np.where(masked, table.logp[state[:, None], positions, draw], 0.0)
  possible = np.all(np.isfinite(logp), axis=1)
  state, draw, masked, logp = (x[possible] for x in (state, draw, masked, logp))
  confidence = table.confidence[state[:, None], positions, draw]
  rows, chosen, share = commits(confidence, masked, planned, config)
  probability, gain = np.exp(logp.sum(axis=1))[rows] * share, np.where(chosen, logp[rows], 0.0).sum(axis=1)
  state, draw = state[rows], draw[rows]
  after = state + np.where(chosen, draw - space.mask_digit, 0) @ space.place_values[block]
  total, first, second = (x[state] for x in mass)
  added = total, first + gain * total, second + 2 * gain * first + gain**2 * total
  stays = [np.where(moves, 0.0, x) for x in mass]
  return _Mass(*(old + np.bincount(after, probability * new, len(old)) for old, new in zip(stays, added)))
