"""Fingerprints of what a run is made of: of files by their content, of rows and source text as they were read."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent import futures
import contextlib
import hashlib
import json
import os
from pathlib import Path
import re
import time
from typing import Any

from gdsd_jax.runs.files import cache_folder, write_whole

_REMEMBERED_BYTES = 2**26  # smaller files are read again as fast as they are looked up
_SETTLED_SECONDS = 2.0  # a file that is younger may change once more within one tick of the file system's clock
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def of_files(files: Iterable[Path]) -> str:
  """SHA-256 of the names and contents of files.

  Whole contents, so that no change is missed. What that takes for a model of 16 GB, ten seconds or more, is paid once:
  large files are remembered by inode, size and the times of change, and the hub's cache names its files by their hash.
  """
  files = sorted(files)
  with futures.ThreadPoolExecutor(4) as threads:
    return of_text("\n".join(f"{file.name} {content}" for file, content in zip(files, threads.map(_content, files))))


def of_text(text: str) -> str:
  return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def of_rows(rows: Sequence[Any]) -> str:
  """SHA-256 of rows of data, in order: dicts of JSON values, or of anything else that tells what it is by its repr."""
  digest, many = hashlib.sha256(), 1000
  for start in range(0, len(rows), many):
    part = [rows[i] for i in range(start, min(start + many, len(rows)))]  # no slices: they may be any sequence
    try:
      text = json.dumps(part, default=_plain)
    except (TypeError, ValueError, RecursionError):  # keys that are no text, a circle
      text = _without_addresses(repr(part))
    digest.update(text.encode())
  return digest.hexdigest()


def _plain(value: Any) -> Any:
  """What JSON does not know, in its words."""
  if hasattr(value, "tolist"):  # arrays and their numbers, whose repr is cut short
    return value.tolist()
  if isinstance(value, Mapping):
    return dict(value)
  if isinstance(value, bytes):
    return value.hex()
  if isinstance(value, set | frozenset):
    return sorted(map(repr, value))
  return _without_addresses(repr(value))


def _without_addresses(text: str) -> str:
  return _ADDRESS.sub("", text)


def _content(file: Path) -> str:
  """SHA-256 of a file's content."""
  blob = file.resolve()
  if blob.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", blob.name):
    return blob.name  # as the hub's cache links its files
  status = file.stat()
  if status.st_size < _REMEMBERED_BYTES:
    return hashlib.sha256(file.read_bytes()).hexdigest()
  key = f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
  memory = None
  with contextlib.suppress(OSError):  # a home that is not there, or cannot be read, is no error
    memory = cache_folder() / "hashes" / of_text(f"{file.resolve()} {key}")[:32]
    return memory.read_text()
  began = time.time()
  with file.open("rb") as opened:
    content = hashlib.file_digest(opened, "sha256").hexdigest()
  if memory is not None and began - max(status.st_mtime, status.st_ctime) > _SETTLED_SECONDS:
    with contextlib.suppress(OSError):
      os.makedirs(memory.parent, exist_ok=True)
      write_whole(memory, content)
  return content
