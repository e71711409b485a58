"""Hugging Face folders in and out: config.json and (sharded) safetensors. Never pickles, never remote code.

Only what lies on this process's devices is read, a leaf at a time: host memory never holds two copies of the model.
"""

import dataclasses
import functools
import json
import logging
import math
from pathlib import Path

from flax import traverse_util
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from gdsd_jax import own_code
from gdsd_jax.checks import require, require_one_of
from gdsd_jax.huggingface.files import written_whole
from gdsd_jax.huggingface.finite import require_finite
from gdsd_jax.huggingface.folder import load_config, resolve_path
from gdsd_jax.huggingface.own_layout import layout_of, LAYOUTS
from gdsd_jax.huggingface.tokenizer_export import write_tokenizer
from gdsd_jax.huggingface.weight_files import INDEX, lacks, stored_weights
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.parallel.mesh import param_shardings
from gdsd_jax.parallel.rows import lay_out

_log = logging.getLogger(__name__)


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
  where, params = _find_weights(path, base.config, abstract), {}
  for leaf, spec in abstract.items():
    weights = [where[name] for name in _weight_names(base.config, leaf)]
    params[leaf] = lay_out(spec.shape, shardings[leaf], functools.partial(_read_part, weights, leaf, spec))
  return traverse_util.unflatten_dict(params, sep=".")


