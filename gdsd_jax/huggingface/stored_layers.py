"""Between the network's weights and those in files: their names there, their orientation, and parts of them."""

from collections.abc import Callable
import logging
import math
from pathlib import Path

import numpy as np
from safetensors import safe_open

from gdsd_jax import own_code
from gdsd_jax.checks import require
from gdsd_jax.huggingface.finite import require_finite
from gdsd_jax.huggingface.own_layout import layout_of
from gdsd_jax.huggingface.weight_files import lacks, stored_weights
from gdsd_jax.models.config import DenoiserConfig

_log = logging.getLogger(__name__)


def is_stacked(leaf: str) -> bool:
  """Whether a weight is one of each layer."""
  return leaf.startswith("blocks.")


def names_of(config: DenoiserConfig, leaf: str) -> list[str]:
  """The weights that a leaf is made of: one, or one of each layer."""
  layers = range(config.num_layers) if is_stacked(leaf) else range(1)
  return [layout_of(config.family, config.layout).weight_names[leaf].format(layer=layer) for layer in layers]


def inputs_of(leaf: str) -> int:
  """Dimensions of a linear layer's input, here [in…, out…] and published as [out, in]; 0 for any other weight."""
  inputs = {"query": 1, "key": 1, "value": 1, "output": 2, "gate": 1, "up": 1, "down": 1, "head": 1}
  return inputs.get(leaf.rpartition(".")[2], 0)


def _groups(leaf: str, rank: int) -> tuple[slice, ...]:
  """The dimensions of a layer's weight that are one in the published weight, in the order that they have there."""
  if inputs := inputs_of(leaf):
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


def as_linear(leaf: str, weight: np.ndarray) -> np.ndarray:
  """A view of one layer's weight in the published shape."""
  shape = _linear_shape(leaf, weight.shape)
  return weight.reshape(shape[::-1]).T if inputs_of(leaf) else weight.reshape(shape)


def read_part(weights: list[tuple[str, Path]], leaf: str, spec, index: tuple[slice, ...], check: bool = True,
              tell: Callable[[int], None] = lambda _: None):
  """The part `index` of a leaf (slices with a start and a stop), in the leaf's dtype; nothing else is read.

  `weights` is the leaf's entry of `find_weights`; `tell` is called with how many numbers were read, after each weight.
  Raises ValueError, unless `check` is false, where it is not finite.
  """
  part = np.empty([dimension.stop - dimension.start for dimension in index], spec.dtype)
  shape, rows = spec.shape, part[None]
  if is_stacked(leaf):
    weights, shape, index, rows = weights[index[0]], shape[1:], index[1:], part
  for row, (name, file) in zip(rows, weights):
    with safe_open(file, "np") as tensors:
      as_linear(leaf, row)[...] = tensors.get_slice(name)[_linear_index(leaf, shape, index)]
    if check:
      require_finite(row, "model.path", f"{name} in {file}", may_be_zero=not is_stacked(leaf) or not inputs_of(leaf))
    tell(row.size)
  return part


def find_weights(path: Path, config: DenoiserConfig, abstract) -> dict[str, list[tuple[str, Path]]]:
  """Leaf -> (its name in the files, file) of each layer, after every header was read and compared with config.json.

  `abstract` has the shapes of the leaves. Raises FileNotFoundError or ValueError, one line naming file and weight.
  """
  found, layout, where = stored_weights(path), layout_of(config.family, config.layout), {}
  for leaf, spec in abstract.items():
    expected = _linear_shape(leaf, spec.shape[1:] if is_stacked(leaf) else spec.shape)
    is_head = leaf == "head" or leaf == "embedding" and config.tied_head
    for name in names_of(config, leaf):
      stored = next((other for other in (name, *layout.head_aliases * is_head) if other in found), None)
      if stored is None:
        raise ValueError(f"model.path: {lacks(path, name, found)}")
      file, shape, dtype = found[stored]
      said = f"{stored} in {file}"
      require(dtype in ("F64", "F32", "F16", "BF16"), "model.path", f"{said} is {dtype}, no floating-point weight of 16"
              " bits or more")
      require(shape == expected, "model.path", f"{said} has shape {shape}; config.json asks for {expected}")
      where.setdefault(leaf, []).append((stored, file))
  return where


def check_other_weights(path: Path, config: DenoiserConfig, where) -> None:
  """Refuses weights that are not among `where` though the files' own network would use them; warns of others."""
  found, layout = stored_weights(path), layout_of(config.family, config.layout)
  used = {stored for leaf in where.values() for stored, _ in leaf}
  if config.tied_head:
    [(name, file)] = where["embedding"]
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
  modules = {name.rpartition(".")[0] for name in used}
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
    rows = one.get_shape()[0]
    parts = (slice(start, min(start + 4096, rows)) for start in range(0, rows, 4096))
    return all(np.array_equal(one[part], other[part]) for part in parts)
