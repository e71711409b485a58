"""Ctrl-C (SIGINT) and SIGTERM end a command in one line, at any moment: at once, or when what it has done is saved.

Python runs handlers of signals in the main thread alone, between two of its instructions: not while XLA compiles for a
minute, and what a handler raises may be swallowed by a garbage collection or come out half-way through a save. So a
handler does nothing here. A thread reads which signals came and ends the process, which leaves the files as they are at
that instant: all of ours are whole at any. The first Ctrl-C waits for what has asked for it by `waiting`; another one
does not. SIGTERM counts as the first, however often it comes: a scheduler may send it to several processes that hand it
on to each other.
"""

import atexit
from collections.abc import Callable, Iterator
import contextlib
import ctypes
import os
import select
import signal
import sys
import threading
import time

from gdsd_jax import screen

START_AGAIN = 75  # exit status, EX_TEMPFAIL: the same command goes on where this one was

_PATIENCE = 2.0  # seconds before it is said what is waited for
_CLEANING = 2.0  # seconds that `at_leaving` may take in all
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_lock = threading.RLock()  # of all that follows
_line, _status = "asked to stop", None
_reader: int | None = None  # of the pipe that numbers of signals come through; None where they are not taken
_waiting: list[Callable[[], str | None]] = []
_leaving: list[Callable[[], None]] = []
_broken: list[Callable[[], None]] = []  # what the next Ctrl-C calls in place of ending the process, the last of them
_done: int | None = None  # exit status of a command that has nothing to do any more


def take(line: str, status: int | None = None) -> None:
  """Ends this process by these signals from now on, in the way of this module. Call it in the main thread.

  Args:
    line: what is told when it leaves, until `tell` says otherwise.
    status: exit status; None for 128 and the signal's number, as a shell has it.
  """
  global _line, _status, _reader
  _line, _status = line, status
  _reader, writer = os.pipe()
  os.set_blocking(writer, False)
  signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  for number in _SIGNALS:
    signal.signal(number, lambda *_: None)
    signal.siginterrupt(number, False)  # no library's reads and writes fail because of them
  threading.Thread(target=_watch, args=(_reader,), name="signals", daemon=True).start()
  atexit.register(_ignore)  # what is registered first is called last
  # What multiprocessing leaves behind, its tracker clears away, and would say so after our line.
  sys.warnoptions.append("ignore:resource_tracker")


def begin(
  stopped: str = "asked to stop before it was done", status: int | None = None, only_result: bool = False
) -> None:
  """The first that a command does, before imports that take seconds: `take`, and a word that it is there.

  Where standard output is to hold `only_result`, the word is for a terminal alone.
  """
  screen.take()
  take(stopped, status)
  if not only_result or sys.stdout.isatty():
    print("gdsd_jax: loading", flush=True)


def begin_run() -> None:
  """`begin` of a command that goes on where it was."""
  begin("asked to stop: nothing new to save; the same command goes on", START_AGAIN)


def taken() -> bool:
  """Whether this process has called `take`."""
  return _reader is not None


def take_again() -> None:
  """In a fork of a process that had called `take`: the child does as its parent did. By itself it does not."""
  take(_line, _status)


def tell(line: str) -> None:
  """What is told from now on when a signal ends this process."""
  global _line
  _line = line


@contextlib.contextmanager
def waiting(asked: Callable[[], str | None] = lambda: "asked to stop: a file is being written") -> Iterator[None]:
  """Within `with`, the first signal does not end the process, unless `asked` says so.

  Args:
    asked: called once, in another thread, when a signal comes. It returns a line that says what is waited for, or None
      where nothing is and the process is to leave at once, by the line of `tell`.
  """
  with _lock:
    _waiting.append(asked)
  try:
    yield
  finally:
    with _lock:
      _waiting.remove(asked)


@contextlib.contextmanager
def broken_by(act: Callable[[], None]) -> Iterator[None]:
  """Within `with`, the first Ctrl-C calls `act`, in another thread, and nothing else; another one ends the process.

  So it is anew for each `with`. SIGTERM ends the process as ever.
  """
  with _lock:
    _broken.append(act)
  try:
    yield
  finally:
    with _lock:
      if act in _broken:
        _broken.remove(act)


