"""What of a run's rollouts is kept for people to look at: the rows of rollouts.jsonl (docs/runs.md)."""

import logging
from typing import Any

from etils import epath
import jax
import numpy as np

from gdsd_jax.diffusion.config import Rollout
from gdsd_jax.generation.rollout import GradedCompletions, RolloutSampler
from gdsd_jax.generation.tokens_told import told_tokens
from gdsd_jax.parallel.processes import is_first_process
from gdsd_jax.parallel.rows import readable_rows
from gdsd_jax.runs.config import RunConfig
from gdsd_jax.runs.rollouts_file import is_kept, RolloutsFile
from gdsd_jax.training.updates import advantages_of

_log = logging.getLogger(__name__)


class KeptRollouts:
  """Keeps the first groups of a step now and then; of several processes the first writes them."""

  def __init__(self, config: RunConfig, sampler: RolloutSampler):
    self.config, self.sampler, self._groups = config, sampler, min(config.log.keep_groups, config.prompts_per_step)
    self._file: RolloutsFile | None = None
    self._noted: tuple | None = None  # the step's number, its rollouts, and what is still on the device
    self._said = False

  def open(self, workdir: epath.Path, last_step: int) -> None:
    """Opens the file, and drops its rows after `last_step`. Raises as `RolloutsFile`."""
    if is_first_process():
      self._file = RolloutsFile(workdir, last_step, self.config.log)

  def note(self, number: int, graded: GradedCompletions) -> None:
    """Takes note of what a step trained on, before the next begins. Collective.

    What is asked of the device now is done before its next step, and need not be waited for.
    """
    if is_kept(number, self.config.log.keep_every):
      rollout = graded.sampled.rollout
      seen = Rollout(rollout.tokens, rollout.confidence, rollout.steps, rollout.logp)
      advantages = None if self.config.objective.advantages is None else advantages_of(graded, self.config)
      seen = readable_rows(self.sampler.generator.mesh, seen, self._groups * self.config.group_size)
      self._noted = number, graded, seen, advantages

  def write(self) -> None:
    """Writes what was noted of the last step, if its rows are kept; returns once they are there. Raises OSError."""
    noted, self._noted = self._noted, None
    if noted is not None and self._file is not None and self._file.keeps(noted[0]):
      self._file.write(self._rows(*noted))

  def _rows(self, number: int, graded: GradedCompletions, rollout: Rollout, advantages) -> list[dict[str, Any]]:
    rollout, advantages = jax.device_get((rollout, advantages))
    size, rows = self.config.group_size, []
    for group in range(self._groups):
      example = graded.sampled.examples[group * size]
      messages = self.sampler.task.messages(example)
      rows.append({
        "step": number, "group": group,
        "prompt": [{"role": message["role"], "content": message["content"]} for message in messages],
        "reference": self._reference(example),
        "completions": [self._completion(row, graded, rollout, None if advantages is None else advantages.ravel()[row])
                        for row in range(group * size, (group + 1) * size)],
      })
    return rows

  def _completion(self, row: int, graded: GradedCompletions, rollout: Rollout, advantage) -> dict[str, Any]:
    of_row = jax.tree.map(lambda array: array[row], rollout)
    return {
      "text": graded.completions[row],
      "reward": _number(graded.total_reward[row]),
      "rewards": {name: _number(values[row]) for name, values in graded.rewards.items()},
      "accuracy": _number(graded.accuracy[row]),
      "advantage": None if advantage is None else _number(advantage),
      "length": int(graded.lengths[row]),
      **told_tokens(self.sampler.generator.tokenizer, of_row.tokens, of_row.steps, of_row.confidence, of_row.logp),
    }

  def _reference(self, example) -> str | None:
    try:
      return self.sampler.task.reference_answer(example)
    except Exception as error:  # the user's own; what is only looked at ends no run
      if not self._said:
        self._said = True
        _log.warning("rollouts.jsonl lacks reference answers: %s", error)
      return None


def _number(value: np.floating) -> float | None:
  """A number by the least digits that tell it from others of its kind; None for what is none."""
  return float(str(value)) if np.isfinite(value) else None
