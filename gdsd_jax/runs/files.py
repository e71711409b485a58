"""Files of a run that a kill at any instant leaves whole, in a local folder or on gs:// (etils.epath)."""

import importlib.util
import os
from pathlib import Path

from etils import epath


def is_remote(path: epath.PathLike) -> bool:
  """Whether a path is in an object store, which has no folders to make and no files to append to."""
  return "://" in os.fspath(epath.Path(path))


def check_workdir(path: epath.PathLike) -> None:
  """Raises ValueError unless a run's folder may be there: a local path or gs://BUCKET/…, with gcsfs installed."""
  if not is_remote(path):
    return
  if not os.fspath(epath.Path(path)).startswith("gs://"):
    raise ValueError(f"--workdir: {path} is neither a local folder nor gs://BUCKET/FOLDER")
  if importlib.util.find_spec("gcsfs") is None:
    raise ValueError(f"--workdir: {path} needs gcsfs, which is not installed; pip install 'gdsd_jax[gcs]'")


def local_folder(flag: str, value: str) -> Path:
  """The value of a flag as a local path. Raises ValueError for an object store's, of which it would make a folder."""
  if "://" in value:
    raise ValueError(f"{flag}: {value} must be a local folder")
  return Path(value)


def absolute(path: epath.PathLike) -> epath.Path:
  """The path from the root, as Orbax wants it."""
  path = epath.Path(path)
  return path if is_remote(path) else path.absolute()


def write_whole(path: epath.PathLike, content: str | bytes) -> None:
  """Writes a file that is there as it was or as it will be, at any instant."""
  path, content = epath.Path(path), content.encode() if isinstance(content, str) else content
  if is_remote(path):  # an object appears whole
    path.write_bytes(content)
    return
  replacement = path.with_name(f".{path.name}.incomplete")
  with replacement.open("wb") as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
  os.replace(replacement, path)


class LineFile:
  """A text file that grows by whole lines. What it is opened with replaces what was there."""

  def __init__(self, path: epath.PathLike, text: str = ""):
    self._path, self._text, self._file = epath.Path(path), text, None
    write_whole(path, text)
    if not is_remote(path):
      self._file = open(path, "a")

  def append(self, text: str) -> None:
    """Returns once it is on the disk, or in the object store (where the whole is written again)."""
    if self._file is None:
      self._text += text
      self._path.write_text(self._text)
      return
    self._file.write(text)
    self._file.flush()
    os.fsync(self._file.fileno())

  def close(self) -> None:
    if self._file is not None:
      self._file.close()
