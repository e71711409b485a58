"""Estimates of a completion's log-likelihood, as objectives make them, beside the exact one.

Every estimator is made of scores that its objective's own functions take: the token's log-probability in partly masked
states, looked up in the table of all states. Means and deviations over masks are sums over all masks where an
objective draws these apart from the rollout, and of many draws by its own code where it does not.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats

from gdsd_jax.diffusion.blockwise import sample
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.diffusion.forward import masks_from_counts
from gdsd_jax.exact.enumeration import Completions
from gdsd_jax.exact.states import Space
from gdsd_jax.exact.tables import token_table
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.objectives.diffu_grpo import DiffuGrpo
from gdsd_jax.objectives.dmpo import elbo
from gdsd_jax.objectives.scores import pair_scores, Scores
from gdsd_jax.objectives.spg import Spg
from gdsd_jax.objectives.views import Drawing, Rollouts

# What is drawn where no sum is taken.
ROLLOUTS, DRAWS = 2_000, 64


class Estimate(NamedTuple):
  """An estimator of the log-likelihood of N completions: float64[N] each."""

  mean: np.ndarray  # not-a-number where it was not seen
  variance: np.ndarray  # of one estimate
  error: np.ndarray  # variance of the mean, 0 where it is a sum over all masks
  weights: np.ndarray  # probability of each completion under the sampler, or its share of the rollouts that were drawn


class Quality(NamedTuple):
  """How an estimator compares with the exact log-likelihood; averages are over the sampler's completions."""

  bias: float  # mean of estimate − exact, nats
  bias_error: float  # standard error of that, 0 where nothing was drawn
  spread: float  # deviation over completions of an estimator's own bias, which cancels in no comparison of them
  noise: float  # deviation of one estimate
  correlation: float  # of the estimator's mean with the exact value
  rank: float  # Spearman's, over all completions alike


def quality(estimate: Estimate, exact: np.ndarray) -> Quality:
  """Compares an estimate of completions with their exact log-likelihoods, float64[N]."""
  seen = (estimate.weights > 0) & np.isfinite(exact) & np.isfinite(estimate.mean)
  mean, variance, error, weights, exact = (x[seen] for x in (*estimate, exact))
  weights = weights / weights.sum()
  over = lambda values: float(weights @ values)
  bias = over(mean - exact)
  spread = over((mean - exact - bias) ** 2) - over(error)  # without what the draws add
  covariance = np.cov(mean, exact, aweights=weights)
  correlation = covariance[0, 1] / np.sqrt(max(covariance[0, 0] - over(error), 1e-12) * covariance[1, 1])
  return Quality(bias, float(np.sqrt(weights**2 @ error)), float(np.sqrt(max(spread, 0))),
                 float(np.sqrt(over(variance))), float(min(correlation, 1.0)),
                 float(scipy.stats.spearmanr(mean, exact).statistic))


