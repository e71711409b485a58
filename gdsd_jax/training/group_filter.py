"""Which groups a step trains on: those whose accuracy lies within a range; others are drawn where these are too few."""

from collections.abc import Callable
import dataclasses

import numpy as np

from gdsd_jax.checks import require
from gdsd_jax.generation.rollout import GradedCompletions, RewardError, RolloutSampler
from gdsd_jax.runs.config import RunConfig


class GroupFilter:
  """Leaves groups out that teach little, such as those that are all right or all wrong (TraceRL, DAPO)."""

  def __init__(self, config: RunConfig, sampler: RolloutSampler):
    fields = config.distillation
    self._range, self._redraws = (fields.least_accuracy, fields.largest_accuracy), fields.redraws
    self._group_size, self._sampler = config.group_size, sampler

  def __call__(self, graded: GradedCompletions,
               draw: Callable[[], GradedCompletions]) -> tuple[GradedCompletions, dict[str, float]]:
    """As many groups as were drawn first, all within the range, and numbers about them for the step's row.

    `draw` samples and grades as many again, of the next problems. Where even the last draw leaves too few, those that
    there are stand for the others, too. Raises RewardError where there is none.
    """
    drawn, count = [graded], len(graded.accuracy) // self._group_size
    kept = self._kept(0, graded)
    for number in range(1, self._redraws + 1):
      if len(kept) >= count:
        break
      drawn.append(draw())
      kept += self._kept(number, drawn[-1])
    low, high = self._range
    if not kept:
      raise RewardError(f"objective.least_accuracy: none of {count * len(drawn)} groups has an accuracy within"
                        f" {low:g} and {high:g}; widen the range, or raise objective.redraws")
    numbers = {"groups_drawn": float(count * len(drawn)), "groups_kept": float(min(len(kept), count))}
    return self._joined(drawn, [kept[i % len(kept)] for i in range(count)]), numbers

  def _kept(self, number: int, graded: GradedCompletions) -> list[tuple[int, int]]:
    """(draw, group) of those within the range."""
    accuracy = graded.accuracy.reshape(-1, self._group_size).mean(axis=1)
    require(not np.isnan(accuracy).any(), "objective.least_accuracy",
            f"needs a task that knows right from wrong, which {self._sampler.task.name} does not")
    low, high = self._range
    return [(number, int(group)) for group in np.flatnonzero((accuracy >= low) & (accuracy <= high))]

  def _joined(self, drawn: list[GradedCompletions], groups: list[tuple[int, int]]) -> GradedCompletions:
    size, total = self._group_size, len(drawn[0].accuracy)
    rows = np.concatenate([number * total + group * size + np.arange(size) for number, group in groups])
    joined = lambda name: np.concatenate([np.asarray(getattr(graded, name)) for graded in drawn])[rows]
    texts, ids = ([each for graded in drawn for each in getattr(graded, name)] for name in ("completions", "ids"))
    rewards = {name: np.concatenate([graded.rewards[name] for graded in drawn])[rows] for name in drawn[0].rewards}
    by_row = ["accuracy", "accuracy_lenient"]
    by_row += [] if drawn[0].predicted_rewards is None else ["predicted_rewards"]
    return dataclasses.replace(
      drawn[0], sampled=self._sampler.join([graded.sampled for graded in drawn], rows), rewards=rewards,
      completions=[texts[row] for row in rows], ids=[ids[row] for row in rows],
      **{name: joined(name) for name in by_row})
