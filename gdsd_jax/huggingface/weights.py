"""Hugging Face folders in and out: config.json and (sharded) safetensors. Never pickles, never remote code.

Only what lies on this process's devices is read, a leaf at a time: host memory never holds two copies of the model.
"""

import dataclasses
import functools
import json
import math
from pathlib import Path
import shutil

from flax import traverse_util
import numpy as np
from safetensors import safe_open, SafetensorError
from safetensors.numpy import save_file

from gdsd_jax.checks import require
from gdsd_jax.huggingface.finite import require_finite
from gdsd_jax.huggingface.folder import load_config, resolve_path, tokenizer_files, written_whole
from gdsd_jax.huggingface.own_layout import layout_of
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.parallel.mesh import param_shardings
from gdsd_jax.parallel.rows import lay_out

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


def load_pretrained(path_or_hub_name, dtype: str = "float32", mesh=None, param_dtype: str | None = None,
                    remat: str = "none", layout: str | None = None, revision: str | None = None):
  """Loads (denoiser, params) from a Hugging Face folder or hub name.

  Args:
    path_or_hub_name: folder with config.json and safetensors, hub name, or "tiny", the embedded model.
    dtype: "float32" or "bfloat16", for matrix products and, unless `param_dtype` is given, for the parameters.
    mesh: `jax.sharding.Mesh` to lay the parameters over (`make_mesh`); None for the default device.
    param_dtype, remat: see `Denoiser`.
    layout: the files' own, FILE.py:NAME (docs/own.md); None for that of the `model_type` in config.json.
    revision: branch, tag or commit of a hub model; None for its latest.

  Raises:
    FileNotFoundError, ValueError: a file is missing, damaged or does not fit config.json, before anything is allocated;
      or a weight is not finite, which is known when it is read.
  """
  path = resolve_path(path_or_hub_name, revision)
  denoiser = Denoiser(load_config(path, layout), dtype, param_dtype or dtype, remat, mesh=mesh, source=str(path))
  return denoiser, load_weights(path, denoiser)


def load_weights(path: Path, denoiser: Denoiser):
  """Parameters of a denoiser's base model from a local folder, laid over its mesh. Raises as `load_pretrained`."""
  base = dataclasses.replace(denoiser, lora=None)
  abstract = traverse_util.flatten_dict(base.abstract_params(), sep=".")
  shardings = traverse_util.flatten_dict(param_shardings(base.mesh, base), sep=".")
  files, params = _check_files(path, base.config, abstract), {}
  for leaf, spec in abstract.items():
    weights = [(name, files[name]) for name in _weight_names(base.config, leaf)]
    params[leaf] = lay_out(spec.shape, shardings[leaf], functools.partial(_read_part, weights, leaf, spec))
  return traverse_util.unflatten_dict(params, sep=".")


def save_pretrained(path, denoiser: Denoiser, params, max_shard_bytes: int = 5 * 2**30, tokenizer=None) -> None:
  """Writes config.json and safetensors in the layout of the model's family; `load_pretrained` gives back every bit.

  The folder is made if it is missing, and a further weight file is begun at `max_shard_bytes`. A failed save leaves an
  earlier one whole. The tokenizer's files come along: those of the folder that the denoiser was loaded from, unless
  another `tokenizer` is given.

  Raises:
    ValueError: the layout has no place for the parameters' adapter, or for something in the config.
    OSError: one line naming the file, when it cannot be written (a full disk, say).
  """
  from huggingface_hub import split_state_dict_into_shards_factory  # no other command needs it when it starts

  if "lora" in params:
    raise ValueError("the parameters have an adapter: merge it (models.lora.merge), or save it by itself"
                     " (huggingface.adapters.save_adapter)")
  config, layout = denoiser.config, layout_of(denoiser.config.family)
  fields = layout.format_config(config, str(params["embedding"].dtype))
  read_back = layout.parse_config(fields)
  if lost := [name for name, value in vars(config).items() if getattr(read_back, name) != value]:
    raise ValueError(f"the layout of {config.family} has no place for this model's {', '.join(lost)}")
  leaves = traverse_util.flatten_dict(params, sep=".")
  places = {name: (leaf, layer) for leaf in leaves for layer, name in enumerate(_weight_names(config, leaf))}
  places = dict(sorted(places.items(), key=lambda item: (_is_stacked(item[1][0]), item[1][1])))  # layer by layer
  size = lambda place: leaves[place[0]].nbytes // (config.num_layers if _is_stacked(place[0]) else 1)
  split = split_state_dict_into_shards_factory(
    places, get_storage_size=size, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_bytes
  )

  def published(leaf: str, layer: int) -> np.ndarray:
    weight = np.asarray(leaves[leaf][layer] if _is_stacked(leaf) else leaves[leaf])
    return np.ascontiguousarray(_as_linear(leaf, weight))

  # The index is removed first: loading prefers it to the single file.
  stale = (_INDEX, "model*.safetensors", ".model*.incomplete")
  with written_whole(Path(path), "the model", stale) as temporary:
    for file, names in split.filename_to_tensors.items():
      save_file({name: published(*places[name]) for name in names}, temporary(file), metadata={"format": "pt"})
    if split.is_sharded:
      index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
      temporary(_INDEX).write_text(json.dumps(index, indent=2))
    temporary("config.json").write_text(json.dumps(fields, indent=2) + "\n")
    if tokenizer is not None:
      tokenizer.save_pretrained(path)
    elif denoiser.source is not None and Path(denoiser.source).resolve() != Path(path).resolve():
      for file in tokenizer_files(Path(denoiser.source)):
        shutil.copyfile(file, temporary(file.name))


