"""How far runs that go on side by side are, in a line whenever one of them ends, and in a terminal meanwhile."""

from collections.abc import Sequence
import time

from gdsd_jax.waiting import format_seconds


class SweepProgress:
  """Counts runs that are done, of so many in all, some at a time.

  Attributes:
    stopped: whether a stop was asked for, after which no run is started.
  """

  def __init__(self, total: int, jobs: int):
    self.total, self.done, self.stopped, self._failed, self._jobs = total, 0, False, 0, jobs
    self._began, self._timed, self._timed_failed = {}, [], []

  def finished_before(self) -> None:
    """A run was done already."""
    self.done += 1

  def started(self, name: str) -> None:
    self._began[name] = time.monotonic()

  def ended(self, name: str, finished: bool, running: Sequence[str]) -> str:
    """A line after a run that ended while others go on."""
    (self._timed if finished else self._timed_failed).append(time.monotonic() - self._began.pop(name))
    self.done, self._failed = self.done + finished, self._failed + (not finished)
    return self.said(running)

  def said(self, running: Sequence[str]) -> str:
    """How far they are, and once a run has ended, what time is left."""
    failed = f", {self._failed} failed" if self._failed else ""
    under_way = f"; under way: {'  '.join(running)}" if running else ""
    return f"{self.done} of {self.total} runs done{failed}{self._left()}{under_way}"

  def _left(self) -> str:
    timed, now = self._timed or self._timed_failed, time.monotonic()  # a run that fails may do so at once
    if not timed:
      return ""
    each, waiting = sum(timed) / len(timed), self.total - self.done - self._failed - len(self._began)
    left = (waiting * each + sum(max(each - (now - began), 0) for began in self._began.values())) / self._jobs
    return f", about {format_seconds(left)} left"
