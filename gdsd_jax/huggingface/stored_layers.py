"""Between the network's weights and those in files: their names there, their orientation, and parts of them."""

from collections.abc import Callable
import dataclasses
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
from gdsd_jax.models.lora import EXPERT_LEAVES, LEAVES
from gdsd_jax.models.weights import canonical, DENSE, stacks

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Piece:
  """Where a part of a leaf is: a weight of a file, or some of its rows, whose others are other leaves'."""

  name: str
  file: Path
  first_row: int = 0


def is_stacked(leaf: str) -> bool:
  """Whether a weight is one of each layer."""
  return leaf.partition(".")[0] in ("blocks", DENSE)


def layers_of(config: DenoiserConfig, leaf: str) -> range:
  """The layers that a stacked weight is of."""
  return stacks(config)[leaf.partition(".")[0]]


def names_of(config: DenoiserConfig, leaf: str, pattern: str | None = None) -> np.ndarray:
  """The weights that a leaf is made of, str[…]: one, or one of each layer, or one of each layer's every expert.

  `pattern` is the layout's name of it unless it is given.
  """
  pattern = pattern or pattern_of(config, leaf)
  if not is_stacked(leaf):
    return np.array(pattern, object)
  experts = range(config.experts.count) if "{expert}" in pattern else None
  of_layer = lambda layer: ([pattern.format(layer=layer, expert=expert) for expert in experts] if experts else
                            pattern.format(layer=layer))
  return np.array([of_layer(layer) for layer in layers_of(config, leaf)], object)


def pattern_of(config: DenoiserConfig, leaf: str) -> str:
  """The name of a weight in files, with {layer} and {expert} in the place of numbers."""
  return layout_of(config.family, config.layout).weight_names[canonical(leaf)]


def joined(config: DenoiserConfig, leaf: str) -> list[str]:
  """The leaves, this among them, that are the rows of one weight in files, in their order there."""
  layout = layout_of(config.family, config.layout)
  same = [name for name, pattern in layout.weight_names.items() if pattern == pattern_of(config, leaf)]
  stack = leaf.partition(".")[0]
  return [f"{stack}.{name.partition('.')[2]}" if is_stacked(leaf) else name for name in same]


def inputs_of(leaf: str) -> int:
  """Dimensions of a linear layer's input, here [in…, out…] and published as [out, in]; 0 for any other weight."""
  name = leaf.rpartition(".")[2]
  if name in (*LEAVES, "router", "head"):
    return 2 if name == "output" else 1
  return 0


def _groups(leaf: str, rank: int) -> tuple[slice, ...]:
  """The dimensions of a layer's weight that are one in the published weight, in the order that they have there."""
  if leaf.rpartition(".")[2] in EXPERT_LEAVES:  # each expert's own, or, with one dimension more, those of all
    return tuple(slice(i, i + 1) for i in (*range(rank - 2), rank - 1, rank - 2))
  if inputs := inputs_of(leaf):
    return slice(inputs, rank), slice(inputs)
  return (slice(rank),) if leaf.endswith("_bias") else tuple(slice(i, i + 1) for i in range(rank))


def _linear_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  return tuple(math.prod(shape[group]) for group in _groups(leaf, len(shape)))


def _linear_index(leaf: str, shape: tuple[int, ...], index: tuple[slice, ...], first_row: int) -> tuple[slice, ...]:
  """`index` into one layer's weight of this `shape` as slices of the published weight, in which it has a first row."""

  def joined(group: slice) -> slice:
    inner, first = math.prod(shape[group][1:]), index[group][0]  # only the first of the dimensions is ever split
    return slice(first.start * inner, first.stop * inner)

  rows, *others = (joined(group) for group in _groups(leaf, len(shape)))
  return slice(rows.start + first_row, rows.stop + first_row), *others


def as_linear(leaf: str, weight: np.ndarray) -> np.ndarray:
  """A view of one layer's weight in the published shape."""
  if leaf.rpartition(".")[2] in EXPERT_LEAVES:
    return weight.swapaxes(-1, -2)
  shape = _linear_shape(leaf, weight.shape)
  return weight.reshape(shape[::-1]).T if inputs_of(leaf) else weight.reshape(shape)


def read_part(pieces: np.ndarray, leaf: str, spec, index: tuple[slice, ...], check: bool = True,
              tell: Callable[[int], None] = lambda _: None):
  """The part `index` of a leaf (slices with a start and a stop), in the leaf's dtype; nothing else is read.

  `pieces` is the leaf's entry of `find_weights`; `tell` is called with how many numbers were read, after each weight.
  Raises ValueError, unless `check` is false, where it is not finite.
  """
  part = np.empty([dimension.stop - dimension.start for dimension in index], spec.dtype)
  depth, by_file = pieces.ndim, {}  # dimensions of a leaf that are spread over weights
  for place, piece in np.ndenumerate(pieces[index[:depth]]):
    by_file.setdefault(piece.file, []).append((part[place], piece))
  for file, rows in by_file.items():
    with safe_open(file, "np") as tensors:
      for row, piece in rows:
        stored = _linear_index(leaf, spec.shape[depth:], index[depth:], piece.first_row)
        as_linear(leaf, row)[...] = tensors.get_slice(piece.name)[stored]
        if check:
          may_be_zero = not is_stacked(leaf) or not inputs_of(leaf)
          require_finite(row, "model.path", f"{piece.name} in {file}", may_be_zero)
        tell(row.size)
  return part


def find_weights(path: Path, config: DenoiserConfig, abstract) -> dict[str, np.ndarray]:
  """Leaf -> its pieces, Piece[…] as `names_of`, after every header was read and compared with config.json.

  `abstract` has the shapes of the leaves. Raises FileNotFoundError or ValueError, one line naming file and weight.
  """
  found, layout, where = stored_weights(path), layout_of(config.family, config.layout), {}
  for leaf, spec in abstract.items():
    names = names_of(config, leaf)
    merged = layout.merged_experts.get(canonical(leaf))
    if merged and names.flat[0] not in found and (of_all := names_of(config, leaf, merged)).flat[0] in found:
      names = of_all
    leaves = joined(config, leaf)
    rows = [_linear_shape(each, abstract[each].shape[names.ndim:])[0] for each in leaves]
    expected = _linear_shape(leaf, spec.shape[names.ndim:])
    if len(leaves) > 1:
      expected = (sum(rows), *expected[1:])
    is_head = leaf == "head" or leaf == "embedding" and config.tied_head
    where[leaf] = pieces = np.empty(names.shape, object)
    for place, name in np.ndenumerate(names):
      stored = next((other for other in (name, *layout.head_aliases * is_head) if other in found), None)
      if stored is None:
        raise ValueError(f"model.path: {lacks(path, name, found)}")
      file, shape, dtype = found[stored]
      said = f"{stored} in {file}"
      require(dtype in ("F64", "F32", "F16", "BF16"), "model.path", f"{said} is {dtype}, no floating-point weight of 16"
              " bits or more")
      require(shape == expected, "model.path", f"{said} has shape {shape}; config.json asks for {expected}")
      pieces[place] = Piece(stored, file, sum(rows[:leaves.index(leaf)]))
  return where


def check_other_weights(path: Path, config: DenoiserConfig, where) -> None:
  """Refuses weights that are not among `where` though the files' own network would use them; warns of others."""
  found, layout = stored_weights(path), layout_of(config.family, config.layout)
  used = {piece.name for pieces in where.values() for piece in pieces.flat}
  if config.tied_head:
    name, file = where["embedding"].item().name, where["embedding"].item().file
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
