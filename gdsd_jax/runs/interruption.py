"""A run that is asked to stop (Ctrl-C; SIGTERM: a preempted VM, Slurm, Kubernetes): what it has done is saved first."""

from collections.abc import Callable

import jax

from gdsd_jax import signals
from gdsd_jax.parallel.processes import gather_json


class Interrupted(Exception):
  """The run was asked to stop and has saved its state; the same command goes on from there."""

  def __init__(self, step: int, steps: int):
    super().__init__(_saved(step, steps))


def _saved(step: int, steps: int) -> str:
  return f"asked to stop: saved step {step} of {steps}; the same command goes on from there"


class Interruption(signals.Noted):
  """Within `with`, the first signal ends the process only where all that the run has done is saved.

  Attributes:
    done: the last step that is finished.
  """

  def __init__(self):
    super().__init__(self._waits)
    self.done, self._steps, self._is_saved = 0, 0, lambda step: True

  def follow(self, start: int, steps: int, is_saved: Callable[[int], bool]) -> None:
    """The run goes on after step `start`; `is_saved` says, in any thread, whether the checkpoint of a step is whole."""
    self.done, self._steps, self._is_saved = start, steps, is_saved

  def _waits(self) -> str | None:
    if jax.process_count() > 1:
      return "asked to stop: all processes save the step under way when it ends; Ctrl-C again leaves at once"
    if self.done and not self._is_saved(self.done):
      return "asked to stop: the step under way is saved when it ends; Ctrl-C again leaves at once"
    if self.done:
      signals.tell(_saved(self.done, self._steps))
    return None

  def ask(self) -> None:
    """Asks for it from within."""
    self.came = True

  def asked(self) -> bool:
    """Whether any process of the run was asked to stop. Collective: all of them learn it at the same step."""
    return self.came if jax.process_count() == 1 else any(gather_json(self.came))
