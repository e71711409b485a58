"""How far runs that go on side by side are, in a line whenever one of them ends."""

from collections.abc import Sequence
import time

from gdsd_jax.runs.metrics import format_seconds


class SweepProgress:
  """Counts runs that are done, of so many in all, some at a time."""

  def __init__(self, total: int, jobs: int):
    self.total, self.done, self._failed, self._jobs = total, 0, 0, jobs
    self._began, self._timed = {}, []

  def finished_before(self) -> None:
    """A run was done already."""
    self.done += 1

  def started(self, name: str) -> None:
    self._began[name] = time.monotonic()

  def ended(self, name: str, finished: bool, running: Sequence[str]) -> str:
    """A line after a run that ended while others go on."""
    self._timed.append(time.monotonic() - self._began.pop(name))
    self.done, self._failed = self.done + finished, self._failed + (not finished)
    left = (self.total - self.done - self._failed) / self._jobs * sum(self._timed) / len(self._timed)
    failed = f", {self._failed} failed" if self._failed else ""
    under_way = f"; under way: {'  '.join(running)}" if running else ""
    return f"{self.done} of {self.total} runs done{failed}, about {format_seconds(left)} left{under_way}"
