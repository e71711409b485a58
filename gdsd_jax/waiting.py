"""What is said while something takes long: how far it is, and how long it will take.

In a terminal that is one line which comes and goes (`screen.show_line`). Elsewhere it is a line of the log after ten
seconds, and again whenever the wait has lasted twice as long. Whoever does not see this package's log sees nothing;
of several processes that is all but the first.
"""

from collections.abc import Iterator
import contextlib
import logging
import os
import threading
import time

from gdsd_jax import screen

_log = logging.getLogger(__name__)

_TICK = 0.2  # seconds between looks at what is waited for
_FIRST_LINE = 0.4  # seconds, in a terminal: what is done sooner needs no word
_FIRST_LOGGED, _LONGEST_SILENCE = 10.0, 600.0
_SURE = 2.0  # seconds of work before there is a word on how long the rest will take
_UNITS = ("B", "kB", "MB", "GB", "TB")


class Clock:
  """Seconds that stand still for what no estimate is to count: `leave_out` is told of it when it is over."""

  def __init__(self):
    self.left_out = 0.0  # seconds so far
    self._lock, self._spans = threading.Lock(), []

  def __call__(self) -> float:
    return time.monotonic() - self.left_out

  def leave_out(self, seconds: float) -> None:
    """The last `seconds` do not count. What was within them, or overlaps, is left out once."""
    with self._lock:
      end = time.monotonic()
      start = end - seconds
      while self._spans and self._spans[-1][1] >= start:
        first, last = self._spans.pop()
        start, self.left_out = min(start, first), self.left_out - (last - first)
      self._spans.append((start, end))
      self.left_out += end - start


clock = Clock()  # all estimates go by it: it stands still while something is compiled


class Wait:
  """Something that is waited for, and how much of it is done."""

  def __init__(self, what: str, total: float | None, unit: str, logged_after: float, level: int = logging.INFO):
    self.what, self.total, self.unit, self.done = what, total, unit, 0.0
    self.began, self._worked = time.monotonic(), clock()
    self._due, self._said, self._level = logged_after, False, level
    self.start = 0.0  # what was done before
    self.left: float | None = None  # seconds, where somebody foresees them better than by the share that is done

  def advance(self, amount: float = 1) -> None:
    """So much more is done."""
    self.done += amount

  def end(self) -> str:
    """How far it is, behind what it is."""
    parts = []
    if self.total:
      parts.append(f": {_share(min(self.done, self.total), self.total, self.unit)}")
      worked = max(clock() - self._worked, 0.0)
      share = min((self.done - self.start) / max(self.total - self.start, 1e-9), 1.0)
      left = worked * (1 - share) / share if share > 0 and worked >= _SURE else None
      left = left if self.left is None else self.left
      parts.append("" if left is None else f", {format_seconds(left)} left")
    else:
      parts.append(f": {format_seconds(time.monotonic() - self.began)}")
    return "".join(parts)

  def look(self) -> bool:
    """Shows it, or logs it, if it is time to, and returns whether it was."""
    lasted = time.monotonic() - self.began
    if lasted < (_FIRST_LINE if screen.has_line() else self._due):
      return False
    if screen.has_line():
      screen.show_line(self.what, self.end())
    else:
      self._due, self._said = lasted + min(max(lasted, _FIRST_LOGGED), _LONGEST_SILENCE), True
      _log.log(self._level, "%s%s", self.what, self.end())
    return True

  def finish(self) -> None:
    """A last line in the log where there was one before, or where it took as long."""
    lasted = time.monotonic() - self.began
    if self._said or lasted >= _FIRST_LOGGED:
      _log.log(self._level, "%s: done in %s", self.what, format_seconds(lasted))


_waits: list[Wait] = []  # those within others behind them, which speak first
_changed = threading.Condition()
_watch: threading.Thread | None = None


@contextlib.contextmanager
def waiting(what: str, total: float | None = None, unit: str = "", logged_after: float = _FIRST_LOGGED,
            last_word: bool = True, level: int = logging.INFO) -> Iterator[Wait]:
  """Says `what` is waited for within `with`: how long it has been, or of a `total`, how much is done and what is left.

  Args:
    what: such as "reading weights of tiny".
    total: how much there is to do; `advance` of what this yields tells of it as it is done.
    unit: what is counted: "bytes", or a plural such as "batches"; "" for a share.
    logged_after: seconds before the first line where there is no terminal; infinite for a terminal alone.
    last_word: whether the log has a line at the end of a long wait; nothing is said of one that ends by an error.
    level: that of the log's lines. Where it is not asked for these, nothing is said.
  """
  wait = Wait(what, total, unit, logged_after, level)
  if not _log.isEnabledFor(level):
    yield wait
    return
  _enter(wait)
  try:
    yield wait
  finally:
    with _changed:
      _waits.remove(wait)
      if not _waits:
        screen.clear_line()
  if last_word:
    wait.finish()


def _enter(wait: Wait) -> None:
  global _watch
  with _changed:
    _waits.append(wait)
    if _watch is None:
      _watch = threading.Thread(target=_look_now_and_then, name="waiting", daemon=True)
      _watch.start()
    _changed.notify()


def _look_now_and_then() -> None:
  while True:
    with _changed:
      _changed.wait_for(lambda: _waits)
      any(wait.look() for wait in reversed(_waits))
    time.sleep(_TICK)


def format_seconds(seconds: float) -> str:
  """42 -> "42 s", 272 -> "4m32s", 3725 -> "1h02m"."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s" if minutes else f"{seconds} s"


def _share(done: float, total: float, unit: str) -> str:
  """ "5.2 of 16.1 GB", "3 of 9 batches", "33 %"."""
  if unit == "bytes":
    power = next((i for i, _ in enumerate(_UNITS) if total < 1000**(i + 1)), len(_UNITS) - 1)
    return f"{done / 1000**power:.1f} of {total / 1000**power:.1f} {_UNITS[power]}"
  return f"{round(done)} of {round(total)} {unit}" if unit else f"{100 * done / total:.0f} %"


def _in_fork() -> None:
  """A forked child has no other thread, and waits for nothing yet."""
  global _watch, _changed
  _watch, _changed = None, threading.Condition()
  _waits.clear()


os.register_at_fork(after_in_child=_in_fork)
