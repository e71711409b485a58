"""A model's folder: where its files are, and what its config.json says. Never remote code."""

from collections.abc import Iterator
import contextlib
import json
import os
from pathlib import Path
import re
from typing import Any

from safetensors import SafetensorError

from gdsd_jax.checks import require
from gdsd_jax.huggingface.layouts import FAMILIES
from gdsd_jax.huggingface.own_layout import layout_of
from gdsd_jax.models.config import DenoiserConfig

_ASSETS = Path(__file__).parents[1] / "models" / "assets"


def resolve_path(path_or_hub_name: str | os.PathLike) -> Path:
  """A local folder: as given, the embedded model for "tiny", or the hub's files (downloaded by huggingface_hub)."""
  path = Path(path_or_hub_name)
  if path.is_dir():
    return path
  name = os.fspath(path_or_hub_name)
  if (_ASSETS / name / "config.json").is_file():
    return _ASSETS / name
  if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or path.exists():
    raise FileNotFoundError(f"model.path: {name!r} is neither a folder nor a hub name (ORGANISATION/NAME)")
  import huggingface_hub  # its import and the network are only for hub names

  try:
    return Path(huggingface_hub.snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt"]))
  except Exception as error:  # many kinds, all of them "not to be had": name, network, permission
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise FileNotFoundError(f"model.path: {name!r} is no local folder, and the hub refused it: {reason}") from error


def read_json_object(file: Path, field: str) -> dict[str, Any]:
  """The fields of a JSON file. Raises ValueError or FileNotFoundError, naming the config's `field` and the file."""
  try:
    fields = json.loads(file.read_text())
  except FileNotFoundError:
    raise FileNotFoundError(f"{field}: {file} is missing") from None
  except ValueError as error:
    raise ValueError(f"{field}: {file} is not JSON: {error}") from None
  require(isinstance(fields, dict), field, f"{file} holds no JSON object")
  return fields


@contextlib.contextmanager
def written_whole(path: Path, what: str, stale: tuple[str, ...] = ()) -> Iterator:
  """Makes a folder, and yields a function from the name of one of its files to the path to write it at.

  The files move to their names at the end, so that a failed save changes nothing. Then the files of the `stale`
  patterns that were not written are removed, in this order. Raises OSError, one line naming the folder and `what`.
  """
  written = {}  # final path -> temporary path

  def temporary(name: str) -> Path:
    written[path / name] = path / f".{name}.incomplete"
    return written[path / name]

  try:
    path.mkdir(parents=True, exist_ok=True)
    yield temporary
    for final, incomplete in written.items():
      os.replace(incomplete, final)
    for file in [file for pattern in stale for file in path.glob(pattern) if file not in written]:
      file.unlink(missing_ok=True)
  except (OSError, SafetensorError) as error:
    raise OSError(f"cannot save {what} to {path}: {error}") from error
  finally:
    with contextlib.suppress(OSError):
      for incomplete in written.values():
        incomplete.unlink(missing_ok=True)


def load_config(path: Path, layout: str | None = None) -> DenoiserConfig:
  """DenoiserConfig of a folder's config.json, by a layout of one's own (FILE.py:NAME) or that of its `model_type`.

  Raises ValueError or FileNotFoundError, naming the file.
  """
  file = path / "config.json"
  fields = read_json_object(file, "model.path")
  if layout is not None:
    return layout_of(layout).parse_config(fields)
  family = str(fields.get("model_type", "")).lower()
  known = ", ".join(sorted(FAMILIES))
  require(family in FAMILIES, "model.path", f"{file} has model_type {family!r}; known are {known};"
          " one of your own is named by model.layout")
  try:
    return FAMILIES[family].parse_config(fields)
  except KeyError as error:
    raise ValueError(f"model.path: {file} lacks the field {error}") from None
  except (TypeError, ValueError) as error:
    raise ValueError(f"model.path: {file}: {error}") from None
