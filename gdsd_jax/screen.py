"""Standard output that cannot be written any more: its reader has left (`| head`), the disk is full, it was closed.

What a command writes to its files matters more than what it says, so that it goes on without.
"""

import os
import sys


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


def _to_nowhere(number: int) -> None:
  nowhere = os.open(os.devnull, os.O_RDWR)
  if nowhere != number:
    os.dup2(nowhere, number)
    os.close(nowhere)


class _Screen:
  """A stream whose first failure is told on standard error; what comes after it goes nowhere."""

  def __init__(self, stream):
    self._stream = stream

  def __getattr__(self, name):
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    self._try(lambda: self._stream.write(text))
    return len(text)

  def flush(self) -> None:
    self._try(self._stream.flush)

  def _try(self, act) -> None:
    try:
      act()
    except OSError as error:
      _to_nowhere(self._stream.fileno())
      if not isinstance(error, BrokenPipeError):  # whoever closed it knows
        print(f"standard output cannot be written ({error.strerror}); nothing more is shown", file=sys.stderr)
