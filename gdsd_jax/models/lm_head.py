"""The LM head, a chunk of the vocabulary at a time: the logits of all tokens are never in memory together.

What samplers and objectives ask of logits are reductions over the vocabulary. Each is a fold over chunks, on every
chip over its own share of the vocabulary, whose results are then merged across chips.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from gdsd_jax.parallel.mesh import BATCH_AXES, constrain, partition

# Columns of the head that are multiplied at a time: large enough for matrix units, and a chunk's logits of some hundred
# positions still fit a CPU's cache. What is in memory depends on it, not on the vocabulary.
CHUNK = 4096
_GROUP = 16  # see `largest`


@struct.dataclass
class LMHead:
  """The head's weight, and how it lies.

  Attributes:
    weight: [D, V], or of a tied head the embedding, [V, D].
    tied: which of the two.
    mesh: that the weight lies on, or None.
  """

  weight: jax.Array
  tied: bool = struct.field(pytree_node=False, default=False)
  mesh: Mesh | None = struct.field(pytree_node=False, default=None)

  @property
  def vocab_size(self) -> int:
    return self.weight.shape[0 if self.tied else 1]

  @property
  def logical_axes(self) -> tuple[str, str]:
    return ("vocab", "embed") if self.tied else ("embed", "vocab")

  def whole(self, hidden):
    """(head, hidden): the head in hidden's dtype, gathered over fsdp, still split over tensor, for `logits`."""
    weight = self.weight
    if self.mesh is not None and self.mesh.size > 1:
      weight, hidden = jax.lax.optimization_barrier((weight, hidden))  # as of the blocks' weights
    axes = ("vocab" if axis == "vocab" else None for axis in self.logical_axes)
    return self.replace(weight=constrain(weight.astype(hidden.dtype), self.mesh, *axes)), hidden

  def logits(self, hidden):
    """Float32 logits [B, ..., V] of hidden states [B, ..., D]; over a mesh the vocabulary stays split."""
    logits = multiply(hidden, self.weight.T if self.tied else self.weight)
    return constrain(logits, self.mesh, "batch", *[None] * (logits.ndim - 2), "vocab")

  def columns(self, tokens):
    """The head's columns of tokens, float32[B, ..., D] of int[B, ...]."""
    columns = jnp.take(self.weight, tokens, axis=0 if self.tied else 1)
    columns = columns if self.tied else jnp.moveaxis(columns, 0, -1)
    # Looked up where their share of the weight lies; then shares are exchanged for sequences.
    between = [None] * (columns.ndim - 2)
    columns = constrain(columns, self.mesh, "batch_over_data", *between, "embed")
    columns = constrain(columns, self.mesh, "batch", *between, None)
    return columns.astype(accumulator(self.weight.dtype))

  def mean_column(self):
    """Mean of all columns, float32[D]."""
    return jnp.mean(self.weight, axis=0 if self.tied else 1, dtype=accumulator(self.weight.dtype))


@dataclasses.dataclass(frozen=True)
class Share:
  """The part of the vocabulary that a chip holds, as `over_vocabulary` hands it to a computation.

  Attributes:
    head: weight is this chip's part: of the vocabulary over tensor, of the hidden dimension over fsdp.
    mesh: the mesh whose chips share the vocabulary; None where this is all of it.
    batch_axes: mesh axes that sequences are split over.
  """

  head: LMHead
  mesh: Mesh | None = None
  batch_axes: tuple[str, ...] = ()

  @property
  def size(self) -> int:
    """Columns of this share."""
    return self.head.vocab_size

  @property
  def first(self):
    """The token that the share begins with."""
    return 0 if self.mesh is None else self.size * jax.lax.axis_index("tensor")

  def weight(self, start, size: int, dtype):
    """Columns start … start + size of the share, [D, size]: whole over fsdp."""
    weight = jax.lax.dynamic_slice_in_dim(self.head.weight, start, size, axis=0 if self.head.tied else 1).astype(dtype)
    weight = weight.T if self.head.tied else weight
    return weight if self.mesh is None else jax.lax.all_gather(weight, "fsdp", axis=0, tiled=True)

  @property
  def width(self) -> int:
    """D."""
    width = self.head.weight.shape[1 if self.head.tied else 0]
    return width if self.mesh is None else width * self.mesh.shape["fsdp"]

  def fold_weight(self, dtype, step: Callable, carry):
    """carry after `step(carry, weight, start)` on each chunk in turn: [D, C] columns of dtype, from `start` of the
    share on."""
    chunks, rest = divmod(self.size, CHUNK)
    run = lambda carry, start, size: step(carry, self.weight(start, size, dtype), start)
    if chunks:
      carry = jax.lax.fori_loop(0, chunks, lambda i, carry: run(carry, i * CHUNK, CHUNK), carry)
    return run(carry, chunks * CHUNK, rest) if rest else carry

  def fold(self, hidden, step: Callable, carry):
    """carry after `step(carry, logits, weight, start)` on each chunk in turn.

    logits: [R, C], float32 at least, of the rows of hidden [R, D]; weight, start: as of `fold_weight`, in the dtype of
    hidden.
    """

    def with_logits(carry, weight, start):
      return step(carry, multiply(hidden, weight), weight, start)

    return self.fold_weight(hidden.dtype, with_logits, carry)

  # Reductions across the chips that share the vocabulary.

  def sum(self, x):
    return x if self.mesh is None else jax.lax.psum(x, "tensor")

  def max(self, x):
    return x if self.mesh is None else jax.lax.pmax(x, "tensor")

  def gather(self, x):
    """Every share's x [..., N] side by side."""
    return x if self.mesh is None else jax.lax.all_gather(x, "tensor", axis=x.ndim - 1, tiled=True)

  def sum_over_batch(self, gradient):
    """The sum over all sequences of a gradient [D, C] of some columns, of which a chip keeps its own part."""
    if self.mesh is None:
      return gradient
    if "fsdp" in self.batch_axes:
      gradient = jax.lax.psum_scatter(gradient, "fsdp", scatter_dimension=0, tiled=True)
    else:
      rows = gradient.shape[0] // self.mesh.shape["fsdp"]
      gradient = jax.lax.dynamic_slice_in_dim(gradient, jax.lax.axis_index("fsdp") * rows, rows)
    return jax.lax.psum(gradient, "data") if "data" in self.batch_axes else gradient


