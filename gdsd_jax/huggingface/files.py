"""Single files of a model's or adapter's folder: refused where they are not what they seem, written whole."""

from collections.abc import Iterator
import contextlib
import json
import os
from pathlib import Path
import stat
from typing import Any

from safetensors import SafetensorError

from gdsd_jax import signals
from gdsd_jax.checks import LFS_POINTER, require


def refuse_pointer(file: Path, field: str) -> None:
  """Raises ValueError where Git has left a pointer in a large file's place; a file that is missing is no error."""
  with contextlib.suppress(OSError), file.open("rb") as opened:
    start = opened.read(len(LFS_POINTER))
    require(start != LFS_POINTER, field, f"{file} is a Git LFS pointer, not the file itself; run `git lfs pull` in its"
                                      " folder, or let huggingface_hub download the model")


def read_json_object(file: Path, field: str) -> dict[str, Any]:
  """The fields of a JSON file. Raises ValueError or FileNotFoundError, naming the config's `field` and the file."""
  refuse_pointer(file, field)
  try:
    fields = json.loads(file.read_text("utf-8-sig"))
  except FileNotFoundError:
    raise FileNotFoundError(f"{field}: {file} is missing") from None
  except OSError as error:
    raise OSError(f"{field}: {file} cannot be read: {error.strerror}") from None
  except ValueError as error:
    raise ValueError(f"{field}: {file} is not JSON: {error}") from None
  require(isinstance(fields, dict), field, f"{file} holds no JSON object")
  return fields


@contextlib.contextmanager
def written_whole(path: Path, what: str, stale: tuple[str, ...] = ()) -> Iterator:
  """Makes a folder, and yields a function from the name of one of its files to the path to write it at.

  The files move to their names at the end, so that a failed save changes nothing, and whoever may read a new file here
  may read them. Then the files of the `stale` patterns that were not written are removed, in this order. Raises
  OSError, one line naming the folder and `what`.
  """
  written = {}  # final path -> temporary path

  def temporary(name: str) -> Path:
    written[path / name] = path / f".{name}.incomplete"
    return written[path / name]

  def tidy_up():
    with contextlib.suppress(OSError):
      for incomplete in list(written.values()):
        incomplete.unlink(missing_ok=True)

  try:
    path.mkdir(parents=True, exist_ok=True)
    with signals.at_leaving(tidy_up):
      yield temporary
    mode = _mode_of_new_files(path)
    with signals.waiting():  # the files belong together
      for final, incomplete in written.items():
        incomplete.chmod(mode)  # safetensors makes files that only their owner may read
        os.replace(incomplete, final)
      for file in [file for pattern in stale for file in path.glob(pattern) if file not in written]:
        file.unlink(missing_ok=True)
  except (OSError, SafetensorError) as error:
    raise OSError(f"cannot save {what} to {path}: {error}") from error
  finally:
    tidy_up()


def _mode_of_new_files(folder: Path) -> int:
  """What the umask leaves, without touching it: other threads make files, too."""
  probe = folder / ".mode.incomplete"
  probe.touch()
  try:
    return stat.S_IMODE(probe.stat().st_mode)
  finally:
    probe.unlink(missing_ok=True)
