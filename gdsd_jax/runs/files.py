"""Files of a run that a kill at any instant leaves whole, in a local folder or on gs:// (etils.epath)."""

from collections.abc import Callable
import contextlib
import errno
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

from etils import epath

from gdsd_jax.paths import expanded, local_path, scheme_of


def is_remote(path: epath.PathLike) -> bool:
  """Whether a path is in an object store, which has no folders to make and no files to append to."""
  return scheme_of(path) != ""


def check_workdir(path: epath.PathLike) -> None:
  """Raises ValueError unless a run's folder may be there: a local path or gs://BUCKET/…, with gcsfs installed."""
  if not is_remote(path):
    return
  if scheme_of(path) != "gs":
    raise ValueError(f"--workdir: {path} is neither a local folder nor gs://BUCKET/FOLDER")
  if importlib.util.find_spec("gcsfs") is None:
    raise ValueError(f"--workdir: {path} needs gcsfs, which is not installed; pip install 'gdsd_jax[gcs]'")


def run_folder(value: epath.PathLike, flag: str = "--workdir") -> epath.Path:
  """The folder of a run as users name it, here or on gs://. Raises ValueError as `expanded` and `check_workdir`."""
  text = expanded(value, flag)
  check_workdir(text)
  return epath.Path(text)


def require_folder(folder: epath.PathLike) -> None:
  """Raises OSError, one line, unless what --workdir names is a folder."""
  folder = epath.Path(folder)
  if folder.is_dir():
    return
  if folder.exists():
    raise NotADirectoryError(f"--workdir: {folder} is a file; name the folder of a run")
  raise FileNotFoundError(f"--workdir: {folder} does not exist")


def local_folder(flag: str, value: epath.PathLike) -> Path:
  """The value of a flag as a local path. Raises ValueError as `local_path`."""
  return local_path(value, flag)


def cache_folder() -> Path:
  """Where this package keeps what can be made again: XDG_CACHE_HOME/gdsd_jax, or ~/.cache/gdsd_jax.

  Raises FileNotFoundError where there is neither: in a container a user may have no home.
  """
  caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  if caches.startswith("~"):
    raise FileNotFoundError("there is no home folder; HOME or XDG_CACHE_HOME names one")
  return Path(caches) / "gdsd_jax"


def absolute(path: epath.PathLike) -> epath.Path:
  """The path from the root, as Orbax wants it."""
  path = epath.Path(path)
  return path if is_remote(path) else path.absolute()


def write_whole(path: epath.PathLike, content: str | bytes) -> None:
  """Writes a file that is there as it was or as it will be, at any instant. Raises OSError, which names it."""
  path, content = epath.Path(path), content.encode() if isinstance(content, str) else content
  with _named(path):
    if is_remote(path):  # an object appears whole
      path.write_bytes(content)
      return
    replacement = path.with_name(f".{path.name}.incomplete")
    try:
      with replacement.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
      os.replace(replacement, path)
    except OSError:
      replacement.unlink(missing_ok=True)
      raise


@contextlib.contextmanager
def _named(path: epath.Path):
  try:
    yield
  except OSError as error:
    full = " (is the disk full?)" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
    raise OSError(f"cannot write {path}{full}: {error.strerror or error}") from error


def _parse(line: bytes) -> Any:
  try:
    return json.loads(line)
  except ValueError as error:
    raise ValueError(f"not JSON: {error}") from None


def read_rows(path: epath.PathLike, parse: Callable[[bytes], Any] = _parse) -> list:
  """The rows of a file of JSON lines, none if it is missing; a last line without its end, left by a kill, is dropped.

  Args:
    path: the file.
    parse: from a line to its row; raises ValueError with what is wrong with it.

  Raises:
    ValueError: a line is damaged; the message names file and line.
  """
  path, rows = epath.Path(path), []
  lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
  for number, line in enumerate(lines, start=1):
    try:
      rows.append(parse(line))
    except ValueError as error:
      raise ValueError(f"{path}, line {number}: {error}") from None
  return rows


def step_row(line: bytes) -> dict[str, Any]:
  """A row of metrics.jsonl, for `read_rows`. Raises ValueError, with what to do, where it is none."""
  try:
    row = _parse(line)
  except ValueError as error:
    raise ValueError(f"{error}; delete that line") from None
  if not isinstance(row, dict) or type(row.get("step")) is not int:
    raise ValueError("no row of a run, which has its `step`; delete that line")
  return row


def add_lines(path: epath.Path, lines: str, whole: Callable[[], str]) -> None:
  """Adds lines to a file; returns once they are on the disk. Raises OSError, which names it.

  An object store knows no adding: there it becomes the `whole`, which has the lines at its end.
  """
  if is_remote(path):
    write_whole(path, whole())
    return
  with _named(path), path.open("a") as file:
    file.write(lines)
    file.flush()
    os.fsync(file.fileno())


class JsonLines:
  """A file of JSON values, one a line, that grows by whole lines.

  Attributes:
    rows: the values that the file holds, in order.
  """

  def __init__(self, path: epath.PathLike, keep: Callable[[Any], bool] = lambda row: True, parse=_parse):
    """Opens the file, made if it is missing, and drops the rows that are not to be kept. `parse` as in `read_rows`."""
    self._path, self.rows = epath.Path(path), [row for row in read_rows(path, parse) if keep(row)]
    write_whole(self._path, _lines(self.rows))

  def append(self, rows: list) -> None:
    """Adds rows; returns once they are on the disk, or in the object store."""
    add_lines(self._path, _lines(rows), lambda: _lines([*self.rows, *rows]))
    self.rows += rows


def _lines(rows: list) -> str:
  return "".join(json.dumps(row) + "\n" for row in rows)
