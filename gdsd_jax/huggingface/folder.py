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
from gdsd_jax.paths import expanded, scheme_of

_ASSETS = Path(__file__).parents[1] / "models" / "assets"


# What a model's folder holds besides its weights and config.json. Code (*.py) is never copied.
_TOKENIZER_FILES = ("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
                    "chat_template.*", "generation_config.json")


def resolve_path(path_or_hub_name: str | os.PathLike, revision: str | None = None, field: str = "model.path") -> Path:
  """A local folder of a model or adapter: as given, an embedded model, or the hub's files, which are downloaded.

  Args:
    path_or_hub_name: folder, "tiny" or another embedded model, ORGANISATION/NAME of the hub's, or hf://ORGANISATION/NAME.
    revision: branch, tag or commit of the hub's; None for its latest.
    field: of the config, or a flag, for messages.

  Raises FileNotFoundError or ValueError, one line that begins with the field.
  """
  name = expanded(path_or_hub_name, field).removeprefix("hf://")
  scheme, path = scheme_of(name), Path(name)
  if scheme in ("gs", "gcs", "s3", "s3a"):
    raise ValueError(f"{field}: {name} is in an object store; copy it to a folder of every machine first")
  local = None if scheme else next((folder for folder in (path, _ASSETS / name) if folder.is_dir()), None)
  if local is not None and (local == path or (local / "config.json").is_file()):
    require(revision is None, "model.revision", f"only models of the hub have one; {name} is a local folder")
    return local
  if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith(".") or path.exists():
    raise FileNotFoundError(f"{field}: {name!r} is neither a folder nor a hub name (ORGANISATION/NAME)")
  import huggingface_hub  # its import and the network are only for hub names

  try:
    kinds = ["*.json", "*.safetensors", "*.jinja", "*.txt"]
    return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=kinds))
  except Exception as error:  # many kinds, all of them "not to be had": name, revision, network, permission
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    said = name if revision is None else f"{name} at {revision}"
    raise FileNotFoundError(f"{field}: {said!r} is no local folder, and the hub refused it: {reason}") from error


def hub_commit(folder: Path) -> str | None:
  """The commit of a folder that the hub's files were downloaded to; None for any other folder."""
  known = folder.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", folder.name)
  return folder.name if known else None


def tokenizer_files(folder: Path) -> list[Path]:
  """The files of a model's folder that come along with its weights: tokenizer, chat template, ends of text."""
  return sorted({file for pattern in _TOKENIZER_FILES for file in folder.glob(pattern)})


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
