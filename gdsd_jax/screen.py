"""Standard output: it may fail, and in a terminal its last line may come and go (`show_line`).

Where its reader has left (`| head`), the disk is full or it was closed, what a command writes to its files matters more
than what it says: it goes on without.
"""

from collections.abc import Iterator
import contextlib
import logging
import os
import re
import sys
import threading

from rich.cells import cell_len, set_cell_size

_COLUMNS = 80  # the width of a terminal that does not tell
_PATIENCE = 0.5  # seconds that a last word waits for a terminal that takes nothing
# Control characters but line ends and tabs, marks that turn the direction of what follows, and halves of characters.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_CLEAR = "\r\x1b[J"  # from the beginning of the line to the end of the screen: a resized terminal may have wrapped it

_lock = threading.RLock()  # guards all that is written, and what follows
_line = ""  # what is shown and goes away again
_terminal: "_Stream | None" = None  # where it is shown
_ended = False  # whether this process is about to leave
_at_start = True  # whether the last thing written ended its line


def take() -> None:
  """Makes standard output one that may fail, and opens standard streams that are closed. Call it before all else.

  A file that is opened while one of them is closed would get its number, by which libraries in C write to it.
  """
  for number, name in enumerate(("stdin", "stdout", "stderr")):
    try:
      os.fstat(number)
    except OSError:
      _to_nowhere(number)
      setattr(sys, name, open(number, "w" if number else "r", closefd=False))
  for stream in (sys.stdout, sys.stderr):
    if hasattr(stream, "reconfigure"):  # a program's own may lack it
      stream.reconfigure(errors="backslashreplace")  # no terminal lacks a sign so that a run ends of it
  sys.stdout = _Screen(sys.stdout)
  if _can_clear(sys.stderr):
    sys.stderr = _Stream(sys.stderr)  # before libraries keep it, whose warnings come between `show_line`'s


def harmless(text: str) -> str:
  r"""The text with all that a terminal would obey written out, an escape as \x1b."""
  return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def say(text: str, stream=None) -> None:
  """Prints a text in which there may be names that users or others gave, to standard output or `stream`."""
  print(harmless(text), file=stream, flush=True)


class HarmlessFormatter(logging.Formatter):
  """The message of a line of the log, `harmless`."""

  def format(self, record):
    return harmless(super().format(record))


def open_line() -> None:
  """Lets `show_line` show lines, if standard output is a terminal that can take one back."""
  global _terminal
  if _can_clear(sys.stdout):
    sys.stdout, sys.stderr = (stream if isinstance(stream, _Stream) else _Stream(stream)
                              for stream in (sys.stdout, sys.stderr))
    _terminal = sys.stdout


def has_line() -> bool:
  """Whether `show_line` shows anything."""
  return _terminal is not None


def show_line(beginning: str, end: str) -> None:
  """Shows `beginning` and `end` in the place of the line before, below all that was written; of a long one the end.

  Whatever is written takes it away first; who wants it to stay shows it again. Nothing is shown while a line that was
  begun, such as a question, has no end, and where there is no such terminal.
  """
  global _line
  with _lock:
    if _ended or not _at_start or _terminal is None:
      return
    text = _fitted(_printable(beginning), _printable(end), _columns() - 1)
    if text != _line:
      # At the end the cursor is where the line begins: whatever a library in C writes lies over it, not behind it.
      _line = text
      _put(f"{_CLEAR}{text}\r")


def clear_line() -> None:
  """Takes the line of `show_line` away."""
  global _line
  with _lock:
    if _line:
      _line = ""
      _put(_CLEAR)


def _put(text: str) -> None:
  with contextlib.suppress(OSError, ValueError):  # a terminal that is gone is told of by what must be written
    _terminal.put(text)


@contextlib.contextmanager
def cleared(leaving: bool = False) -> Iterator[None]:
  """No line is there within `with`, and if the process is `leaving`, none ever after; not even a stuck terminal waits.

  For what is written past Python's streams.
  """
  global _ended
  _ended |= leaving
  held = _lock.acquire(timeout=_PATIENCE)
  try:
    if held:
      clear_line()
    yield
  finally:
    if held:
      _lock.release()


def _to_nowhere(number: int) -> None:
  nowhere = os.open(os.devnull, os.O_RDWR)
  if nowhere != number:
    os.dup2(nowhere, number)
    os.close(nowhere)


def _can_clear(stream) -> bool:
  try:
    return stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
  except (AttributeError, ValueError):  # a program's own, or a closed one
    return False


def _columns() -> int:
  try:
    return os.get_terminal_size(_terminal.fileno()).columns or _COLUMNS
  except (OSError, ValueError):
    return _COLUMNS


def _printable(text: str) -> str:
  return "".join(sign if sign.isprintable() else "?" for sign in text)


def _fitted(beginning: str, end: str, columns: int) -> str:
  """Both in so many columns of a terminal, `beginning` cut first."""
  if cell_len(beginning + end) <= columns:
    return beginning + end
  try:
    more = "…"
    more.encode(_terminal.encoding or "ascii")
  except UnicodeError:
    more = "."
  room = columns - cell_len(end) - 1
  return set_cell_size(beginning, room).rstrip() + more + end if room > 0 else set_cell_size(end, max(columns, 0))


class _Stream:
  """A stream whose lines come out whole, and above the line of `show_line`."""

  def __init__(self, stream):
    self._stream = stream

  def __getattr__(self, name):
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    global _at_start
    with _lock:
      clear_line()
      self.put(text, flush=False)
      if text and _terminal is not None:
        _at_start = text.endswith("\n")
    return len(text)

  def writelines(self, lines) -> None:
    for line in lines:
      self.write(line)

  def put(self, text: str, flush: bool = True) -> None:
    """Writes it as it is."""
    self._stream.write(text)
    if flush:
      self.flush()

  def flush(self) -> None:
    self._stream.flush()


class _Screen(_Stream):
  """Standard output whose first failure is told on standard error; what comes after it goes nowhere."""

  def put(self, text: str, flush: bool = True) -> None:
    self._try(lambda: self._stream.write(text))
    if flush:
      self.flush()

  def flush(self) -> None:
    self._try(self._stream.flush)

  def _try(self, act) -> None:
    try:
      act()
    except OSError as error:
      _to_nowhere(self._stream.fileno())
      if not isinstance(error, BrokenPipeError):  # whoever closed it knows
        print(f"standard output cannot be written ({error.strerror}); nothing more is shown", file=sys.stderr)


def _in_fork() -> None:
  global _lock, _terminal
  _lock, _terminal = threading.RLock(), None  # another thread of the parent may have held it, who shows lines here


os.register_at_fork(after_in_child=_in_fork)
