"""What a process and all its descendants use, as /proc tells."""

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
    waiting += _children(pid)
    total += _address_space(pid)
    count += 1
    if count > processes + 3 or total > memory or count == 2 and _files(pid, disk) > _MAX_FILES:
      return True
  return False


def _children(pid):
  try:
    tasks = [task / "children" for task in Path(f"/proc/{pid}/task").iterdir()]
    return [int(child) for task in tasks for child in task.read_text().split()]
  except OSError:  # it has ended meanwhile
    return []


def _address_space(pid):
  try:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
  except OSError:  # it has ended meanwhile
    return 0


def _files(pid, disk):
  try:
    found = os.statvfs(f"/proc/{pid}/root/tmp")
  except OSError:  # it has ended meanwhile
    return 0
  # Until the sandbox has its own root, this is the machine's /tmp.
  return found.f_files - found.f_ffree if found.f_blocks * found.f_frsize == disk else 0
