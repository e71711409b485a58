"""Rows of a batch: a host holds, reads and scores only those that lie on its own devices."""

from collections.abc import Callable
import functools
import math

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from gdsd_jax.parallel.mesh import batch_sharding, replicated
from gdsd_jax.parallel.processes import is_first_process


def lay_out(shape: tuple[int, ...], sharding, read: Callable, made=None):
  """An array of this shape, of which this process reads only what lies on its own devices, each piece once.

  `read` gives the values at a tuple of slices, one for each dimension. Where it makes something else of them, such as a
  QArray, `made` is a tree of what that is as a whole, shapes with shardings; devices that share a piece of the array
  must share that of each.
  """
  pieces, placed = {}, []
  for device, bounds in _bounds(shape, sharding).items():
    if bounds not in pieces:
      with jax.default_device(device):  # where `read` computes, if it does
        pieces[bounds] = read(tuple(slice(*bound) for bound in bounds))
    placed.append(jax.device_put(pieces[bounds], device))
  # The transfer reads from host memory, which is free after it.
  if made is None:
    return jax.make_array_from_single_device_arrays(shape, sharding, placed).block_until_ready()
  join = lambda spec, *parts: jax.make_array_from_single_device_arrays(spec.shape, spec.sharding, list(parts))
  return jax.block_until_ready(jax.tree.map(join, made, *placed))


def own_size(shape: tuple[int, ...], sharding) -> int:
  """How many values of such an array `lay_out` reads in this process."""
  return sum(math.prod(stop - start for start, stop in bounds) for bounds in set(_bounds(shape, sharding).values()))


def _bounds(shape: tuple[int, ...], sharding) -> dict[jax.Device, tuple[tuple[int, int], ...]]:
  """(start, stop) of each dimension of what lies on each of this process's devices."""
  return {device: tuple(part.indices(size)[:2] for part, size in zip(index, shape))
          for device, index in sharding.addressable_devices_indices_map(shape).items()}


def local_rows(mesh: Mesh | None, rows: int) -> np.ndarray:
  """Rows of a batch of `rows` that lie on this process's devices, int, ascending; all where there is no mesh."""
  if mesh is None or jax.process_count() == 1:
    return np.arange(rows)
  held = batch_sharding(mesh).addressable_devices_indices_map((rows,)).values()
  return np.array(sorted({row for (part,) in held for row in range(*part.indices(rows))}))


def own_rows(mesh: Mesh | None, rows: int) -> np.ndarray:
  """This process's share of `local_rows`: rows that several hold are dealt out, so that each row has one owner."""
  if mesh is None or jax.process_count() == 1:
    return np.arange(rows)
  return np.flatnonzero(owners(batch_sharding(mesh).devices_indices_map((rows,)), rows) == jax.process_index())


def owners(indices, rows: int) -> np.ndarray:
  """Process that owns each of `rows` rows, int[rows]. indices: device -> (slice of rows,), as a sharding gives them."""
  holders = [set() for _ in range(rows)]
  for device, (part,) in indices.items():
    for row in range(*part.indices(rows)):
      holders[row].add(device.process_index)
  return np.array([sorted(held)[row % len(held)] for row, held in enumerate(holders)])


def spread(mesh: Mesh | None, rows: int, local: np.ndarray) -> jax.Array:
  """A batch of `rows` rows over the mesh, from the rows of it that this process holds (`local_rows`)."""
  if mesh is None:
    return jnp.asarray(local)
  position = {row: i for i, row in enumerate(local_rows(mesh, rows))}
  read = lambda index: local[[position[row] for row in range(*index[0].indices(rows))]]
  return lay_out((rows, *local.shape[1:]), batch_sharding(mesh), read)


def fetch_rows(array: jax.Array, rows: np.ndarray) -> np.ndarray:
  """These rows of an array that is split over its first axis alone; all must lie on this process's devices."""
  if array.is_fully_addressable:
    return np.asarray(array)[rows]
  parts = {shard.index[0].indices(array.shape[0])[0]: shard.data for shard in array.addressable_shards}
  held = {first + i: row for first, part in parts.items() for i, row in enumerate(np.asarray(part))}
  return np.stack([held[row] for row in rows]) if len(rows) else np.empty((0, *array.shape[1:]), array.dtype)


def readable_rows(mesh: Mesh | None, tree, count: int):
  """Arrays whose first `count` rows, those of a batch's arrays, this process can read by itself. Collective.

  Returns before they are there. One process, which has all rows, is given them as they are.
  """
  return tree if jax.process_count() == 1 else _first_rows(mesh, count)(tree)


@functools.cache
def _first_rows(mesh: Mesh, count: int) -> Callable:
  return jax.jit(lambda tree: jax.tree.map(lambda array: array[:count], tree), out_shardings=replicated(mesh))


def fetch_whole(tree):
  """The arrays of a tree, whole, in the first process's memory; None in the others. Collective."""
  def fetch(array):
    if array.is_fully_addressable:
      return np.asarray(array)
    if array.ndim > 2:  # stacked layers: whole, one after the other, on every device
      parts = [fetch(array[i]) for i in range(array.shape[0])]
      return np.stack(parts) if is_first_process() else None
    whole = multihost_utils.process_allgather(array, tiled=True)
    return whole if is_first_process() else None

  fetched = jax.tree.map(fetch, tree)
  return fetched if is_first_process() else None
