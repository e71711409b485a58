"""Hugging Face folders in and out: config.json and (sharded) safetensors. Never pickles, never remote code.

Weights go one leaf at a time, and of a leaf only what lies on this process's devices is read, so that host memory never
holds two copies of the model.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import functools
import json
import math
import os
from pathlib import Path

from flax import traverse_util
import numpy as np
from safetensors import safe_open, SafetensorError
from safetensors.numpy import save_file

from gdsd_jax.huggingface.folder import FAMILIES, load_config, resolve_path
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.parallel.mesh import param_shardings
from gdsd_jax.parallel.rows import lay_out

_INDEX = "model.safetensors.index.json"


def load_pretrained(path_or_hub_name, dtype: str = "float32", mesh=None, param_dtype: str | None = None,
                    remat: str = "none"):
  """Loads a denoiser from a Hugging Face folder or hub name.

  Args:
    path_or_hub_name: folder with config.json and safetensors, a hub name such as "GSAI-ML/LLaDA-8B-Instruct", or
      "tiny", the embedded model.
    dtype: "float32" or "bfloat16", for matrix products and, unless `param_dtype` is given, for the parameters.
    mesh: `jax.sharding.Mesh` to lay the parameters over (`make_mesh`); None for the default device.
    param_dtype, remat: see `Denoiser`.

  Returns:
    (denoiser, params).

  Raises:
    FileNotFoundError, ValueError: a file is missing, damaged or does not fit config.json; nothing was allocated yet.
  """
  path = resolve_path(path_or_hub_name)
  denoiser = Denoiser(load_config(path), dtype, param_dtype or dtype, remat, mesh=mesh)
  return denoiser, load_weights(path, denoiser)


def load_weights(path: Path, denoiser: Denoiser):
  """Parameters of a denoiser's base model from a local folder, laid over its mesh. Raises as `load_pretrained`."""
  config, mesh = denoiser.config, denoiser.mesh
  flat = lambda tree: traverse_util.flatten_dict({name: tree[name] for name in tree if name != "lora"}, sep=".")
  abstract, shardings = flat(denoiser.abstract_params()), flat(param_shardings(mesh, denoiser))
  files = _check_files(path, config, abstract)
  params = {}
  for leaf, spec in abstract.items():
    read = functools.partial(_read_part, config, files, leaf, spec)
    params[leaf] = lay_out(spec.shape, shardings[leaf], read)
  return traverse_util.unflatten_dict(params, sep=".")


def save_pretrained(path, denoiser: Denoiser, params, max_shard_bytes: int = 5 * 2**30) -> None:
  """Writes config.json and safetensors in the layout of the model's family; `load_pretrained` gives back every bit.

  Files are written beside their final names and moved over at the end, so a failed save leaves an earlier one whole.

  Args:
    path: folder, made if it is missing.
    denoiser, params: as `load_pretrained` returns them.
    max_shard_bytes: size at which a further weight file is begun (more than one come with an index).

  Raises:
    ValueError: the layout has no place for the parameters' adapter, or for something in the config.
    OSError: one line naming the file, when it cannot be written (a full disk, say).
  """
  if "lora" in params:
    raise ValueError("the parameters have an adapter: merge it (lora.merge), or save it by itself (peft.save_adapter)")
  path = Path(path)
  config = denoiser.config
  fields = FAMILIES[config.family].format_config(config, str(params["embedding"].dtype))
  if (read_back := FAMILIES[config.family].parse_config(fields)) != config:
    lost = [field.name for field in dataclasses.fields(config)
            if getattr(read_back, field.name) != getattr(config, field.name)]
    raise ValueError(f"the layout of {config.family} has no place for this model's {', '.join(lost)}")
  leaves = traverse_util.flatten_dict(params, sep=".")
  plan = _plan_shards(config, leaves, max_shard_bytes)
  names = ["model.safetensors"] if len(plan) == 1 else [
    f"model-{i + 1:05d}-of-{len(plan):05d}.safetensors" for i in range(len(plan))
  ]
  written = {}  # final path -> temporary path

  def temporary(name: str) -> Path:
    written[path / name] = path / f".{name}.incomplete"
    return written[path / name]

  try:
    path.mkdir(parents=True, exist_ok=True)
    for name, shard in zip(names, plan):
      tensors = {weight: _to_linear(leaf, np.asarray(leaves[leaf][index])) for weight, leaf, index in shard}
      save_file(tensors, temporary(name), metadata={"format": "pt"})
      del tensors
    if len(plan) > 1:
      weight_map = {weight: name for name, shard in zip(names, plan) for weight, _, _ in shard}
      total = sum(leaf.nbytes for leaf in leaves.values())
      temporary(_INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2))
    temporary("config.json").write_text(json.dumps(fields, indent=2) + "\n")
    for final, incomplete in written.items():
      os.replace(incomplete, final)
    # The index first: loading prefers it to the single file.
    for stale in [path / _INDEX, *path.glob("model*.safetensors"), *path.glob(".model*.incomplete")]:
      if stale not in written:
        stale.unlink(missing_ok=True)
  except (OSError, SafetensorError) as error:
    raise OSError(f"cannot save the model to {path}: {error}") from error
  finally:
    with contextlib.suppress(OSError):
      for incomplete in written.values():
        incomplete.unlink(missing_ok=True)


def weight_names(config: DenoiserConfig) -> dict[str, str]:
  """Parameter path -> weight name of the model's family; {layer} marks the ones that are stacked along `layers`."""
  return FAMILIES[config.family].WEIGHT_NAMES