class Estimators:
  """The estimators of completions to one prompt of one token, int[1]."""

  def __init__(self, denoiser: Denoiser, params, prompt, sampler: SamplerConfig, completions: Completions):
    self.denoiser, self.params, self.prompt, self.sampler = denoiser, params, prompt, sampler
    self.completions, self.space = completions, Space.of(denoiser.config, sampler.completion_length)
    masked = np.full_like(prompt, denoiser.config.mask_token_id)
    # The prompt as it is, and masked.
    self._tables = np.stack([token_table(denoiser, params, each, self.space) for each in (prompt, masked)])

  def __call__(self, key) -> dict[str, Estimate]:
    """All of them by name."""
    of_spg, of_rollouts = jax.random.split(key)
    lower, upper = self._spg(of_spg)
    pairs = self._pairs()
    sizes = self.space.masks.sum(axis=1)
    choices = scipy.special.comb(self.space.length, sizes)
    of_any, of_some = 1 / choices / (self.space.length + 1), np.where(sizes > 0, 1 / choices / self.space.length, 0.0)
    return {
      "elbo": self._over_masks(self._elbos(), of_some), "coupled_elbo": self._over_masks(pairs, of_any),
      "coupled_elbo_states": self._of_rollouts(of_rollouts, pairs), "spg_elbo": lower, "eubo": upper,
      "mean_field": self._mean_field(), "trajectory": self._trajectory(),
    }

  def _scores(self, digits, masks, prompt_masked=0) -> np.ndarray:
    """log p of the tokens digits, int[..., L], in the states under masks bool[..., L]: float32[..., L]."""
    states = self.space.masked(digits, masks)
    table = np.asarray(prompt_masked)[..., None]
    return self._tables[table, states[..., None], np.arange(self.space.length), digits]

  def _every_view(self) -> tuple[np.ndarray, np.ndarray]:
    """(digits, masks) of each completion under each mask, [N 2^L, L] both."""
    completions, masks = self.space.completions, self.space.masks
    return np.repeat(completions, len(masks), axis=0), np.tile(masks, (len(completions), 1))

  def _over_masks(self, values: np.ndarray, probability: np.ndarray) -> Estimate:
    """From values of completions under every mask, [N, 2^L], and the probability of each mask."""
    mean = values @ probability
    return self._exact(mean, values**2 @ probability - mean**2)

  def _exact(self, mean, variance) -> Estimate:
    return Estimate(mean, np.maximum(variance, 0), np.zeros(len(mean)), self.completions.probability)

  def _elbos(self) -> np.ndarray:
    """(L/n) Σ_masked log p, float64[N, 2^L]: LLaDA's estimate with one mask (DMPO's and VRPO's function for it)."""
    digits, masks = self._every_view()
    found = elbo(jnp.asarray(self._scores(digits, masks))[:, None], jnp.asarray(masks)[:, None])
    return np.asarray(found, np.float64).reshape(len(self.space.completions), -1)

  def _pairs(self) -> np.ndarray:
    """Scores of coupled pairs by their first mask, float64[N, 2^L] (GDSD and ESPO)."""
    digits, masks = self._every_view()
    scores = np.where(masks, self._scores(digits, masks), self._scores(digits, ~masks))
    found = pair_scores(Scores(jnp.asarray(scores)[:, None]), jnp.asarray(masks)[:, None]).plain
    return np.asarray(found, np.float64).reshape(len(self.space.completions), -1)

  def _mean_field(self) -> Estimate:
    """One pass, all masked; the prompt, too, now and then (diffu-GRPO)."""
    everything, share = np.ones(self.space.completions.shape, bool), DiffuGrpo().prompt_masking
    clean, masked = (self._scores(self.space.completions, everything, which).sum(axis=1, dtype=np.float64)
                     for which in (0, 1))
    return self._exact(clean + share * (masked - clean), share * (1 - share) * (masked - clean) ** 2)

  def _trajectory(self) -> Estimate:
    """Sum of log-probabilities where tokens were committed."""
    return self._exact(self.completions.trajectory_mean, self.completions.trajectory_std**2)

  def _spg(self, key) -> tuple[Estimate, Estimate]:
    """SPG's bounds of whole completions, lower and upper, by draws of its views."""
    objective, length, count = Spg(), self.space.length, len(self.space.completions)
    block_length = self.sampler.block_length if self.sampler.is_blockwise else None
    views_each = min(objective.num_mc, self.sampler.num_blocks)
    drawing = Drawing(views_each, 1, len(self.prompt), block_length, self.sampler.most_steps, None)
    digits = np.tile(self.space.completions, (DRAWS, 1))
    masks, prompt_masks = map(np.asarray, _views(key, self.space.tokens(digits), objective, drawing))
    digits = np.broadcast_to(digits[:, None], masks.shape)
    bounds = _bounds(self._scores(digits, masks, prompt_masks.any(axis=-1).astype(int)), masks, objective)
    found = length * np.asarray(bounds, np.float64).reshape(2, DRAWS, count)
    mean, variance = found.mean(axis=1), found.var(axis=1, ddof=1)
    return tuple(Estimate(*numbers, self.completions.probability) for numbers in zip(mean, variance, variance / DRAWS))

  def _of_rollouts(self, key, pairs: np.ndarray) -> Estimate:
    """Coupled pairs in the states that the sampler visits, which depend on the rollout (GDSD's masks).

    Each number of masked tokens comes once in each rollout.
    """
    of_rollouts, of_masks = jax.random.split(key)
    prompt = np.broadcast_to(np.asarray(self.prompt, np.int32), (ROLLOUTS, len(self.prompt)))
    rollout = sample(self.denoiser, self.params, prompt, None, of_rollouts, self.sampler)
    masks = np.asarray(_consistent(of_masks, rollout.confidence, **self.sampler.forward_process))  # [R, L+1, L]
    numbers = self.space.number(rollout.tokens)
    values = pairs[numbers[:, None], masks @ 2 ** np.arange(self.space.length)]
    count = np.bincount(numbers, minlength=len(pairs)).astype(float)
    sums = lambda values: np.bincount(numbers, values, len(pairs))
    with np.errstate(divide="ignore", invalid="ignore"):
      mean, square = sums(values.mean(axis=1)) / count, sums((values**2).mean(axis=1)) / count
      # One variance for all completions, of what a rollout's mean differs by from its completion's.
      between = np.sum((values.mean(axis=1) - mean[numbers]) ** 2) / max(ROLLOUTS - np.sum(count > 0), 1)
      return Estimate(mean, square - mean**2, between / count, count / ROLLOUTS)


@functools.partial(jax.jit, static_argnames=("objective", "drawing"))
def _views(key, tokens, objective: Spg, drawing: Drawing):
  """(masks, prompt masks) of an objective's views of completions int32[R, L], which have no end of text."""
  count, length = tokens.shape
  zeros = jnp.zeros(count, jnp.float32)
  rollouts = Rollouts(tokens=tokens, lengths=jnp.full(count, length, jnp.int32), rewards=zeros, advantages=zeros,
                      confidence=jnp.zeros(tokens.shape, jnp.float32), group_size=1)
  views = objective.views(key, rollouts, jnp.int32(0), drawing)
  return views.masks, views.prompt_masks


@functools.partial(jax.jit, static_argnames=("objective",))
def _bounds(scores, scored, objective: Spg):
  return objective.bounds(scores, scored, jnp.full(len(scores), scores.shape[-1], jnp.float32))


@functools.partial(jax.jit, static_argnames=("block_length", "remasking"))
def _consistent(key, confidence, block_length: int | None, remasking: str):
  """bool[R, L+1, L], the forward process's mask of each number of tokens in turn."""
  rows, length = confidence.shape
  of_count = lambda key, count: masks_from_counts(key, jnp.full(rows, count), confidence, block_length, remasking)
  return jax.vmap(of_count, out_axes=1)(jax.random.split(key, length + 1), jnp.arange(length + 1))
