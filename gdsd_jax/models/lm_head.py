"""The LM head, a chunk of the vocabulary at a time: the logits of all tokens are never in memory together.

Samplers and objectives ask for reductions of the logits over the vocabulary. Each is a fold over chunks, which every
chip does for its own share of the vocabulary; then the results are merged across chips.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

from flax import struct
import jax
from jax.experimental.layout import Layout, with_layout_constraint
import jax.numpy as jnp
from jax.sharding import Mesh

from gdsd_jax.models.quantised import dequantised
from gdsd_jax.parallel.mesh import constrain, gather_over_fsdp, partition, parts_of, rows_axis

# Columns of the head that are multiplied at a time. They are enough for matrix units, and a chunk's logits of some
# hundred positions still fit a CPU's cache. Memory depends on this number, not on the vocabulary.
CHUNK = 4096


@struct.dataclass
class LMHead:
  """The LM head as a pytree: a leaf is the weight, by which it can be differentiated."""

  weight: jax.Array  # [D, V], or [V, D] if it is tied; or a QArray, [V, D]
  tied: bool = struct.field(pytree_node=False, default=False)  # whether the weight is the embedding, or lies as it does
  mesh: Mesh | None = struct.field(pytree_node=False, default=None)  # that the weight lies on
  # What the gradient by the weight is added to, in place: its cotangent is then their sum (`Scoring.adds_in_place`).
  gradient: jax.Array | None = None

  @property
  def axis(self) -> int:
    """The weight's axis of the vocabulary."""
    return 0 if self.tied else 1

  @property
  def vocab_size(self) -> int:
    return self.weight.shape[self.axis]

  @property
  def logical_axes(self) -> tuple[str, str]:
    return ("vocab", "embed") if self.tied else ("embed", "vocab")

  def whole(self, hidden):
    """(head, hidden): the head in the dtype of hidden, gathered over fsdp, still split over tensor, for `logits`."""
    weight, hidden = gather_over_fsdp(self.weight, self.logical_axes, hidden, self.mesh)
    return self.replace(weight=weight), hidden

  def logits(self, hidden):
    """Logits float32[B, ..., V] for hidden states [B, ..., D]; over a mesh the vocabulary stays split."""
    weight = dequantised(self.weight)
    logits = multiply(hidden, weight.T if self.tied else weight)
    return constrain(logits, self.mesh, *self._axes(logits.ndim), "vocab")

  def columns(self, tokens):
    """The head's columns of given tokens: float32[B, ..., D] for int[B, ...]."""
    # They are looked up where their share of the weight lies; then shares are exchanged for sequences.
    batch, *between = self._axes(tokens.ndim + 1)
    tokens = constrain(tokens, self.mesh, "batch_over_data", *between)
    columns = dequantised(jax.tree.map(lambda part: jnp.take(part, tokens, axis=self.axis), self.weight))
    columns = columns if self.tied else jnp.moveaxis(columns, 0, -1)
    columns = constrain(columns, self.mesh, "batch_over_data", *between, "embed")
    columns = constrain(columns, self.mesh, batch, *between, None)
    return columns.astype(accumulator(self.weight.dtype))

  def _axes(self, ndim: int) -> tuple[str | None, ...]:
    """Logical axes of an array [B, ..., V or D] of so many dimensions, without the last."""
    return "batch", *["tokens", *[None] * (ndim - 3)][:ndim - 2]

  def mean_column(self):
    """Mean of all columns, float32[D]."""
    return jnp.mean(dequantised(self.weight), axis=self.axis, dtype=accumulator(self.weight.dtype))


