"""An RL run in the loop of every training: steps that are skipped, evaluations, and what the screen shows of them."""

from collections.abc import Mapping
import json
import logging
from typing import Any

from etils import epath
import jax
import numpy as np

from gdsd_jax.generation.held_out import evaluate
from gdsd_jax.generation.rollout import GradedCompletions, RewardError
from gdsd_jax.runs.config import RunConfig
from gdsd_jax.runs.interruption import Interruption
from gdsd_jax.runs.loop import run_training, TrainingError
from gdsd_jax.runs.metrics import Progress, Stopwatch
from gdsd_jax.training.trainer import Trainer

_log = logging.getLogger(__name__)


def train(config: RunConfig, workdir: epath.Path) -> None:
  """Runs or resumes an RL run in `workdir`. Raises as `run_training`, and as `Trainer`."""
  with Interruption() as interruption:
    training = _Steps(config, workdir)
    _announce(training)
    run_training(training, interruption)


class _Steps(Trainer):
  """A trainer's iterations as steps of the loop; those that fail are skipped, and too many in a row end the run."""

  def __init__(self, config: RunConfig, workdir: epath.Path):
    super().__init__(config, workdir)
    self._failures = 0  # in a row
    self._scored: GradedCompletions | None = None  # what the last step trained on, None if its rewards failed

  def step(self, number: int, watch: Stopwatch) -> dict[str, Any]:
    updates, cause = self.config.distillation.num_iterations, None
    try:
      row, self._scored = self.iterate(watch)
      if row["skipped"] == updates:
        cause = f"no update had a finite loss and gradient (loss {row['loss']})"
    except RewardError as error:
      row, self._scored, cause = {"reward": None, "loss": None, "skipped": updates}, None, str(error)
    self._failures = self._failures + 1 if cause else 0
    if row["skipped"]:
      _log.info("step %d: skipped %d of %d updates: %s", number, row["skipped"], updates,
                cause or "their gradient is not finite")
    if self._failures >= self.config.max_skipped_steps:
      raise TrainingError(
        f"giving up at step {number}: {self._failures} steps in a row were skipped; the last: {cause}", row
      )
    return row

  def evaluate(self, number: int, watch: Stopwatch) -> dict[str, Any]:
    if number == 0:
      first = self._evaluate(number)
      return {"reward": first.get("eval/sampled_reward", first.get("eval/reward")), **first}
    if number % self.config.eval.every and number < self.config.steps:
      return {}
    with watch.phase("evaluate"):
      return self._evaluate(number)

  def _evaluate(self, number: int) -> dict[str, float]:
    """Held-out accuracy and rewards; the same problems and random key every time. None if a reward function raises."""
    key, batch_size = jax.random.key(self.config.seed), self.config.eval.batch_size
    try:
      result = evaluate(self.sampler, self.state.student_params, self.held_out, key, batch_size)
    except RewardError as error:
      _log.info("evaluation after step %d left out: %s", number, error)
      return {}
    shown = "  ".join(f"{name} {value:.3f}" for name, value in result.items())
    _log.info("evaluation after step %d: %s", number, shown)
    return {f"eval/{name}": value for name, value in result.items()}

  def show(self, row: Mapping[str, Any], progress: Progress) -> None:
    if self._scored is None:
      return
    progress.show(row["step"], numbers_of(row))
    every = self.config.log.rollouts_every
    if every and (row["step"] - 1) % every == 0:
      _show_rollouts(self._scored)


def numbers_of(row: Mapping[str, Any]) -> str:
  """What a line of progress tells of a step."""
  named = ", ".join(f"{name.removeprefix('reward/')} {row[name]:.2f}" for name in row if name.startswith("reward/"))
  return f"reward {row['reward']:.3f} ({named})  loss {row['loss']:.5f}  kl {row.get('kl', 0.0):.4f}"


def _announce(trainer: Trainer) -> None:
  config = trainer.config
  size, trained = (
    sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (trainer.state.student_params, trainer.state.params)
  )
  mesh = ", ".join(f"{axis} {size}" for axis, size in trainer.mesh.shape.items() if size > 1) or "one device"
  _log.info(
    "%s on %s with %s (%.3g M parameters%s, %s, %s), %d prompts × %d rollouts a step",
    config.objective.name, config.task.name, config.model.path, size / 1e6,
    "" if trained == size else f", {trained / 1e6:.3g} M of them in the adapter", jax.default_backend(), mesh,
    config.prompts_per_step, config.group_size,
  )


def _show_rollouts(scored: GradedCompletions, count: int = 3) -> None:
  spread = np.linspace(0, len(scored.completions) - 1, count).astype(int)
  for i in spread:
    text = json.dumps(scored.completions[i], ensure_ascii=False)
    _log.info("  rollout, reward %.2f: %s", scored.total_reward[i], text)
