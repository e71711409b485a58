"""What tokens go through one by one, computed for some of them at a time, so that only these have intermediates."""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gdsd_jax.parallel.mesh import constrain, parts_of, split_into


def in_chunks(compute: Callable, x, most: int | None, mesh: Mesh | None, axes: tuple[str, str | None]):
  """compute(x, None), which takes each token of x [B, T, D] by itself, with at most so many of a chip's at a time.

  A chunk is the same positions of all sequences; where the mesh splits these, each chip takes some of its own. So one
  position of every sequence is the least. The backward pass computes a chunk again, and keeps nothing but x.

  Args:
    compute: of (some tokens [B, t, D], the number of the chunk, None where it is all); returns [B, t, …].
    most: tokens; None for all at once.
    mesh, axes: what x is laid out over, and the logical axes of B and T, see `transformer.Context`.
  """
  batch, tokens = x.shape[:2]
  parts = split_into(axes[1], mesh)
  rows, positions = batch // parts_of(axes[0], batch, mesh), tokens // parts
  width = positions if most is None else max(most // rows, 1)
  if width >= positions:
    return compute(x, None)
  chunks = math.ceil(positions / width)
  # Of a few more chunks none may have to be filled up, which would take copies of x.
  chunks = next((more for more in range(chunks, 2 * chunks) if positions % more == 0), chunks)
  width = math.ceil(positions / chunks)
  layout = lambda x: constrain(x, mesh, *axes, None)
  # [batch, parts, positions, D] to [chunks, batch, parts * width, D], and back. The last chunk may end in zeros.
  split = jnp.pad(x.reshape(batch, parts, positions, -1), ((0, 0), (0, 0), (0, chunks * width - positions), (0, 0)))
  split = jnp.moveaxis(split.reshape(batch, parts, chunks, width, -1), 2, 0).reshape(chunks, batch, parts * width, -1)
  # A scan already keeps XLA from undoing it.
  of_chunk = jax.checkpoint(lambda chunk: layout(compute(layout(chunk[1]), chunk[0])), prevent_cse=False)
  done = jax.lax.map(of_chunk, (jnp.arange(chunks), split))
  done = jnp.moveaxis(done.reshape(chunks, batch, parts, width, -1), 0, 2)
  return layout(done.reshape(batch, parts, chunks * width, -1)[:, :, :positions].reshape(*x.shape[:2], -1))
