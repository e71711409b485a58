"""The files that a path, folder or pattern names, here or in an object store, and the rows in them.

Errors are one line that begins with the file: ValueError where it is damaged, OSError where it cannot be read.
"""

from collections.abc import Iterator, Sequence
import contextlib
import fnmatch
import gzip
import importlib.util
import os
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import fsspec

from gdsd_jax.checks import LFS_POINTER
from gdsd_jax.tasks.network import check_network
from gdsd_jax.tasks.row_readers import entries, Entry, FILE_KINDS, first_line, kind_of, lacks
from gdsd_jax.tasks.splits import parse_split, speaks_of, Split, split_in

KNOWN = f"{', '.join(FILE_KINDS)} (.gz behind it or not)"
# What `datasets` and TFDS write beside rows: what tells of them, and results of `map`, which hold rows of others.
_BESIDE_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "features.json",
                "cache-*.arrow")
# Scheme -> the package that reads it, and the extra that brings that along.
_PACKAGES = {
  "s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs"),
  "http": ("aiohttp", "hub"), "https": ("aiohttp", "hub"),
}


class _RowFile(NamedTuple):
  system: fsspec.AbstractFileSystem
  path: str  # as the file system has it
  shown: str  # as messages have it

  @property
  def name(self) -> str:
    return _name(self.path)


def divided(source: str) -> tuple[str, str]:
  """(path or name, split) of a source. What ends as files of rows do is a path, with any `#` that is in it."""
  path, mark, split = source.rpartition("#")
  return (path, split) if mark and not kind_of(source) else (source, "")


def open_files(source: str) -> list[Entry] | None:
  """The rows of the files that a source names, those of its split alone.

  None where it names no files but may name a dataset, as may a folder without any, and as does glue/sst2:1.*.* of TFDS.
  """
  path, text = divided(source)
  files, named_by = _named_files(path)
  if not files:
    if named_by == "folder" and (inside := _folders_with_rows(path)):
      raise ValueError(f"{path}: it holds no rows itself, but its folders {', '.join(inside)} do; name one of them")
    if "://" not in path and not kind_of(path):
      return None
    raise OSError(f"{path}: there is no file that ends in {KNOWN}")
  split = parse_split(text, source)
  return split.of([entry for file in _of_split(files, split, named_by) for entry in _read(file)])


def _named_files(path: str) -> tuple[list[_RowFile], str]:
  """The files of known kinds that a path names, in order, and what it is: "file", "folder", "pattern" or "name"."""
  scheme = path.partition("://")[0] if "://" in path else ""
  system, on_the_web = _file_system(path, scheme), scheme in ("http", "https")
  try:
    if on_the_web or kind_of(path) and (not _is_pattern(path) or system.exists(path)):
      return [_RowFile(system, path, path)] if kind_of(_name(path)) else [], "file"
    if _is_pattern(path):
      named_by, paths = "pattern", system.glob(path)
    elif path and system.isdir(path):
      listed = system.ls(path, detail=True)
      named_by, paths = "folder", [item["name"] for item in listed if item["type"] != "directory"]
    else:
      return [], "name"
  except Exception as error:  # file systems raise nearly everything
    raise _unreadable(path, error) from error
  paths = sorted(path for path in paths if _holds_rows(_name(path)))
  return [_RowFile(system, path, system.unstrip_protocol(path) if scheme else path) for path in paths], named_by


def _holds_rows(name):
  beside = name.startswith(".") or any(fnmatch.fnmatch(name, pattern) for pattern in _BESIDE_ROWS)
  return kind_of(name) is not None and not beside


def _folders_with_rows(path):
  """Names of the folders in a local one that hold files of rows, as those of a repository of the hub's may."""
  with contextlib.suppress(OSError):
    folders = (folder for folder in Path(path).expanduser().iterdir() if folder.is_dir())
    return sorted(folder.name for folder in folders if any(_holds_rows(file.name) for file in folder.iterdir()))
  return []


def _file_system(path, scheme):
  package, extra = _PACKAGES.get(scheme, ("fsspec", None))
  if importlib.util.find_spec(package) is None:
    raise OSError(f"{path}: {scheme}:// needs {package}, which is not installed; pip install 'gdsd_jax[{extra}]'")
  try:
    if package == "gcsfs":
      host = os.environ.get("STORAGE_EMULATOR_HOST") or "https://storage.googleapis.com"
      check_network(host if "://" in host else f"http://{host}")
    return fsspec.core.url_to_fs(path)[0] if scheme else fsspec.filesystem("file")
  except Exception as error:  # whatever a file system lacks, such as credentials
    raise _unreadable(path, error) from error


def _is_pattern(path):
  return any(sign in path for sign in "*?[")


def _name(path):
  """The last part of a path, without the query that an address may end in."""
  return PurePosixPath(path.partition("?")[0] if path.startswith("http") else path).name


def _of_split(files: Sequence[_RowFile], split: Split, named_by: str) -> Sequence[_RowFile]:
  """The files whose names say the split. Where none says any, all are the split train; a single file always is."""
  said = sorted({split_in(file.name) for file in files} - {None})
  if not split.name:
    if named_by == "folder" and len(said) > 1:
      raise ValueError(f"{split.source}: say which split after #: {', '.join(said)}")
    return files
  found = [file for file in files if speaks_of(file.name, split.name)]
  if not found and split.name == "train" and (named_by == "file" or not said):
    return files
  if not found:
    raise ValueError(f"{split.source}: no split {split.name!r}, there is {', '.join(said) or 'train'}")
  return found


def _read(file: _RowFile) -> Iterator[Entry]:
  kind = kind_of(file.name)
  if package := lacks(kind):
    raise OSError(f"{file.shown} needs {package}, which is not installed; pip install 'gdsd_jax[hub]'")
  try:
    data = file.system.cat_file(file.path)
    if data.startswith(LFS_POINTER):
      raise OSError("it is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder")
    data = gzip.decompress(data) if file.name.lower().endswith(".gz") else data
  except Exception as error:  # file systems raise nearly everything, and so do damaged archives
    raise _unreadable(file.shown, error) from error
  try:
    for place, make in entries(kind, data):
      yield f"{file.shown}, {place}", make
  except ValueError as error:
    raise ValueError(f"{file.shown}, {error}") from error


def _unreadable(path, error):
  reason = getattr(error, "strerror", None) or ("no such file" if isinstance(error, FileNotFoundError) else None)
  return OSError(f"cannot read {path}: {reason or first_line(error)}")
