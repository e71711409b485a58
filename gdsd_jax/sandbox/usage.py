"""What a process and all its descendants use, as /proc tells."""

import contextlib
import glob
import os
from pathlib import Path
import resource

_MAX_FILES = 5000


def exceeds(pid: int, processes: int, memory: int, disk: int) -> bool:
  """Whether there are more than `processes` descendants, their memory is more than `memory` bytes, or they have made
  thousands of files: their /tmp of `disk` bytes counts no bytes for empty ones.

  Memory is address space: what processes share stays allocated when none of them has it resident any more.
  The sandbox's own processes, at most three, come on top. Sees nothing where the kernel lists no children in /proc.
  """
  count, total, waiting = 0, 0, [pid]
  while waiting:
    pid = waiting.pop()
    waiting += [int(child) for task in glob.glob(f"/proc/{pid}/task/*/children") for child in _words(task)]
    total += resource.getpagesize() * int((_words(f"/proc/{pid}/statm") or [0])[0])
    count += 1
    if count > processes + 3 or total > memory or count == 2 and _files(pid, disk) > _MAX_FILES:
      return True
  return False


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
