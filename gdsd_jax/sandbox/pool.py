"""Runs untrusted programs against their tests, many at a time."""

from collections.abc import Sequence
import concurrent.futures
import contextlib
import dataclasses
import functools
import glob
import math
import os
from pathlib import Path
import re
import resource
import select
import shutil
import signal
import socket
import sys
import time

from gdsd_jax.sandbox import bubblewrap

_WATCH_SECONDS, _CLOCK_SECONDS = 0.1, 0.5
_OWN_MEMORY = 64 * 2**20  # bytes, address space of a sandbox's own processes
_MAX_FILES = 5000
_TICKS = os.sysconf("SC_CLK_TCK")  # a second
_RESTRICTION = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"  # Ubuntu's from 23.10 on, where it is 1
MAX_TEXT = 4 * 2**20  # bytes of what a script reads or prints: both lie in the sandbox's /tmp, and cross in one message
_IMPORT = re.compile(r"^[ \t]*(?:from|import)[ \t]+([A-Za-z_][A-Za-z_0-9]*)", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class ScriptTest:
  """Passes when the program, run as a script that reads `stdin`, ends well and has printed `stdout`.

  White space at the ends of lines, and lines without anything else at the end, do not count.
  """

  stdin: str  # at most MAX_TEXT bytes, like the other
  stdout: str


@dataclasses.dataclass(frozen=True)
class Program:
  """A program and what is to be tested of it."""

  source: str
  # Python code, each of which passes when it runs through, whose free names are the program's; or what a script does.
  tests: tuple[str | ScriptTest, ...]
  setup: str = ""  # Python code that runs before every test of code
  names: tuple[str, ...] = ()  # what the program is known to define; only needed for names of Python's, such as `sum`
  # Which of them are classes, whose objects may say what plain data they equal; None for what the tests treat as one.
  classes: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What became of a program: whether it is Python, and for each test whether it passed."""

  syntax: bool
  passed: tuple[bool, ...]


def check_available() -> None:
  """Raises RuntimeError, in one line that says what to do, where programs cannot be run in bubblewrap."""
  _drops_user()


def run(programs: Sequence[Program], limits: bubblewrap.Limits, workers: int | None = None) -> list[Verdict]:
  """The verdict on each program, run against its tests within the limits.

  `workers` programs run at a time; None for one for each CPU. RuntimeError where none can run, see `check_available`.
  """
  drop_user = _drops_user()
  workers = max(1, min(workers or len(os.sched_getaffinity(0)), len(programs)))
  with concurrent.futures.ThreadPoolExecutor(workers) as executor:
    return list(executor.map(lambda program: _run(program, limits, drop_user)[0], programs))


@functools.lru_cache(maxsize=1)
def _drops_user():
  """Whether sandboxes become another user; one is tried to find out."""
  if shutil.which("bwrap") is None:
    raise RuntimeError("programs run in bubblewrap, which is not here: install the Debian package bubblewrap "
                       "(apt-get install bubblewrap)")
  program = Program("def one(): return 1", ("assert one() == 1",))
  for drop_user in ([True, False] if os.geteuid() == 0 else [False]):
    verdict, said = _run(program, bubblewrap.Limits(), drop_user, explain=True)
    if verdict == Verdict(True, (True,)):
      return drop_user
  said = said.splitlines()[-1] if said else "it gave no reason"
  by = " (sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0)" if _words(_RESTRICTION) == ["1"] else ""
  raise RuntimeError(f"programs run in bubblewrap, which cannot start here ({said}): allow unprivileged user "
                     f"namespaces{by}, or run as root with CAP_SYS_ADMIN")


def _run(program, limits, drop_user, explain=False):
  """Starts judge and program, each in a sandbox, joined by one socket; returns (verdict, what the sandboxes said)."""
  imports = sorted(set(_IMPORT.findall(program.source)) & sys.stdlib_module_names - {"this", "antigravity"})
  for_judge, for_candidate = socket.socketpair()
  reader, writer = (open(end, mode, buffering=0) for end, mode in zip(os.pipe(), ("rb", "wb")))
  processes = []
  with for_judge, for_candidate, reader, writer:
    try:
      processes.append(bubblewrap.start("candidate", {
        "control": for_candidate.fileno(), "source": program.source, "imports": imports,
        "cpu_seconds": math.ceil(limits.test_seconds), "explain": explain,
      }, limits, (for_candidate.fileno(),), drop_user))
      processes.append(bubblewrap.start("judge", {
        "control": for_judge.fileno(), "verdict": writer.fileno(), **dataclasses.asdict(program),
        "wall_seconds": 2.0 * limits.test_seconds, "explain": explain,
      }, limits, (for_judge.fileno(), writer.fileno()), drop_user))
      writer.close()
      marks = _read_marks(reader, 1 + len(program.tests), limits, [process.pid for process in processes])
    finally:
      for process in processes:
        process.kill()
      said = [(process.communicate()[1] or b"").decode(errors="replace").strip() for process in processes]
  marks = [mark == ord("1") for mark in marks.ljust(1 + len(program.tests), b"0")]
  return Verdict(marks[0], tuple(marks[1:])), "\n".join(filter(None, said))


def _read_marks(reader, count, limits, pids):
  """Reads the judge's bytes until they are all there, the time is up, or the program takes more than its share."""
  marks, memory = b"", limits.memory_mb * 2**20 + _OWN_MEMORY
  clocks = [Clock(pid) for pid in pids]
  start = watched = timed = time.monotonic()
  while len(marks) < count and (left := start + limits.program_seconds - time.monotonic()) > 0:
    if select.select([reader], [], [], min(_WATCH_SECONDS, left))[0]:
      data = reader.read(count - len(marks))
      if not data:
        break
      marks += data
      for clock in clocks:
        clock.start = clock.last
    if time.monotonic() - watched >= _WATCH_SECONDS:
      if any(exceeds(pid, limits.processes, memory, limits.file_mb * 2**20) for pid in pids):
        break
      watched = time.monotonic()
      if watched - timed >= _CLOCK_SECONDS:
        for clock in clocks:
          if clock.read() - clock.start > math.ceil(limits.test_seconds) + 1:
            clock.end()
        timed = watched
  return marks


class Clock:
  """The CPU time of all processes of a sandbox together, of which each has a limit of its own as well.

  Short-lived ones whose parent did not wait for them count as far as they were seen: the time of the wall limits them.
  """

  def __init__(self, pid: int):
    self._pid = pid
    self._seen = {}  # (pid, when it started) -> seconds
    self.start = self.last = 0.0  # seconds at the last test's end, and when they were last read

  def read(self) -> float:
    """Seconds that the processes below `pid` have taken so far."""
    waited = 0.0
    for pid in _tree(self._pid):
      with contextlib.suppress(OSError):  # its process has ended meanwhile
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        own, children = (sum(map(int, fields[i:i + 2])) / _TICKS for i in (11, 13))
        self._seen[pid, fields[19]] = own
        waited += own + children  # of those that have ended, their parent has the time
    self.last = max(self.last, waited, sum(self._seen.values()))
    return self.last

  def end(self) -> None:
    """Ends the processes of the present test: those below the three that a sandbox has of its own."""
    for pid in _tree(self._pid)[3:]:
      with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)


