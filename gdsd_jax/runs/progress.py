"""A line now and then while a run goes on: the numbers of a step, its speed, and the time that is left."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import logging
import math
from typing import Any

from rich.cells import cell_len

from gdsd_jax.runs.digits import significant
from gdsd_jax.waiting import clock, format_seconds, Wait, waiting

_log = logging.getLogger(__name__)

_COLUMNS = 100  # the width of a line


class Progress:
  """Tells of a run of so many steps, every so often.

  The time that is left is that of the steps and of the evaluations to come, each as long as those before. What was
  compiled in between does not count. Nor does the first step, and what follows it until the second begins, once there
  are others: much is done for the first time there.

  Args:
    steps: the last one's number.
    every: steps between lines; the first and the last have one, too.
    evaluate_every: steps between evaluations, of which there is one after the last, too; None without.
  """

  def __init__(self, steps: int, every: int, evaluate_every: int | None = None):
    self.steps, self.every, self.evaluate_every = steps, every, evaluate_every
    self._began, self._first = clock(), None  # where the steps begin that count, and the one before them
    self._evaluating, self._evaluated, self._evaluations = 0.0, 0.0, 0  # seconds since then; in all, and their number
    self._wait: Wait | None = None

  @contextlib.contextmanager
  def shown(self, start: int) -> Iterator[None]:
    """Within `with`, a terminal shows between the lines how far the run is, which goes on from step `start`."""
    with waiting("training", self.steps, "steps", logged_after=math.inf, last_word=False) as self._wait:
      self._wait.done = self._wait.start = start
      yield

  def begin(self, step: int) -> None:
    """A step begins."""
    if self._first == step - 1:
      self._began, self._evaluating = clock(), 0.0

  def timed(self, evaluate: Callable[..., dict[str, Any]], *arguments) -> dict[str, Any]:
    """What `evaluate` finds; where that is nothing, it was no evaluation."""
    began = clock()
    if found := evaluate(*arguments):
      seconds = max(clock() - began, 0.0)
      self._evaluating, self._evaluated = self._evaluating + seconds, self._evaluated + seconds
      self._evaluations += 1
    return found

  def show(self, step: int, numbers: str, details: Sequence[str] = ()) -> None:
    """Shows a line for a step that is over, if one is due: of the `details` as many as its 100 columns hold."""
    is_first, now = self._first is None, clock()
    done = 1 if is_first else step - self._first
    speed = max(now - self._began - self._evaluating, 0.0) / done
    left = speed * (self.steps - step) + self._evaluations_left(step)
    if self._wait:
      self._wait.done, self._wait.left = step, left
    if is_first:
      self._first = step
    elif step % self.every and step != self.steps:
      return
    line = (f"step {step:{len(str(self.steps))}}/{self.steps}  {numbers}  {significant(speed, 2)} s/step "
            f" {format_seconds(left)} left")
    _log.info("%s", with_details(line, details))

  def _evaluations_left(self, step: int) -> float:
    """Seconds that they take."""
    if step >= self.steps or not self._evaluations or self.evaluate_every is None:
      return 0.0
    count = (self.steps - 1) // self.evaluate_every - step // self.evaluate_every + 1
    return count * self._evaluated / self._evaluations


def with_details(line: str, details: Sequence[str]) -> str:
  """A line with as many of the details behind it, in brackets, as it has columns for, and "…" for those left out."""
  for count in range(len(details), 0, -1):
    longer = f"{line}  ({', '.join([*details[:count], *['…'] * (count < len(details))])})"
    if cell_len(longer) <= _COLUMNS:
      return longer
  return line