def _is_stacked(leaf: str) -> bool:
  return leaf.startswith("blocks.")


def _weight_names(config: DenoiserConfig, leaf: str) -> list[str]:
  """The weights that a leaf is made of: one, or one of each layer."""
  layers = range(config.num_layers) if _is_stacked(leaf) else range(1)
  return [layout_of(config.family).weight_names[leaf].format(layer=layer) for layer in layers]


def _inputs(leaf: str) -> int:
  """Dimensions of a linear layer's input, here [in…, out…] and published as [out, in]; 0 for any other weight."""
  inputs = {"query": 1, "key": 1, "value": 1, "output": 2, "gate": 1, "up": 1, "down": 1, "head": 1}
  return inputs.get(leaf.rpartition(".")[2], 0)


def _groups(leaf: str, rank: int) -> tuple[slice, ...]:
  """The dimensions of a layer's weight that are one in the published weight, in the order that they have there."""
  if inputs := _inputs(leaf):
    return slice(inputs, rank), slice(inputs)
  return (slice(rank),) if leaf.endswith("_bias") else tuple(slice(i, i + 1) for i in range(rank))


def _linear_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  return tuple(math.prod(shape[group]) for group in _groups(leaf, len(shape)))


def _linear_index(leaf: str, shape: tuple[int, ...], index: tuple[slice, ...]) -> tuple[slice, ...]:
  """`index` into one layer's weight of this `shape` as slices of the published weight."""

  def joined(group: slice) -> slice:
    inner, first = math.prod(shape[group][1:]), index[group][0]  # only the first of the dimensions is ever split
    return slice(first.start * inner, first.stop * inner)

  return tuple(joined(group) for group in _groups(leaf, len(shape)))


def _as_linear(leaf: str, weight: np.ndarray) -> np.ndarray:
  """A view of one layer's weight in the published shape."""
  shape = _linear_shape(leaf, weight.shape)
  return weight.reshape(shape[::-1]).T if _inputs(leaf) else weight.reshape(shape)


def _read_part(weights: list[tuple[str, Path]], leaf: str, spec, index: tuple[slice, ...]) -> np.ndarray:
  """The part `index` of a leaf (slices with a start and a stop), in the leaf's dtype; nothing else is read."""
  part = np.empty([dimension.stop - dimension.start for dimension in index], spec.dtype)
  shape, rows = spec.shape, part[None]
  if _is_stacked(leaf):
    weights, shape, index, rows = weights[index[0]], shape[1:], index[1:], part
  for row, (name, file) in zip(rows, weights):
    with safe_open(file, "np") as tensors:
      _as_linear(leaf, row)[...] = tensors.get_slice(name)[_linear_index(leaf, shape, index)]
    require_finite(row, "model.path", f"{name} in {file}", may_be_zero=not _is_stacked(leaf) or not _inputs(leaf))
  return part


def weight_files(path: Path) -> list[Path]:
  """The files that hold the weights of a model's folder. Raises as `load_pretrained`."""
  index, files = path / _INDEX, [path / _SINGLE]
  if index.is_file():
    try:
      files = sorted({path / file for file in json.loads(index.read_text())["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise ValueError(f"model.path: {index} is no index of weights: {error!r}") from None
    for file in files:
      inside = file.parent == path and file.name != ".."
      require(inside, "model.path", f"{index} names {file}, which is no file of its folder")
  elif not files[0].is_file():
    raise FileNotFoundError(f"model.path: {path} has neither {_SINGLE} nor {_INDEX}")
  for file in files:
    if not file.is_file():
      raise FileNotFoundError(f"model.path: weight file {file} is missing, though {_INDEX} names it")
  return files


def _check_files(path: Path, config: DenoiserConfig, abstract) -> dict[str, Path]:
  """The file of each weight, after every header was read and every shape compared with config.json's."""
  where, found = {}, {}
  for file in weight_files(path):
    try:
      with safe_open(file, "np") as tensors:
        for name in tensors.keys():
          weight = tensors.get_slice(name)
          where[name], found[name] = file, (tuple(weight.get_shape()), weight.get_dtype())
    except SafetensorError as error:
      raise ValueError(f"model.path: weight file {file} is damaged or truncated: {error}") from None
  for leaf, spec in abstract.items():
    expected = _linear_shape(leaf, spec.shape[1:] if _is_stacked(leaf) else spec.shape)
    for name in _weight_names(config, leaf):
      require(name in where, "model.path", f"no weight file in {path} holds {name}")
      (shape, dtype), said = found[name], f"{name} in {where[name]}"
      require(dtype in ("F64", "F32", "F16", "BF16"), "model.path", f"{said} is {dtype}, no floating-point weight")
      require(shape == expected, "model.path", f"{said} has shape {shape}; config.json asks for {expected}")
  return where
