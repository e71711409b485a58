"""Work that TPU slices do each by itself, so that its sum alone crosses the network between them."""

from collections.abc import Callable
import functools

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
  total = jax.tree.map(functools.partial(jnp.sum, axis=0), of_slices)
  return jax.lax.with_sharding_constraint(total, shardings)
