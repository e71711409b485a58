"""What an RL run tells of itself: on the screen, and of each step's rollouts in its metrics."""

import collections
from collections.abc import Callable, Mapping
import json
import logging
import math
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from gdsd_jax.generation.rollout import GradedCompletions, mean_that_applies, RewardError
from gdsd_jax.generation.slot_use import slot_use
from gdsd_jax.parallel.mesh import is_quantised
from gdsd_jax.runs.config import RunConfig
from gdsd_jax.runs.digits import significant
from gdsd_jax.runs.progress import with_details
from gdsd_jax.runs.state import TrainState
from gdsd_jax.training.diversity import group_diversity

_log = logging.getLogger(__name__)

_LAST_STEPS, _LEAST_STEPS = 10, 5  # that a reward's mean is over


def announce(config: RunConfig, state: TrainState, mesh: Mesh) -> None:
  """Says what is trained on what, and where."""
  # Without the scales of quantised weights.
  count = lambda tree: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree, is_leaf=is_quantised))
  size, trained = count(state.student_params), count(state.params)
  devices = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1) or "one device"
  _log.info(
    "%s on %s with %s (%.3g M parameters%s, %s, %s), %d prompts × %d rollouts a step",
    config.objective.name, config.task.name, config.model.path, size / 1e6,
    "" if trained == size else f", {trained / 1e6:.3g} M of them in the adapter", jax.default_backend(), devices,
    config.prompts_per_step, config.group_size,
  )
  _log.info("reward: mean of a step's rollouts (that of the last %d steps against before training)", _LAST_STEPS)


def rollout_metrics(scored: GradedCompletions, group_size: int, slots: int | None = None) -> dict[str, float]:
  """A step's numbers about its rollouts, of which each group of `group_size` answers one prompt."""
  passes = scored.sampled.rollout.passes
  groups, lengths = scored.total_reward.reshape(-1, group_size), scored.lengths.reshape(-1, group_size)
  applies = ~np.isnan(groups)
  return {
    "reward": mean_that_applies(groups),
    **{f"reward/{name}": mean_that_applies(values) for name, values in scored.rewards.items()},
    "reward_std": mean_that_applies(np.nanstd(groups[applies.any(axis=1)], axis=1)),
    "groups_without_spread": float(np.mean(scored.spreads(group_size) == 0)),
    "unique_rewards": float(np.mean([len(np.unique(each[some])) for each, some in zip(groups, applies)]) / group_size),
    "completion_length": float(lengths.mean()),
    "completion_length_std": float(lengths.std(axis=1).mean()),
    "completions_cut": float(np.mean(lengths >= scored.sampled.rollout.tokens.shape[1])),
    **group_diversity(scored.ids, scored.sampled.rollout.tokens.shape[1], group_size),
    "tokens_per_second": scored.sampled.rollout.tokens.size / scored.sampling_seconds,
    **({} if passes is None else slot_use(passes, slots)),
    **scored.metrics,
  }


def evaluation_row(step: int, evaluate: Callable[[], dict[str, float]], learning: "Learning") -> dict[str, float]:
  """What `evaluate` finds after a step, shown, and named as in metrics.jsonl; none if the task's grader raises."""
  try:
    found = evaluate()
  except RewardError as error:
    _log.info("evaluation after step %d left out: %s", step, error)
    return {}
  row = {f"eval/{name}": value for name, value in found.items()}
  named = lambda names: [f"{name.removeprefix('reward/')} {significant(found[name], 3)}{learning.since(name, found)}"
                         for name in names]
  first = [name for name in ("accuracy", "reward", "sampled_reward") if name in found]
  line = f"evaluation after step {step}: {'  '.join(named(first))}"
  _log.info("%s", with_details(line, named(name for name in found if name not in first)))
  return row


class Learning:
  """By how much the reward has risen: its mean over the last steps, above that of before the first step."""

  def __init__(self):
    self._before, self._last = None, collections.deque(maxlen=_LAST_STEPS)
    self._evaluated = {}  # by the first evaluation

  def see(self, row: Mapping[str, Any]) -> None:
    """Takes a row of metrics.jsonl into account."""
    if not self._evaluated:
      told = {name.removeprefix("eval/"): value for name, value in row.items() if name.startswith("eval/")}
      # A reward may apply to none of the problems; on the disk that is None.
      self._evaluated = {name: value for name, value in told.items() if value is not None and math.isfinite(value)}
    reward = row.get("reward")
    if reward is None or not math.isfinite(reward):
      return
    if self._before is None:
      self._before = reward
    if row["step"] > 0:
      self._last.append(reward)

  @property
  def gain(self) -> float | None:
    """None while the steps are so few that their mean is but noise."""
    return sum(self._last) / len(self._last) - self._before if len(self._last) >= _LEAST_STEPS else None

  def since(self, name: str, found: Mapping[str, float]) -> str:
    """By how much a number of an evaluation is above the first one's, in brackets; nothing of the first itself."""
    return f" ({_signed(found[name] - self._evaluated[name])})" if name in self._evaluated else ""


def _signed(value: float) -> str:
  return f"{'+' * (value >= 0)}{significant(value, 2)}"


def numbers_of(row: Mapping[str, Any], gain: float | None) -> tuple[str, list[str]]:
  """What a line of progress tells of a step that has a reward: its numbers, and details that it may leave out."""
  rewards = {name.removeprefix("reward/"): value for name, value in row.items() if name.startswith("reward/")}
  details = [f"{name} {significant(value, 2)}" for name, value in rewards.items() if not math.isnan(value)]
  kl = f"  kl {significant(row['kl'], 2)}" if "kl" in row else ""
  gained = "" if gain is None else f" ({_signed(gain)})"
  return f"reward {significant(row['reward'], 3)}{gained}{kl}", details


def show_rollouts(scored: GradedCompletions, count: int = 3) -> None:
  """Shows some completions with their rewards."""
  for i in np.linspace(0, len(scored.completions) - 1, count).astype(int):
    text = json.dumps(scored.completions[i], ensure_ascii=False)
    _log.info("  rollout, reward %.2f: %s", scored.total_reward[i], text)
