"""One command alone writes a folder at a time: the file .lock in it says who does.

A command that finds the lock taken is refused, unless the owner is dead. On the same machine the owner's process tells,
at once. On another one, or where the folder is in an object store, its heartbeat does: it writes the file again every
BEAT_SECONDS, and who sees it unchanged for TIMEOUT_SECONDS takes the lock over. Clocks are not compared, but for a
heartbeat from long ago, which is not watched any more.
"""

from collections.abc import Iterator
import contextlib
import datetime
import fcntl
import json
import logging
import os
from pathlib import Path
import socket
import threading
import time
from typing import Any
import uuid

from etils import epath

from gdsd_jax import signals
from gdsd_jax.parallel.processes import share_work
from gdsd_jax.runs.files import is_remote

_log = logging.getLogger(__name__)

NAME = ".lock"
BEAT_SECONDS = 10.0
TIMEOUT_SECONDS = 60.0
_LONG_AGO = 10 * TIMEOUT_SECONDS  # more than clocks differ
_DYING_SECONDS = 3.0  # a process that was killed is there for a moment
_STORE_SECONDS = 2.0  # within them two commands that write to an object store see each other

_held: dict[str, "Lock"] = {}  # of this process, by their folders


@contextlib.contextmanager
def locked(folder: epath.PathLike, field: str = "--workdir", alone: bool = False) -> Iterator["Lock"]:
  """Within `with`, no other process has the lock of the folder, which is made if it is missing.

  Of several processes of a run the first one holds it. Within one process the inner of two does nothing.

  Args:
    folder: a local folder, or gs://….
    field: what a message calls it.
    alone: whether this process calls it without the others of its run; else it is collective.

  Raises:
    BlockingIOError: another command has it; the line says which.
    OSError: the folder cannot be written.
  """
  name = os.fspath(folder) if is_remote(folder) else os.path.realpath(folder)
  if name in _held:
    yield _held[name]
    return
  lock = Lock(epath.Path(folder), field)
  lock.take() if alone else share_work(1, lambda _: [lock.take()])
  _held[name] = lock
  try:
    with signals.at_leaving(lock.release):
      yield lock
  finally:
    del _held[name]
    lock.release()


def check_free(folder: epath.PathLike, field: str = "--workdir") -> None:
  """Raises BlockingIOError where `locked` would at once. Collective; it takes nothing."""
  name = os.fspath(folder) if is_remote(folder) else os.path.realpath(folder)
  if name not in _held:
    share_work(1, lambda _: [Lock(epath.Path(folder), field).look()])


