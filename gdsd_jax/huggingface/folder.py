"""A model's folder: where its files are, and what its config.json says. Never remote code."""

from collections.abc import Mapping
import os
from pathlib import Path
import re
from typing import Any

from gdsd_jax.checks import require
from gdsd_jax.huggingface.families import FAMILIES, model_type_of
from gdsd_jax.huggingface.files import read_json_object
from gdsd_jax.huggingface.layouts import Layout
from gdsd_jax.huggingface.own_layout import layout_of, MODEL_TYPES
from gdsd_jax.huggingface.special_ids import told_by_tokenizer
from gdsd_jax.huggingface.stated import completed, hint, require_heeded, shown
from gdsd_jax.huggingface.weight_files import stored_weights
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.paths import expanded, scheme_of
from gdsd_jax.waiting import Wait, waiting

_ASSETS = Path(__file__).parents[1] / "models" / "assets"


# What a model's folder holds besides its weights and config.json. Code (*.py) is never copied.
_TOKENIZER_FILES = ("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
                    "chat_template.*", "generation_config.json")

_READ = ["*.json", "*.safetensors", "*.jinja", "*.txt"]  # of a repository of the hub's
# Its folders, such as checkpoint-500 or original, hold the model once more; only an adapter's base_model is read.
_UNREAD = ["[!b]*/*", "b[!a]*/*"]


def resolve_path(path_or_hub_name: str | os.PathLike, revision: str | None = None, field: str = "model.path") -> Path:
  """A local folder of a model or adapter: as given, an embedded model, or the hub's files, which are downloaded.

  Args:
    path_or_hub_name: folder, "tiny" or another embedded model, ORGANISATION/NAME of the hub's, or hf://ORGANISATION/NAME.
    revision: branch, tag or commit of the hub's; None for its latest.
    field: the config's, or a flag, for messages.

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
    with waiting(f"downloading {name}", unit="bytes") as wait:
      patterns = {"allow_patterns": _READ, "ignore_patterns": _UNREAD}
      options = {"revision": revision, "tqdm_class": _bars_of(wait), **patterns}
      return Path(huggingface_hub.snapshot_download(name, **options))
  except Exception as error:  # many kinds, all of them "not to be had": name, revision, network, permission
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    said = name if revision is None else f"{name} at {revision}"
    raise FileNotFoundError(f"{field}: {said!r} is no local folder, and the hub refused it: {reason}") from error


def _bars_of(wait: Wait):
  """The hub's library's bars: they show nothing, and tell how many bytes there are and have come."""
  from tqdm import tqdm  # the library's own

  class Bar(tqdm):

    def __init__(self, *arguments, **options):
      self.counts_bytes = options.get("unit") == "B"
      super().__init__(*arguments, **options | {"disable": True})

    def update(self, n=1):
      self.n += n or 0
      if self.counts_bytes:
        wait.done, wait.total = max(wait.done, self.n), max(wait.total or 0, self.total or 0)

  return Bar


def is_embedded(folder: Path) -> bool:
  """Whether it is one of this package's own models, which no other program knows by its name."""
  return folder.parent == _ASSETS


def hub_commit(folder: Path) -> str | None:
  """The commit of a folder that the hub's files were downloaded to; None for any other folder."""
  known = folder.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", folder.name)
  return folder.name if known else None


def tokenizer_files(folder: Path) -> list[Path]:
  """The files of a model's folder that come along with its weights: tokenizer, chat template, ends of text."""
  return sorted({file for pattern in _TOKENIZER_FILES for file in folder.glob(pattern)})


def load_config(path: Path, layout: str | None = None, stated: Mapping[str, int] | None = None) -> DenoiserConfig:
  """DenoiserConfig of a folder's config.json, by a layout of one's own (FILE.py:NAME) or that of its `model_type`.

  `stated` are fields that the file does not name, such as a `mask_token_id` (`stated.FIELDS`), and must not contradict
  it. Ids that neither has are those of the tokenizer's files where they tell them, and else the family's own.
  Where config.json leaves open whether the head is the embedding, the weights tell, if they are there. Raises
  ValueError or FileNotFoundError, naming the file.
  """
  file = path / "config.json"
  if is_adapter(path):
    raise FileNotFoundError(f"model.path: {file} is missing: {path} is a PEFT adapter, which model.lora.path takes,"
                            " with its base model as model.path")
  stated = stated or {}
  fields = read_json_object(file, "model.path")
  fields = completed(fields | told_by_tokenizer(path, fields), stated)
  config = _parsed(path, fields, layout, stated)
  require_heeded(config, stated, file)
  return config


def _parsed(path: Path, fields: dict[str, Any], layout: str | None, stated: Mapping[str, int]) -> DenoiserConfig:
  file = path / "config.json"
  if layout is not None:
    return layout_of(layout).parse_config(fields)
  family = model_type_of(fields)
  require(family or not isinstance(fields.get("model"), dict), "model.path", f"{path} is the folder of a run;"
          f" launch/export.py --workdir={path} --out=DIR makes a model of it")
  known = ", ".join(sorted(FAMILIES))
  require(family in MODEL_TYPES, "model.path", f"{file} has model_type {family!r}; known are {known};"
          " one of your own is named by model.layout")
  found = MODEL_TYPES[family]
  try:
    if all(fields.get(name) is None for name in ("weight_tying", "tie_word_embeddings")):
      fields["tie_word_embeddings"] = _lacks_head(path, found)
    return found.parse_config(fields)
  except KeyError as error:
    raise ValueError(f"model.path: {file} lacks the field {error}{hint(*error.args)}") from None
  except (TypeError, ValueError) as error:
    raise ValueError(f"model.path: {file}{shown(stated)}: {error}") from None


def is_adapter(folder: Path) -> bool:
  """Whether a folder holds a PEFT adapter, and no whole model."""
  return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def _lacks_head(path: Path, layout: Layout) -> bool:
  try:
    found = stored_weights(path)
  except (ValueError, OSError):  # told when the weights are read
    return False
  return not any(name in found for name in (layout.weight_names["head"], *layout.head_aliases))
