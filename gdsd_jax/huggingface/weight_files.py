"""The weight files of a model's folder: which they are, what each holds, and why others cannot be read."""

from collections.abc import Iterable
import json
from pathlib import Path
import re
from typing import NamedTuple

from safetensors import safe_open, SafetensorError

from gdsd_jax.checks import require
from gdsd_jax.huggingface.files import refuse_pointer

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")
_PACKED = re.compile(r"\.(qweight|qzeros|absmax|weight_scale\w*|weight_packed)$")
# What folders hold in place of safetensors -> what it is, and what helps.
_PICKLES = "pickles, which may run code when they are read"
_OTHERS = {
  "*.bin": _PICKLES, "*.pt": _PICKLES, "*.pth": _PICKLES, "*.ckpt": _PICKLES, "*.gguf": "of llama.cpp's format",
  "*.onnx": "an ONNX graph", "*.msgpack": "of Flax's old format", "*.h5": "of TensorFlow's format",
}


class Stored(NamedTuple):
  """Where a weight is, and what it is there."""

  file: Path
  shape: tuple[int, ...]
  dtype: str  # as safetensors calls it


def weight_files(path: Path) -> list[Path]:
  """The files that hold the weights of a model's folder. FileNotFoundError or ValueError, one line, without them."""
  index = _index(path)
  if index is not None:
    files = sorted({path / file for file in _weight_map(index).values()})
    for file in files:
      inside = file.parent == path and file.name != ".."
      require(inside, "model.path", f"{index} names {file}, which is no file of its folder")
      if not file.is_file():
        raise FileNotFoundError(f"model.path: weight file {file} is missing, though {index.name} names it")
    return files
  if (path / SINGLE).is_file():
    return [path / SINGLE]
  found = sorted(file for file in path.glob("[!.]*.safetensors") if not file.name.startswith("adapter_"))
  if not found:
    raise FileNotFoundError(f"model.path: {path} has neither {SINGLE} nor {INDEX}{_instead(path)}")
  _check_shards(path, found)
  return found


def stored_weights(path: Path) -> dict[str, Stored]:
  """Every weight of a folder by its name, from the headers of its files. Raises as `weight_files`."""
  index, found = _index(path), {}
  said = {} if index is None else _weight_map(index)
  for file in weight_files(path):
    refuse_pointer(file, "model.path")
    try:
      with safe_open(file, "np") as tensors:
        for name in tensors.keys():
          if name not in found or said.get(name) == file.name:  # where two files hold it, the one that the index names
            weight = tensors.get_slice(name)
            found[name] = Stored(file, tuple(weight.get_shape()), weight.get_dtype())
    except SafetensorError as error:
      raise ValueError(f"model.path: weight file {file} is damaged or truncated: {error}") from None
  return found


def lacks(path: Path, name: str, found: Iterable[str]) -> str:
  """Why a folder has no weight of this name, as far as its files tell."""
  index = _index(path)
  if index is not None and name in (names := _weight_map(index)):
    return f"{index} says that {names[name]} holds {name}, which it does not"
  near = next((other for other in found if other.endswith(f".{name}") or name.endswith(f".{other}")), None)
  packed = next((other for other in found if _PACKED.search(other)), None)
  hint = f"; it holds {near}, which was saved from within another module" if near else ""
  hint = f"; it holds {packed}, as quantised models do, which are not supported" if packed else hint
  return f"no weight file in {path} holds {name}{hint}"


def _index(path: Path) -> Path | None:
  if (path / INDEX).is_file() or (path / SINGLE).is_file():
    return path / INDEX if (path / INDEX).is_file() else None
  others = sorted(path.glob("[!.]*.safetensors.index.json"))
  require(len(others) < 2, "model.path", f"{path} has several indices of weights and none called {INDEX}:"
          f" {', '.join(file.name for file in others)}")
  return others[0] if others else None


def _weight_map(index: Path) -> dict[str, str]:
  refuse_pointer(index, "model.path")
  try:
    names = json.loads(index.read_text("utf-8"))["weight_map"]
    return {name: str(Path(file)) for name, file in names.items()}
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f"model.path: {index} is no index of weights: {error!r}") from None


def _check_shards(path: Path, files: list[Path]) -> None:
  """Files without an index must be one, or all the shards of one model."""
  if len(files) == 1 and not _SHARD.fullmatch(files[0].name):
    return
  shards = [_SHARD.fullmatch(file.name) for file in files]
  names = ", ".join(file.name for file in files[:4])
  of_one = all(shards) and len({(shard[1], shard[3]) for shard in shards}) == 1
  require(of_one, "model.path", f"{path} has several weight files, and no {INDEX} that tells what each holds: {names}")
  missing = sorted(set(range(1, int(shards[0][3]) + 1)) - {int(shard[2]) for shard in shards})
  if missing:
    said = f"{shards[0][1]}-{missing[0]:0{len(shards[0][2])}}-of-{shards[0][3]}.safetensors"
    raise FileNotFoundError(f"model.path: weight file {path / said} is missing, though there are {names}")


def _instead(path: Path) -> str:
  """What the folder holds in place of weights that can be read, and what helps."""
  if (path / "adapter_config.json").is_file():
    return "; it is a PEFT adapter, which model.lora.path takes, with its base model as model.path"
  for pattern, what in _OTHERS.items():
    if file := next(iter(sorted(path.glob(pattern))), None):
      return (f"; {file.name} is {what}, and not read: load it where you trust it, and write it again by"
              " save_pretrained(FOLDER, safe_serialization=True) of transformers")
  return ""