def save_pretrained(path, denoiser: Denoiser, params, max_shard_bytes: int = 5 * 2**30, tokenizer=None,
                    layout: str | None = None) -> None:
  """Writes config.json, safetensors and the tokenizer; `load_pretrained` gives back every bit.

  Args:
    path: folder, made if it is missing. A failed save leaves an earlier one whole.
    denoiser, params: the model, without an adapter.
    max_shard_bytes: where a further weight file is begun.
    tokenizer: whose files come along; by default that of the folder that the denoiser was loaded from.
    layout: "transformers" is a class of transformers' own, which `AutoModelForMaskedLM` opens with nothing asked;
      "published" that of the family's authors, for their code. None is that of the files it was loaded from.

  Raises:
    ValueError: the layout has no place for the parameters' adapter, or for something in the config.
    OSError: one line naming the file, when it cannot be written (a full disk, say).
  """
  from huggingface_hub import split_state_dict_into_shards_factory  # no other command needs it when it starts

  if "lora" in params:
    raise ValueError("the parameters have an adapter: merge it (models.lora.merge), or save it by itself"
                     " (huggingface.adapters.save_adapter)")
  config = denoiser.config
  if layout is not None:
    require_one_of("layout", layout, LAYOUTS)
    require(not own_code.is_own(config.family), "layout", f"the model has its own, {config.family}")
    config = dataclasses.replace(config, layout=layout)
  written = layout_of(config.family, config.layout)
  fields = written.format_config(config, str(params["embedding"].dtype))
  read_back = written.parse_config(fields)
  if lost := [name for name, value in vars(config).items() if getattr(read_back, name) != value]:
    raise ValueError(f"the layout of {config.family} has no place for this model's {', '.join(lost)}")
  leaves = traverse_util.flatten_dict(params, sep=".")
  places = {name: (leaf, layer) for leaf in leaves for layer, name in enumerate(_weight_names(config, leaf))}
  places = dict(sorted(places.items(), key=lambda item: (_is_stacked(item[1][0]), item[1][1])))  # layer by layer
  zeros = {name: np.zeros(size, params["embedding"].dtype) for name, size in written.zero_biases(config).items()}
  places |= {name: (name, 0) for name in zeros}
  size = lambda place: (zeros[place[0]].nbytes if place[0] in zeros else
                        leaves[place[0]].nbytes // (config.num_layers if _is_stacked(place[0]) else 1))
  split = split_state_dict_into_shards_factory(
    places, get_storage_size=size, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_bytes
  )

  def published(leaf: str, layer: int) -> np.ndarray:
    if leaf in zeros:
      return zeros[leaf]
    weight = np.asarray(leaves[leaf][layer] if _is_stacked(leaf) else leaves[leaf])
    return np.ascontiguousarray(_as_linear(leaf, weight))

  # The index is removed first: loading prefers it to the single file.
  stale = (INDEX, "model*.safetensors", ".model*.incomplete")
  with written_whole(Path(path), "the model", stale) as temporary:
    for file, names in split.filename_to_tensors.items():
      save_file({name: published(*places[name]) for name in names}, temporary(file), metadata={"format": "pt"})
    if split.is_sharded:
      index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
      temporary(INDEX).write_text(json.dumps(index, indent=2))
    temporary("config.json").write_text(json.dumps(fields, indent=2) + "\n")
    source = None if denoiser.source is None else Path(denoiser.source)
    if tokenizer is not None or source is not None and source.resolve() != Path(path).resolve():
      write_tokenizer(temporary, config, tokenizer, source)


def _is_stacked(leaf: str) -> bool:
  return leaf.startswith("blocks.")


def _weight_names(config: DenoiserConfig, leaf: str) -> list[str]:
  """The weights that a leaf is made of: one, or one of each layer."""
  layers = range(config.num_layers) if _is_stacked(leaf) else range(1)
  return [layout_of(config.family, config.layout).weight_names[leaf].format(layer=layer) for layer in layers]


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


def _find_weights(path: Path, config: DenoiserConfig, abstract) -> dict[str, tuple[str, Path]]:
  """Weight name -> (its name in the files, file), after every header was read and compared with config.json."""
  found, layout, where = stored_weights(path), layout_of(config.family, config.layout), {}
  for leaf, spec in abstract.items():
    expected = _linear_shape(leaf, spec.shape[1:] if _is_stacked(leaf) else spec.shape)
    is_head = leaf == "head" or leaf == "embedding" and config.tied_head
    for name in _weight_names(config, leaf):
      stored = next((other for other in (name, *layout.head_aliases * is_head) if other in found), None)
      if stored is None:
        raise ValueError(f"model.path: {lacks(path, name, found)}")
      file, shape, dtype = found[stored]
      said = f"{stored} in {file}"
      require(dtype in ("F64", "F32", "F16", "BF16"), "model.path", f"{said} is {dtype}, no floating-point weight")
      require(shape == expected, "model.path", f"{said} has shape {shape}; config.json asks for {expected}")
      where[name] = stored, file
  _check_others(path, config, layout, found, where)
  return where


def _check_others(path: Path, config: DenoiserConfig, layout, found, where) -> None:
  """Refuses weights that the published network would use and this one has no place for; warns of others."""
  used = {stored for stored, _ in where.values()}
  if config.tied_head:
    name, file = where[layout.weight_names["embedding"]]
    for other in (alias for alias in layout.head_aliases if alias in found and alias != name):
      same = found[other].shape == found[name].shape and _equal(file, name, found[other].file, other)
      require(same, "model.path", f"config.json says that the LM head is the embedding, but {other} in"
              f" {found[other].file} is another weight; set weight_tying or tie_word_embeddings to false to use it")
      used.add(other)
  for name in (name for name in layout.zero_biases(config) if name in found):
    with safe_open(found[name].file, "np") as tensors:
      zero = not np.any(tensors.get_tensor(name))
    require(zero, "model.path", f"{name} in {found[name].file} is not zero, and this network has no such bias")
    used.add(name)
  block = layout.weight_names["blocks.query"].partition("{layer}")[0]
  modules = {name.rpartition(".")[0] for name in where}
  others = [name for name in sorted(found.keys() - used) if not name.endswith((".inv_freq", ".masked_bias"))]
  if not own_code.is_own(config.family):
    for name in others:
      known = name.startswith(block) or name.rpartition(".")[0] in modules
      require(not known, "model.path", f"{found[name].file} holds {name}, which this network has no place for")
  if others:
    _log.warning("%s: weights that the network has no place for are left out: %s", path, ", ".join(others[:4]))


def _equal(file: Path, name: str, other_file: Path, other_name: str) -> bool:
  """Whether two matrices are the same, a part at a time."""
  with safe_open(file, "np") as tensors, safe_open(other_file, "np") as others:
    one, other = tensors.get_slice(name), others.get_slice(other_name)
    parts = (slice(start, start + 4096) for start in range(0, one.get_shape()[0], 4096))
    return all(np.array_equal(one[part], other[part]) for part in parts)
