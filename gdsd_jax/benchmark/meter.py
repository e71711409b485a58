"""Seconds and memory of a piece of work, in the process that does nothing else (Linux)."""

from collections.abc import Callable
import ctypes
import gc
import os
from pathlib import Path
import time
from typing import Any, NamedTuple

PRODUCT_SIZE = {"cpu": 2048, "gpu": 8192, "tpu": 8192}  # width of the matrices whose product is the peak


class Memory(NamedTuple):
  """Where work has its memory: bytes held now, and the most that was held since `reset`."""

  reset: Callable[[], None]
  held: Callable[[], int]
  peak: Callable[[], int]


def process_memory() -> Memory:
  """Resident memory of this process, files that it maps among it.

  Read from /proc: in getrusage a process begins with the peak of the one that started it.
  """

  def reset():
    # What loading and compiling have freed, the C library keeps; PyTorch's side gives it back, too.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")

  status = lambda field: kilobytes("/proc/self/status", field) * 1024
  return Memory(reset, held=lambda: status("VmRSS"), peak=lambda: status("VmHWM"))


def kilobytes(file: str, field: str) -> int:
  """The number of a line "field:   123 kB"."""
  lines = dict(line.split(":", 1) for line in Path(file).read_text().splitlines() if ":" in line)
  return int(lines[field].split()[0])


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
  """(result, seconds) of work that returns when it is done."""
  started = time.perf_counter()
  result = work()
  return result, time.perf_counter() - started


def product_flops(size: int, product: Callable[[], Any]) -> float:
  """FLOP/s of a product of square matrices: the best of several."""
  seconds = [timed(product)[1] for _ in range(6)]
  return 2 * size**3 / min(seconds[1:])


def measured(work: Callable[[], Any], memory: Memory) -> tuple[Any, dict[str, float]]:
  """(result, numbers) of work that returns when it is done.

  Numbers: `seconds`; `cpu_seconds` of all threads; `bytes_before`, `bytes_peak`; `load`, the threads that wanted to run
  in the last minute, its own among them: where that exceeds the cores, seconds depend on what else runs.
  """
  memory.reset()
  before, cpu_before = memory.held(), time.process_time()
  result, seconds = timed(work)
  return result, {
    "seconds": seconds, "cpu_seconds": time.process_time() - cpu_before, "bytes_before": before,
    "bytes_peak": memory.peak(), "load": os.getloadavg()[0],
  }
