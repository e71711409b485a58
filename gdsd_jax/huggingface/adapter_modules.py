"""Between the factors of an adapter and the modules of files: their names, and a module that is several of our weights.

Query, key and value of some families are one module. The adapter of that has three times the rank: the rows of A are
those of the three, and B is zero wherever the rows of one would meet the A of another.
"""

from collections.abc import Iterable, Mapping
import dataclasses

from flax import traverse_util
import numpy as np

from gdsd_jax.checks import require
from gdsd_jax.huggingface.eurobert import EUROBERT
from gdsd_jax.huggingface.own_layout import LAYOUTS
from gdsd_jax.huggingface.stored_layers import is_stacked, joined, names_of, pattern_of
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.models.lora import LEAVES
from gdsd_jax.models.weights import DENSE, weights_of

_PART = "#"  # between a module and that weight of ours which is a part of it


def layouts_of(config: DenoiserConfig) -> list[str]:
  """Layouts in which an adapter's modules may be called, the model's own first."""
  known = [layout for layout in LAYOUTS if layout != "transformers" or EUROBERT.computes(config)]
  return list(dict.fromkeys((config.layout, *known)))  # one's own layout is one for all of them


def modules_of(config: DenoiserConfig, layout: str | None = None) -> dict[str, np.ndarray]:
  """Leaf that may be adapted -> its modules in files of a layout, str[layers] or str[layers, experts].

  That of a leaf which is a part of a module is the module's with a part's name.
  """
  config, found = dataclasses.replace(config, layout=layout or config.layout), {}
  for leaf in weights_of(config, None):
    name = leaf.rpartition(".")[2]
    if is_stacked(leaf) and name in LEAVES:
      part = f"{_PART}{name}" if len(joined(config, leaf)) > 1 else ""
      names = names_of(config, leaf)
      found[leaf] = np.array([f"{n.removesuffix('.weight')}{part}" for n in names.flat], object).reshape(names.shape)
  return found


def module_of(name: str) -> str:
  """The module that a part is of, or the module itself."""
  return name.partition(_PART)[0]


def adapted_leaves(adapter) -> dict[str, Mapping]:
  """Leaf of the model -> its factors, from the entry "lora" of the parameters or their shapes."""
  flat = traverse_util.flatten_dict(adapter, is_leaf=lambda path, node: "a" in node)
  return {".".join(path if path[0] == DENSE else ("blocks", *path)): factors for path, factors in flat.items()}


def in_adapter(leaf: str) -> tuple[str, ...]:
  """The path of a leaf's factors within the entry "lora"."""
  stack, name = leaf.split(".")
  return (stack, name) if stack == DENSE else (name,)


Factors = dict[str, tuple[np.ndarray, np.ndarray]]  # module or part -> A [rank, in] and B [out, rank], as PEFT has them


def require_whole_modules(config: DenoiserConfig, adapted: Iterable[str]) -> None:
  """Raises ValueError where of a module that is several of our weights some are adapted, by their names in a block.

  PEFT's files have no place for the adapter of a part.
  """
  of_block, adapted = lambda leaf: leaf.rpartition(".")[2], set(adapted)
  for leaf in (leaf for leaf in weights_of(config, None) if is_stacked(leaf) and of_block(leaf) in adapted):
    parts = [of_block(part) for part in joined(config, leaf)]
    require(adapted.issuperset(parts), "model.lora.targets", f"the files of this model have {', '.join(parts)} as one"
            f" module, {pattern_of(config, leaf).removesuffix('.weight')}: adapt all of these or none, or export the"
            " merged model")


def join_parts(factors: Factors) -> Factors:
  """Parts as the modules that they are of, all of whose parts must be there."""
  modules = {}
  for name, pair in factors.items():
    modules.setdefault(module_of(name), []).append((name, pair))
  joint = lambda parts: (np.concatenate([a for _, (a, _) in parts]), _block_diagonal([b for _, (_, b) in parts]))
  return {module: parts[0][1] if parts[0][0] == module else joint(parts) for module, parts in modules.items()}


def split_parts(names: list[str], rows: list[int], a: np.ndarray, b: np.ndarray, rank: int) -> Factors:
  """A module's factors as those of its parts, in the order of their rows. `rank` is that of other modules.

  Where B is as `join_parts` makes it, each part has its own rank; in any other case all have all of A.
  """
  ends = np.cumsum(rows)
  parts = np.split(b, ends[:-1])
  if len(a) == rank * len(names):
    own = [part[:, i * rank:(i + 1) * rank] for i, part in enumerate(parts)]
    if np.array_equal(_block_diagonal(own), b):
      return {name: (a[i * rank:(i + 1) * rank], own[i]) for i, name in enumerate(names)}
  return {name: (a, part) for name, part in zip(names, parts)}


def _block_diagonal(parts: list[np.ndarray]) -> np.ndarray:
  rows, columns = [part.shape[0] for part in parts], [part.shape[1] for part in parts]
  whole = np.zeros((sum(rows), sum(columns)), parts[0].dtype)
  for i, part in enumerate(parts):
    row, column = sum(rows[:i]), sum(columns[:i])
    whole[row:row + rows[i], column:column + columns[i]] = part
  return whole