class Lock:
  """The lock of one folder, taken or not."""

  def __init__(self, folder: epath.Path, field: str):
    self._folder, self._field, self._path = folder, field, folder / NAME
    self._owner = {
      "host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid()), "machine": _machine(),
      "since": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC", "token": uuid.uuid4().hex,
    }
    self._taken, self._ended, self._lost = False, threading.Event(), None

  def look(self) -> None:
    """Raises BlockingIOError if a process of this machine has the lock, OSError if the file cannot be read."""
    try:
      owner = self._read()
    except OSError as error:
      raise OSError(f"{self._field}: cannot write to {self._folder}: {error}") from error
    if owner and _is_alive(owner):
      self._wait_for_death(owner)

  def check(self) -> None:
    """Raises BlockingIOError if another command has taken the lock from this one, which was silent for too long."""
    if self._lost:
      raise BlockingIOError(self._said(self._lost))

  def take(self) -> None:
    """Takes the lock, from a dead owner too, and begins the heartbeat. Raises as `locked`."""
    try:
      self._folder.mkdir(parents=True, exist_ok=True)
      while not self._try():
        pass
    except BlockingIOError:
      raise
    except OSError as error:
      raise OSError(f"{self._field}: cannot write to {self._folder}: {error}") from error
    self._taken = True
    threading.Thread(target=self._beat, name="lock", daemon=True).start()

  def release(self) -> None:
    """Lets go of the lock; nothing if it is not held."""
    self._ended.set()
    with contextlib.suppress(OSError), self._guarded():
      if self._taken and (self._read() or {}).get("token") == self._owner["token"]:
        self._path.unlink()
    self._taken = False

  def _try(self) -> bool:
    """Takes the lock where it is free, or its owner dead. False where another command was faster."""
    with self._guarded():
      owner = self._read()
      if owner is None:
        return self._claim()
    alive = _is_alive(owner)
    if alive:
      self._wait_for_death(owner)
    elif alive is None:
      self._watch(owner)
    with self._guarded():
      return self._read() == owner and self._claim()

  def _claim(self) -> bool:
    self._write()
    if is_remote(self._path):  # which has no guard: who wrote last has it
      time.sleep(_STORE_SECONDS)
      return (self._read() or {}).get("token") == self._owner["token"]
    return True

  def _wait_for_death(self, owner: dict[str, Any]) -> None:
    deadline = time.monotonic() + _DYING_SECONDS
    while _is_alive(owner):
      if time.monotonic() > deadline:
        raise BlockingIOError(self._said(owner))
      time.sleep(0.1)

  def _watch(self, owner: dict[str, Any]) -> None:
    """Returns when the heartbeat of an owner elsewhere has stopped."""
    if time.time() - owner.get("beat", 0.0) > _LONG_AGO:
      return
    _log.info("%s; watching for %.0f s whether it is alive", self._said(owner), TIMEOUT_SECONDS)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
      time.sleep(min(1.0, TIMEOUT_SECONDS / 10))
      now = self._read()
      if now is None:
        return
      if now != owner:
        raise BlockingIOError(self._said(now))

  def _beat(self) -> None:
    while not self._ended.wait(BEAT_SECONDS):
      with contextlib.suppress(OSError), self._guarded():  # it may be written the next time
        now = self._read()
        if self._ended.is_set():
          return
        if now is not None and now.get("token") != self._owner["token"]:
          self._lost = now
          return
        self._write()

  @contextlib.contextmanager
  def _guarded(self):
    """Within `with`, no other process of this machine reads or writes the file, nor of others where the disk knows how.

    The guard is that of the folder: the file itself comes and goes.
    """
    if is_remote(self._path):
      yield
      return
    descriptor = os.open(self._folder, os.O_RDONLY)
    try:
      with contextlib.suppress(OSError):  # some network file systems have none
        fcntl.flock(descriptor, fcntl.LOCK_EX)
      yield
    finally:
      os.close(descriptor)

  def _read(self) -> dict[str, Any] | None:
    """What the file says; None where there is none, what a kill has left of it, or something of another program."""
    try:
      owner = json.loads(self._path.read_text())
      ours = isinstance(owner, dict) and isinstance(owner.get("token"), str) and isinstance(owner.get("beat"), float)
      return owner if ours else None
    except (FileNotFoundError, ValueError):
      return None

  def _write(self) -> None:
    self._path.write_text(json.dumps({**self._owner, "beat": time.time()}))

  def _said(self, owner: dict[str, Any]) -> str:
    return (f"{self._field}: {self._folder} is in use by another command (process {owner.get('pid')} on"
            f" {owner.get('host')}, since {owner.get('since')}); wait for it or stop it, or choose another folder")


def _is_alive(owner: dict[str, Any]) -> bool | None:
  """Whether the owner's process is there; None where that cannot be seen from here."""
  if owner.get("machine") != _machine():
    return None
  try:
    dying = not Path(f"/proc/{owner['pid']}/cmdline").read_bytes()  # its memory is gone already
  except (OSError, KeyError):
    return False
  return not dying and _started(owner["pid"]) == owner.get("started")


def _started(pid: int) -> str | None:
  """When a process was started, in the machine's ticks: numbers of processes are used again."""
  with contextlib.suppress(OSError, IndexError):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
  return None


def _machine() -> str:
  """Where numbers of processes mean the same: this start of the machine, and the container."""
  with contextlib.suppress(OSError):
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
  return uuid.uuid4().hex