@dataclasses.dataclass(frozen=True)
class Share:
  """The part of the vocabulary that a chip holds, as `over_vocabulary` hands it to a computation."""

  head: LMHead  # with this chip's part of the weight, which tensor splits by vocabulary, fsdp by hidden dimension
  mesh: Mesh | None = None  # whose chips share the vocabulary; None where this is all of it
  row_axes: tuple[str, ...] = ()  # axes of the mesh that the rows of a computation are split over

  @property
  def first(self):
    """The token that the share begins with."""
    return 0 if self.mesh is None else self.head.vocab_size * jax.lax.axis_index("tensor")

  def fold(self, dtype, step: Callable, carry):
    """carry after `step(carry, weight, start)` on each chunk in turn.

    The weight [D, C] has the columns from `start` of the share on, in `dtype`, gathered over fsdp.
    """

    def run(carry, start, size: int):
      chunk = lambda part: jax.lax.dynamic_slice_in_dim(part, start, size, axis=self.head.axis)
      weight = jax.tree.map(chunk, self.head.weight).astype(dtype)
      if not self.head.tied:  # TPUs would lay out all of the weight as the step would like to have a chunk, in a copy
        weight = with_layout_constraint(weight, Layout((0, 1)))
      if self.mesh is not None:
        gather = functools.partial(jax.lax.all_gather, axis_name="fsdp", axis=1 - self.head.axis, tiled=True)
        weight = jax.tree.map(gather, weight)
      weight = dequantised(weight)
      return step(carry, weight.T if self.head.tied else weight, start)

    chunks, rest = divmod(self.head.vocab_size, CHUNK)
    if chunks:
      carry = jax.lax.fori_loop(0, chunks, lambda i, carry: run(carry, i * CHUNK, CHUNK), carry)
    return run(carry, chunks * CHUNK, rest) if rest else carry

  # Reductions across the chips that share the vocabulary.

  def sum(self, x):
    return x if self.mesh is None else jax.lax.psum(x, "tensor")

  def max(self, x):
    return x if self.mesh is None else jax.lax.pmax(x, "tensor")

  def gather(self, x):
    """Every share's x [..., N] side by side."""
    return x if self.mesh is None else jax.lax.all_gather(x, "tensor", axis=x.ndim - 1, tiled=True)

  def sum_over_rows(self, gradient):
    """A gradient [D, C] by some columns, summed over all rows; each chip keeps its own part of it."""
    if self.mesh is None:
      return gradient
    if "fsdp" in self.row_axes:
      gradient = jax.lax.psum_scatter(gradient, "fsdp", scatter_dimension=0, tiled=True)
    else:
      rows = gradient.shape[0] // self.mesh.shape["fsdp"]
      gradient = jax.lax.dynamic_slice_in_dim(gradient, jax.lax.axis_index("fsdp") * rows, rows)
    others = tuple(axis for axis in self.row_axes if axis != "fsdp")
    return jax.lax.psum(gradient, others) if others else gradient


def over_vocabulary(compute: Callable, head: LMHead, rows: Any, gives_weight: bool = False):
  """compute(share, rows) on every chip that holds a share of the vocabulary, for a tree of arrays [B, T, ...].

  It merges what the shares give, so that all chips that hold the same rows return the same: a tree of arrays
  [B, T, ...], or, if it `gives_weight`, an array that lies as the weight does. To compute, a row is one of B × T.
  """
  mesh = head.mesh
  # Tied together, since JAX would otherwise make all chunks of a frozen head before the rows are known, and keep them.
  head, rows = jax.lax.optimization_barrier((head, rows))
  if mesh is None or mesh.size == 1:
    return compute(Share(head), rows)
  shape = jax.tree.leaves(rows)[0].shape[:2]
  splits_tokens = parts_of("tokens", shape[1], mesh) > 1
  split = partition(("batch", "tokens") if splits_tokens else (rows_axis(shape[0], mesh),), shape, mesh)
  lies_as_weight = partition(head.logical_axes, head.weight.shape, mesh)
  axes = tuple(jax.tree.leaves(tuple(split)))

  def on_a_chip(part: LMHead, rows):
    return compute(Share(part.replace(mesh=None), mesh, axes), rows)

  specs = dict(in_specs=(lies_as_weight, split), out_specs=lies_as_weight if gives_weight else split)
  return jax.shard_map(on_a_chip, mesh=mesh, check_vma=False, **specs)(head, rows)


def accumulator(dtype):
  """The dtype that sums of products are kept in: float32 at least."""
  return jnp.promote_types(dtype, jnp.float32)


def multiply(x, y):
  """x @ y in the accumulator's dtype."""
  return jnp.matmul(x, y, preferred_element_type=accumulator(x.dtype))