def _weight_names(config: DenoiserConfig, leaf: str) -> Iterator[tuple[str, object]]:
  """(weight name, index into the leaf) of every weight that a leaf is made of."""
  name = weight_names(config)[leaf]
  if "{layer}" not in name:
    yield name, ...
    return
  for layer in range(config.num_layers):
    yield name.format(layer=layer), layer


def _linear_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Shape of the published weight: linear layers are [out, in] there and [in…, out…] here."""
  kind = leaf.rpartition(".")[2]
  if kind in ("query", "key", "value"):
    return (math.prod(shape[1:]), shape[0])
  if kind == "output":
    return (shape[2], math.prod(shape[:2]))
  if kind in ("gate", "up", "down", "head"):
    return shape[::-1]
  return (math.prod(shape),) if kind.endswith("_bias") else shape


def _read_part(config: DenoiserConfig, files: dict[str, Path], leaf: str, spec, index: tuple[slice, ...]) -> np.ndarray:
  """The part `index` of a leaf (slices with a start and a stop), in the leaf's dtype; nothing else is read."""
  part = np.empty([dimension.stop - dimension.start for dimension in index], spec.dtype)
  stacked = "{layer}" in weight_names(config)[leaf]
  names = list(_weight_names(config, leaf))
  for row, (name, _) in enumerate(names[index[0]] if stacked else names):
    shape, wanted = (spec.shape[1:], index[1:]) if stacked else (spec.shape, index)
    destination = part[row] if stacked else part
    with safe_open(files[name], "np") as tensors:
      weight = tensors.get_slice(name)[_linear_index(leaf, shape, wanted)]
    destination[...] = (weight.T if _is_linear(leaf) else weight).reshape(destination.shape)
  return part


def _linear_index(leaf: str, shape: tuple[int, ...], index: tuple[slice, ...]) -> tuple[slice, ...]:
  """`index` into one layer's weight of this `shape` as slices of the published weight, see `_linear_shape`."""

  def joined(first: int, last: int) -> slice:
    """One slice of dimensions that are one in the published weight: only the first of them is ever split."""
    inner = math.prod(shape[first + 1:last])
    return slice(index[first].start * inner, index[first].stop * inner)

  kind = leaf.rpartition(".")[2]
  if kind in ("query", "key", "value"):
    return joined(1, 3), index[0]
  if kind == "output":
    return index[2], joined(0, 2)
  if kind in ("gate", "up", "down", "head"):
    return index[::-1]
  return (joined(0, 2),) if kind.endswith("_bias") else index


def _to_linear(leaf: str, array: np.ndarray) -> np.ndarray:
  shape = _linear_shape(leaf, array.shape)
  return np.ascontiguousarray(array.reshape(shape[::-1]).T if _is_linear(leaf) else array.reshape(shape))


def _is_linear(leaf: str) -> bool:
  return leaf.rpartition(".")[2] in ("query", "key", "value", "output", "gate", "up", "down", "head")


def _check_files(path: Path, config: DenoiserConfig, abstract) -> dict[str, Path]:
  """The file of each weight, after every header was read and every shape compared with config.json's."""
  index = path / _INDEX
  if index.is_file():
    try:
      files = {name: path / file for name, file in json.loads(index.read_text())["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise ValueError(f"model.path: {index} is no index of weights: {error!r}") from None
    for file in files.values():
      if file.parent != path or file.name == "..":
        raise ValueError(f"model.path: {index} names {file}, which is no file of its folder")
  elif (path / "model.safetensors").is_file():
    files = None
  else:
    raise FileNotFoundError(f"model.path: {path} has neither model.safetensors nor {_INDEX}")
  shapes, where, dtypes = {}, {}, {}
  for file in sorted(set(files.values())) if files is not None else [path / "model.safetensors"]:
    if not file.is_file():
      raise FileNotFoundError(f"model.path: weight file {file} is missing, though {_INDEX} names it")
    try:
      with safe_open(file, "np") as tensors:
        for name in tensors.keys():
          shapes[name], where[name] = tuple(tensors.get_slice(name).get_shape()), file
          dtypes[name] = tensors.get_slice(name).get_dtype()
    except SafetensorError as error:
      raise ValueError(f"model.path: weight file {file} is damaged or truncated: {error}") from None
  for leaf, spec in abstract.items():
    for name, index in _weight_names(config, leaf):
      if name not in where:
        raise ValueError(f"model.path: no weight file in {path} holds {name}")
      if dtypes[name] not in ("F64", "F32", "F16", "BF16"):
        raise ValueError(f"model.path: {name} in {where[name]} is {dtypes[name]}, no floating-point weight")
      expected = _linear_shape(leaf, spec.shape if index is ... else spec.shape[1:])
      if shapes[name] != expected:
        raise ValueError(
          f"model.path: {name} in {where[name]} has shape {shapes[name]}; config.json asks for {expected}"
        )
  return where


def _plan_shards(config: DenoiserConfig, leaves, max_shard_bytes: int):
  """Lists of (weight name, leaf, index), layer by layer, each list at most max_shard_bytes (or a single weight)."""
  weights = [(name, leaf, index) for leaf in leaves for name, index in _weight_names(config, leaf)]
  weights.sort(key=lambda weight: (weight[2] is not ..., 0 if weight[2] is ... else weight[2]))
  shards, size = [[]], 0
  for name, leaf, index in weights:
    nbytes = leaves[leaf].nbytes // (1 if index is ... else config.num_layers)
    if shards[-1] and size + nbytes > max_shard_bytes:
      shards.append([])
      size = 0
    shards[-1].append((name, leaf, index))
    size += nbytes
  return shards