def exceeds(pid: int, processes: int, memory: int, disk: int) -> bool:
  """Whether a process has more than `processes` descendants, of more than `memory` bytes together, or very many files.

  Files count because their /tmp of `disk` bytes takes no bytes for empty ones. Memory is address space: what processes
  share stays allocated when none of them has it resident any more. The sandbox's own processes, at most four, come on
  top. Sees nothing where the kernel lists no children in /proc.
  """
  count, total = 0, 0
  for found in _tree(pid, processes + 4):
    total += resource.getpagesize() * int((_words(f"/proc/{found}/statm") or [0])[0])
    count += 1
    if count > processes + 4 or total > memory or count == 2 and _files(found, disk) > _MAX_FILES:
      return True
  return False


def _tree(pid, more=math.inf):
  """A process and those below it, the nearest first: at most one more than `more`."""
  found = [pid]
  for pid in found:
    if len(found) <= more:
      found += [int(child) for task in glob.glob(f"/proc/{pid}/task/*/children") for child in _words(task)]
  return found


def _words(file):
  with contextlib.suppress(OSError):  # its process has ended meanwhile
    return Path(file).read_text().split()
  return []


def _files(pid, disk):
  with contextlib.suppress(OSError):
    found = os.statvfs(f"/proc/{pid}/root/tmp")
    if found.f_blocks * found.f_frsize == disk:  # until the sandbox has its own root, this is the machine's /tmp
      return found.f_files - found.f_ffree
  return 0
