"""What a process and all its descendants use, as /proc tells."""

from pathlib import Path
import resource


def exceeds(pid: int, processes: int, memory: int) -> bool:
  """Whether there are more than `processes` descendants, or their resident memory is more than `memory` bytes.

  The sandbox's own processes, at most three, come on top. Sees nothing where the kernel lists no children in /proc.
  """
  count, total, waiting = 0, 0, [pid]
  while waiting:
    pid = waiting.pop()
    waiting += _children(pid)
    total += _resident(pid)
    count += 1
    if count > processes + 3 or total > memory:
      return True
  return False


def _children(pid):
  try:
    tasks = [task / "children" for task in Path(f"/proc/{pid}/task").iterdir()]
    return [int(child) for task in tasks for child in task.read_text().split()]
  except OSError:  # it has ended meanwhile
    return []


def _resident(pid):
  try:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
  except OSError:  # it has ended meanwhile
    return 0
