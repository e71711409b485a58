"""Compiled programs, kept on the disk: a second run of the same shapes starts without compiling."""

import contextlib
import hashlib
import logging
import os
from pathlib import Path
import platform
import time

import jax

from gdsd_jax.runs.files import cache_folder

_log = logging.getLogger(__name__)

_MAX_BYTES = 2 * 2**30
_MIN_SECONDS = 0.05  # what compiles faster than that is not worth a file
_WRITING_SECONDS = 600.0  # an unfinished entry that is older was left by a process that was killed


def use_compilation_cache() -> None:
  """Lets JAX keep what it compiles below `cache_folder()`; the least used goes first where that is over 2 GB.

  Where JAX_COMPILATION_CACHE_DIR is set, be it empty, or JAX_ENABLE_COMPILATION_CACHE is false, all is as they say. A
  folder that cannot be written is told of, and nothing is kept.
  """
  if "JAX_COMPILATION_CACHE_DIR" in os.environ or not jax.config.jax_enable_compilation_cache:
    return
  try:
    folder = cache_folder() / "compiled" / _machine()
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
      raise PermissionError(f"{folder} is read-only")
    _remove_unfinished(folder)
  except OSError as error:
    _log.info("compiled programs are not kept: %s; JAX_COMPILATION_CACHE_DIR names another folder", error)
    return
  settings = {"jax_compilation_cache_dir": str(folder), "jax_compilation_cache_max_size": _MAX_BYTES,
              "jax_persistent_cache_min_compile_time_secs": _MIN_SECONDS}
  for name, value in settings.items():
    if name.upper() not in os.environ:
      jax.config.update(name, value)


def _machine() -> str:
  """A name that machines share whose CPUs run the same code: a home may be mounted on several kinds of them."""
  flags = platform.processor()
  with contextlib.suppress(OSError):
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), flags)
  return f"{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"


def _remove_unfinished(folder: Path) -> None:
  """Entries that a killed process left half-written have no time of use, and JAX could write no others beside them."""
  for entry in folder.glob("*-cache"):
    used = entry.with_name(entry.name.removesuffix("-cache") + "-atime")
    if not used.exists() and time.time() - entry.stat().st_mtime > _WRITING_SECONDS:
      entry.unlink(missing_ok=True)
