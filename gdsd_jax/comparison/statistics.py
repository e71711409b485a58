"""The statistics of a comparison: intervals over seeds, probability of improvement, and how steady a run was."""

from collections.abc import Mapping, Sequence
import math
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

LEVEL = 0.95  # of every interval
COLLAPSE = 0.5  # share of its best that a run has to lose


class Interval(NamedTuple):
  """An estimate and the ends of its 95 % interval, which are None where there is none."""

  value: float | None
  low: float | None = None
  high: float | None = None


def mean_interval(values: Sequence[float]) -> Interval:
  """The mean over runs with Student's t interval, which presumes that runs spread as a normal distribution does.

  A bootstrap of five runs would give intervals that are too narrow by a third or more.
  """
  count = len(values)
  if count == 0:
    return Interval(None)
  mean = float(np.mean(values))
  if count == 1:
    return Interval(mean)
  half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1) * stats.sem(values))
  return Interval(mean, mean - half, mean + half)


def probability_of_improvement(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
  """P(X > Y) + ½ P(X = Y) for a run of ours and one of theirs: Mann-Whitney's U over the number of pairs.

  The interval is Newcombe's score interval (Statistics in Medicine 25:559, 2006, method 5), which holds up where all
  pairs are won: it is where |θ − θ̂| = z √V(θ), V(θ) = θ (1−θ) [1 + N ((1−θ)/(2−θ) + θ/(1+θ))] / (m n), and
  N = (m + n)/2 − 1.
  """
  m, n = len(ours), len(theirs)
  if not m or not n:
    return Interval(None)
  found = float(stats.mannwhitneyu(ours, theirs).statistic) / (m * n)
  z, more = float(stats.norm.ppf((1 + LEVEL) / 2)), (m + n) / 2 - 1

  def beyond(theta: float) -> float:  # negative within the interval; above 0 at an end that is not θ̂ itself
    spread = (1 - theta) / (2 - theta) + theta / (1 + theta)
    return (theta - found) ** 2 - z**2 * theta * (1 - theta) * (1 + more * spread) / (m * n)

  inside = min(max(found, 1e-9), 1 - 1e-9)
  low = optimize.brentq(beyond, 0, inside) if found > 0 else 0.0
  high = optimize.brentq(beyond, inside, 1) if found < 1 else 1.0
  return Interval(found, float(low), float(high))


def mean_probability(tasks: Sequence[Interval]) -> Interval:
  """The mean of independent probabilities, one of each task, with its interval by MOVER (Zou and Donner 2008).

  An end lies √Σ(θ̂ − end)² / k from the mean of k estimates.
  """
  if not tasks or any(task.value is None for task in tasks):
    return Interval(None)
  mean, low, high = (float(np.mean([task[at] for task in tasks])) for at in range(3))
  if len(tasks) > 1:
    low = mean - math.sqrt(sum((task.value - task.low) ** 2 for task in tasks)) / len(tasks)
    high = mean + math.sqrt(sum((task.high - task.value) ** 2 for task in tasks)) / len(tasks)
  return Interval(mean, low, high)


def smoothed(curve: Sequence[float | None], window: int) -> list[float]:
  """Running means over `window` steps, the first of which ends at step `window`; steps without a number do not count.

  A run that has not come so far has none.
  """
  values = np.array([np.nan if value is None else value for value in curve], float)
  if len(values) < window:
    return []
  parts = np.lib.stride_tricks.sliding_window_view(values, window)
  counted = ~np.isnan(parts)
  sums, counts = np.where(counted, parts, 0).sum(axis=1), counted.sum(axis=1)
  return [float(total / count) for total, count in zip(sums, counts) if count]


def largest_drop(curve: Sequence[float]) -> float | None:
  """The largest fall of a smoothed curve below its best so far, 0 where it never falls; None where it has no steps."""
  return float(np.max(np.maximum.accumulate(curve) - curve)) if len(curve) else None


def collapsed(run: Mapping, window: int) -> bool:
  """Whether a run gave up on updates that were not finite, or its smoothed reward fell below half of its best.

  A best that is not positive, where rewards punish, has no half to fall below.
  """
  curve = np.array(smoothed(run["curve"], window))
  best = np.maximum.accumulate(curve)
  return run["status"] == "gave_up" or bool(np.any((best > 0) & (curve < (1 - COLLAPSE) * best)))