@contextlib.contextmanager
def at_leaving(act: Callable[[], None]) -> Iterator[None]:
  """Within `with`, a signal that ends the process calls `act` before, in another thread, for two seconds at most."""
  with _lock:
    _leaving.append(act)
  try:
    yield
  finally:
    with _lock:
      _leaving.remove(act)


class Noted:
  """Within `with`, the first signal is noted and does not end the process, unless `asked` says so: see `waiting`.

  In a user's own program, which has not called `take`, it never does, and another Ctrl-C does what it did before.
  """

  def __init__(self, asked: Callable[[], str | None]):
    self.came, self._asked = False, asked
    self._entered, self._previous = contextlib.ExitStack(), {}

  def __enter__(self):
    if taken():
      self._entered.enter_context(waiting(self._told))
    elif threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers
      self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
    return self

  def __exit__(self, *_):
    self._entered.close()
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    self._previous = {}

  def _told(self) -> str | None:
    self.came = True
    return self._asked()

  def _handle(self, number, _) -> None:
    if self.came and number == signal.SIGINT:
      signal.signal(number, self._previous.pop(number))
      os.kill(os.getpid(), number)
    self.came = True


def finish(status: int) -> None:
  """What was asked of the command is done: signals do not change its exit status any more."""
  global _done
  with _lock:
    _done = status


def leave(line: str, status: int) -> None:
  """Ends the process at once with a line on standard error, whatever its other threads are at."""
  with screen.cleared(leaving=True), contextlib.suppress(OSError):  # nobody reads any more
    os.write(2, f"{line}\n".encode() if line else b"")
  _in_time([sys.stdout.flush, *_leaving])
  os._exit(status)


def _in_time(acts: list[Callable[[], None]]) -> None:
  """Calls them side by side, and returns when they are done or the time is over: a lock or a network may hold one."""

  def call(act):
    with contextlib.suppress(Exception):
      act()

  threads = [threading.Thread(target=call, args=(act,), daemon=True) for act in acts]
  for thread in threads:
    thread.start()
  deadline = time.monotonic() + _CLEANING
  for thread in threads:
    thread.join(max(deadline - time.monotonic(), 0.0))


def _watch(reader: int) -> None:
  first, told = None, None  # the first signal, and what is said of it later
  while True:
    if told and not select.select([reader], [], [], _PATIENCE)[0]:
      with screen.cleared():
        os.write(1, f"{told}\n".encode())
      told = None
    number = os.read(reader, 1)[0]
    with _lock:
      if number not in _SIGNALS:  # another one that has a handler in Python
        continue
      if number == signal.SIGINT and _broken:
        _broken.pop()()
      elif first is None:
        first, told = number, _first(number)
      elif number == signal.SIGINT:
        _leave("stopped at once; files are whole, and what was not saved yet is lost" if _done is None else "", number)


def _first(number: int) -> str | None:
  if _done is not None:
    return None
  lines = [line for asked in _waiting if (line := asked())]
  if not lines:
    _leave(_line, number)
  return lines[-1]


def _leave(line: str, number: int) -> None:
  if _done is not None:
    leave(line, _done)
  leave(line, 128 + number if _status is None else _status)


def give_back(handler=signal.SIG_DFL) -> None:
  """These signals have nothing to do with this module any more: in this process `handler` is what they call."""
  global _reader
  _reader = None
  signal.set_wakeup_fd(-1)
  for number in _SIGNALS:
    signal.signal(number, handler)


def end_with_parent() -> None:
  """From now on this process is killed when the one that started it ends, however that ends."""
  ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG of Linux


@contextlib.contextmanager
def unheard() -> Iterator[None]:
  """Processes that are started within `with` never hear Ctrl-C, which a terminal sends to all, their parent too."""
  before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # which other threads still hear
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _in_fork() -> None:
  """A forked child dies of these signals as any program does: neither does it speak for its parent, nor wake it."""
  if taken():
    give_back()


def _ignore() -> None:
  """At the very end, when no thread of Python runs any more."""
  for number in _SIGNALS:
    signal.signal(number, signal.SIG_IGN)


os.register_at_fork(after_in_child=_in_fork)
