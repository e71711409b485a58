"""Work that TPU slices do each by itself, so that its sum alone crosses the network between them."""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gdsd_jax.parallel.mesh import batch_axes, slice_of

SLICE = "slice"  # first axis of the mesh that `within_slices` gives


def count_slices(mesh: Mesh | None) -> int:
  """Over how many TPU slices a mesh lies."""
  return 1 if mesh is None else len(set(map(slice_of, mesh.devices.flat)))


def within_slices(mesh: Mesh) -> Mesh:
  """The same devices with one more axis, of slices, before data, which is then within a slice, and so are batches."""
  data, *others = mesh.devices.shape
  slices = count_slices(mesh)
  return Mesh(mesh.devices.reshape(slices, data // slices, *others), (SLICE, *mesh.axis_names))


def sum_over_slices(work: Callable, batch, shardings, mesh: Mesh, *keys):
  """Σ over slices of work(part, *keys), a tree of arrays that lie as `shardings` say.

  Args:
    work: pure function that lays out its arrays over `within_slices(mesh)`. Nothing of it crosses slices.
    batch: tree of arrays [N, …] whose rows are split over the mesh; a part has those of one slice, [N / slices, …].
    shardings: tree of that of each result, by the mesh itself.
    keys: random keys, of which each slice has its own, or None.
  """
  inner = within_slices(mesh)
  split = NamedSharding(inner, PartitionSpec(SLICE, batch_axes(inner)))
  slices = inner.shape[SLICE]
  apart = lambda x: jax.lax.with_sharding_constraint(x.reshape(slices, -1, *x.shape[1:]), split)
  keys = [None if key is None else jax.random.split(key, slices) for key in keys]
  # Otherwise the partitioner would sum over all chips wherever a product contracts a batch: in each layer, each time.
  of_slices = jax.vmap(work, spmd_axis_name=SLICE)(jax.tree.map(apart, batch), *keys)

  def total(parts, sharding):
    # Of what several chips of a slice have alike, each sends a piece, and they put it together when it is summed.
    piece = _spread(sharding.spec, parts.shape[1:], inner)
    parts = jax.lax.with_sharding_constraint(parts, NamedSharding(inner, PartitionSpec(SLICE, *piece)))
    summed = jax.lax.with_sharding_constraint(jnp.sum(parts, axis=0), NamedSharding(inner, piece))
    return jax.lax.with_sharding_constraint(summed, sharding)

  return jax.tree.map(total, of_slices, shardings)


def _spread(spec: PartitionSpec, shape: tuple[int, ...], inner: Mesh) -> PartitionSpec:
  """The spec, with axes of a slice that leave the array whole added to its longest dimensions that they divide."""
  split = [names if isinstance(names, tuple) else (names,) * (names is not None)
           for names in (*spec, *[None] * (len(shape) - len(spec)))]
  for axis in inner.axis_names[1:]:
    if any(axis in names for names in split):
      continue
    for dim in sorted(range(len(shape)), key=lambda dim: -shape[dim]):
      if shape[dim] % math.prod(inner.shape[name] for name in (*split[dim], axis)) == 0:
        split[dim] = (*split[dim], axis)
        break
  return PartitionSpec(*(names or None for names in split))