def over_vocabulary(compute: Callable, head: LMHead, rows: Any, gives_weight: bool = False):
  """compute(share, rows) on every chip that holds a share of the vocabulary.

  Args:
    compute: of a `Share` and the chip's rows. It merges what the shares give, so that all chips that hold the same rows
      return the same.
    head: the LM head.
    rows: tree of arrays [B, ...].
    gives_weight: compute returns an array that lies as the weight, rather than a tree of arrays [B, ...].
  """
  mesh = head.mesh
  # Tied together: of a frozen head JAX would otherwise make all chunks before the rows are known, and keep them.
  weight, rows = jax.lax.optimization_barrier((head.weight, rows))
  head = head.replace(weight=weight)
  if mesh is None or mesh.size == 1:
    return compute(Share(head), rows)
  leading = jax.tree.leaves(rows)[0].shape[:1]
  batch = partition(("batch",), leading, mesh)
  of_weight = partition(head.logical_axes, weight.shape, mesh)
  batch_axes = () if batch == PartitionSpec(None) else BATCH_AXES

  def on_a_chip(part, rows):
    return compute(Share(head.replace(weight=part, mesh=None), mesh, batch_axes), rows)

  return jax.shard_map(
    on_a_chip, mesh=mesh, in_specs=(of_weight, batch), out_specs=of_weight if gives_weight else batch, check_vma=False
  )(weight, rows)


def accumulator(dtype):
  """dtype that sums of products of `dtype` are kept in: float32 at least."""
  return jnp.promote_types(dtype, jnp.float32)


def multiply(x, y):
  """x @ y in the accumulator's dtype."""
  return jnp.matmul(x, y, preferred_element_type=accumulator(x.dtype))


def largest(logits, k: int):
  """The k largest of each row, [R, C] -> [R, k], descending; exact.

  They lie in the k groups of columns with the largest maxima. To find these and sort their members is several times
  faster than to sort the row.
  """
  rows, columns = logits.shape
  if columns % _GROUP or columns <= 2 * k * _GROUP:
    return jax.lax.top_k(logits, k)[0]
  # A group is every so many columns: a maximum over these is a maximum of long vectors.
  groups = logits.reshape(rows, _GROUP, -1)
  _, best = jax.lax.top_k(jnp.max(groups, axis=1), k)
  members = jnp.take_along_axis(groups, best[:, None], axis=2)
  return jax.lax.top_k(members.reshape(rows, -1), k)[0]


def pick(x, index):
  """x[..., index] of each row: a masked sum, which stays where the last axis is split. x: [..., V], index: int[...]."""
  chosen = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1) == index[..., None]
  return jnp.sum(jnp.where(chosen, x, 0), axis=-1)


def top_k(x, k: int, mesh: Mesh | None):
  """The k largest of the last axis, [..., V] -> [..., k], descending.

  Where the vocabulary is split, each chip sends its own k largest and nothing else.
  """
  if mesh is None or mesh.shape["tensor"] == 1:
    return jax.lax.top_k(x, k)[0]

  def largest(part):
    best = jax.lax.top_k(part, min(k, part.shape[-1]))[0]
    return jax.lax.top_k(jax.lax.all_gather(best, "tensor", axis=-1, tiled=True), k)[0]

  leading = ("batch", *[None] * (x.ndim - 2))
  split, whole = partition((*leading, "vocab"), x.shape, mesh), partition((*leading, None), x.shape, mesh)
  return jax.shard_map(largest, mesh=mesh, in_specs=split, out_specs=whole, check_vma=False)(x)
