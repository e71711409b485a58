"""How far runs that go on side by side are, in a line whenever one of them ends."""

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
    now = time.monotonic()
    (self._timed if finished else self._timed_failed).append(now - self._began.pop(name))
    self.done, self._failed = self.done + finished, self._failed + (not finished)
    timed = self._timed or self._timed_failed  # a run that fails may do so at once
    each, waiting = sum(timed) / len(timed), self.total - self.done - self._failed - len(self._began)
    left = (waiting * each + sum(max(each - (now - began), 0) for began in self._began.values())) / self._jobs
    failed = f", {self._failed} failed" if self._failed else ""
    under_way = f"; under way: {'  '.join(running)}" if running else ""
    return f"{self.done} of {self.total} runs done{failed}, about {format_seconds(left)} left{under_way}"
