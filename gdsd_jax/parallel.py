"""Where arrays live: the device mesh, the one table from logical axes to mesh axes, and the processes of a run.

Every process runs the same program on its own devices. Arrays span all of them; a host holds, reads and scores only
the rows of a batch that lie on its devices, and learns of the others by `gather_json`.
"""

from collections.abc import Callable
import importlib.util
import json
import math
import os
from pathlib import Path
from typing import Any

import jax
from jax.experimental import mesh_utils, multihost_utils
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

MESH_AXES = ("data", "fsdp", "tensor")

# Sequences are split over both of these: fsdp shards weights and batch alike.
BATCH_AXES = ("data", "fsdp")

# Logical axis of a weight or activation (declared in models/transformer.py) -> mesh axis it is split over.
AXIS_RULES = {
  "batch": BATCH_AXES,
  "batch_over_data": "data",
  "layers": None,
  "embed": "fsdp",
  "vocab": "tensor",
  "heads": "tensor",
  "kv_heads": "tensor",
  "head_dim": None,
  "mlp": "tensor",
  "lora_rank": None,
  "lora_rank_of_b": "fsdp",  # B of most projections has no embed axis, and with its moments should not lie whole
}
# Axes that stay whole where the mesh does not divide them. Any other is refused.
_MAY_STAY_WHOLE = ("batch", "batch_over_data", "lora_rank_of_b")

_TPU_VENDOR = "0x1ae0"  # PCI vendor of TPU chips


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
  """Mesh of axes data, fsdp and tensor over `devices` (all by default); one size may be -1, "the rest".

  Neighbours on the last axis are neighbours on the interconnect (`mesh_utils`): tensor talks most, data least.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = [data, fsdp, tensor]
  named = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(MESH_AXES, sizes))
  if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
    raise ValueError(f"{named}: sizes are positive, and at most one is -1 (the rest)")
  if -1 in sizes:
    sizes[sizes.index(-1)] = max(len(devices) // math.prod(size for size in sizes if size != -1), 1)
  if math.prod(sizes) != len(devices):
    raise ValueError(f"{named}: their product must be the number of devices, {len(devices)}")
  # Where an axis is no product of the slice's own axes, one of these is split between two of the mesh.
  return Mesh(mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True), MESH_AXES)


def partition(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
  """Mesh axes of an array with these logical axes. Raises ValueError where the mesh does not divide one."""
  split = []
  for axis, size in zip(axes, shape):
    mesh_axes = AXIS_RULES[axis] if axis else None
    names = (mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes or ()
    shards = math.prod(mesh.shape[name] for name in names)
    if size % shards and axis in _MAY_STAY_WHOLE:
      mesh_axes = None
    elif size % shards:
      raise ValueError(f"mesh.{mesh_axes}={shards} does not divide the model's {axis} axis of {size}")
    split.append(mesh_axes)
  return PartitionSpec(*split)


def param_shardings(mesh: Mesh | None, denoiser):
  """Tree of shardings for the parameters of a denoiser; without a mesh, the default device for each."""
  is_axes = lambda leaf: isinstance(leaf, tuple)
  if mesh is None:
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda _: place, denoiser.logical_axes(), is_leaf=is_axes)
  sharding = lambda axes, leaf: NamedSharding(mesh, partition(axes, leaf.shape, mesh))
  return jax.tree.map(sharding, denoiser.logical_axes(), denoiser.abstract_params(), is_leaf=is_axes)


def constrain(x, mesh: Mesh | None, *axes: str | None):
  """x, laid out over the mesh by its logical axes (inside jit); the partitioner would otherwise guess."""
  if mesh is None or mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, partition(axes, x.shape, mesh)))


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


def replicated(mesh: Mesh) -> NamedSharding:
  """The same value on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
  """Sequences split over data and fsdp; `axis` is where the array has its batch dimension."""
  return NamedSharding(mesh, PartitionSpec(*[None] * axis, BATCH_AXES))


def lay_out(shape: tuple[int, ...], sharding, read: Callable) -> jax.Array:
  """An array of which this process reads only what lies on its own devices, each piece once.

  Args:
    shape: of the whole array.
    sharding: its layout.
    read: of a tuple of slices, one for each dimension, the values there.
  """
  pieces, placed = {}, []
  for device, index in sharding.addressable_devices_indices_map(shape).items():
    bounds = tuple(part.indices(size)[:2] for part, size in zip(index, shape))
    if bounds not in pieces:
      pieces[bounds] = read(tuple(slice(*bound) for bound in bounds))
    placed.append(jax.device_put(pieces[bounds], device))
  array = jax.make_array_from_single_device_arrays(shape, sharding, placed)
  return array.block_until_ready()  # the transfer reads from host memory, which is free after it


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
  """Process that owns each of `rows` rows, int[rows]. indices: of a sharding, device -> (slice of rows,)."""
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
  fetched = {}
  for shard in array.addressable_shards:
    first = shard.index[0].indices(array.shape[0])[0]
    if first not in fetched:
      fetched[first] = np.asarray(shard.data)
  held = {first + i: row for first, part in fetched.items() for i, row in enumerate(part)}
  return np.stack([held[row] for row in rows]) if len(rows) else np.empty((0, *array.shape[1:]), array.dtype)


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


def gather_json(value: Any) -> list:
  """The value that each process gave, in their order; floats arrive bit for bit. A JSON value; collective."""
  if jax.process_count() == 1:
    return [value]
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  lengths = np.ravel(multihost_utils.process_allgather(np.array(len(text), np.int32)))
  padded = np.zeros(1 << int(lengths.max()).bit_length(), np.uint8)  # few lengths: each is compiled
  padded[:len(text)] = text
  texts = multihost_utils.process_allgather(padded).reshape(len(lengths), -1)
  return [json.loads(bytes(row[:length])) for row, length in zip(texts, lengths)]


class RemoteError(RuntimeError):
  """What another process raised, in one line."""


def share_work(count: int, work: Callable[[list[int]], list], own: np.ndarray | None = None) -> list:
  """A JSON value for each of `count` items, known to every process: each works on its own items alone; collective.

  Args:
    count: of the items.
    work: of a list of items, their values. What it raises on one process, every process raises.
    own: this process's items, `own_rows` if they lie on its devices; None deals them out evenly.

  Raises:
    RemoteError: `work` raised on another process; what it raised here is raised as it is.
  """
  own = list(range(jax.process_index(), count, jax.process_count())) if own is None else own.tolist()
  try:
    values, failure = work(own) if own else [], None
  except Exception as error:  # told to the others before it is raised: they would wait for this process
    values, failure = None, error
  told = gather_json({"items": own, "values": values, "error": failure and f"{type(failure).__name__}: {failure}"})
  if failure is not None:
    raise failure
  for process, part in enumerate(told):
    if part["error"]:
      raise RemoteError(f"{part['error']} (in process {process})")
  found = {item: value for part in told for item, value in zip(part["items"], part["values"])}
  return [found[item] for item in range(count)]


def joined() -> bool:
  """Whether this process is one of several."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def is_lost_process(error: Exception) -> bool:
  """Whether an error comes of another process's end: of the collectives or of the coordination service."""
  # As they are written there: a path may well have "gloo" in it, and "temporarily unavailable" is a full process table.
  signs = ("Gloo", "gloo/transport", "NCCL", "oordination", "eartbeat", "barrier", "Barrier", "onnection reset",
           "ocket closed", "UNAVAILABLE", "DEADLINE_EXCEEDED")
  return joined() and any(sign in str(error) for sign in signs)


def is_first_process() -> bool:
  """Whether this process is the one that logs and writes what is written once."""
  return jax.process_index() == 0


def join_processes() -> None:
  """Joins the other processes of this run, if there are any, before any other use of JAX.

  JAX knows Slurm, Open MPI and Cloud TPU by itself; elsewhere each process has JAX_COORDINATOR_ADDRESS (host:port of
  the first), JAX_NUM_PROCESSES and JAX_PROCESS_ID in its environment.

  Raises:
    ValueError: some of these variables are missing or make no sense.
    OSError: the others did not come.
  """
  names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
  values = [os.environ.get(name) for name in names]
  arguments = {}
  if any(values):
    if not all(values):
      missing = names[[bool(value) for value in values].index(False)]
      raise ValueError(f"{missing}: is not set; of several processes each needs all of {', '.join(names)}")
    address, count, index = values
    if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
      raise ValueError(
        f"JAX_PROCESS_ID, JAX_NUM_PROCESSES: must be a number from 0 and the count above it, not {index!r}, {count!r}"
      )
    arguments = {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}
  elif not _in_known_cluster():
    return
  # JAX would catch SIGTERM and go on: here it ends a process, but where `Interruption` waits for it.
  jax.config.update("jax_enable_preemption_service", False)
  # Gloo is only used where the CPU is what computes. A host that is silent for as long as this is taken as dead.
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  try:
    jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=30)
  except Exception as error:  # of several kinds, by what is found or not found
    cause = " ".join(str(error).split())
    raise OSError(f"the processes of this run could not find each other: {cause[:500]}") from error


def may_be_one_of_several() -> bool:
  """Whether `join_processes` would look for others."""
  return bool(os.environ.get("JAX_COORDINATOR_ADDRESS")) or _in_known_cluster()


def _in_known_cluster() -> bool:
  """Whether a cluster that JAX knows started this process, perhaps beside others."""
  tasks = [os.environ.get(name, "1") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")]
  if any(count.isdecimal() and int(count) > 1 for count in tasks):
    return True
  if "cpu" in os.environ.get("JAX_PLATFORMS", "") or importlib.util.find_spec("libtpu") is None:
    return False
  vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
  return any(vendor.read_text().strip() == _TPU_VENDOR for vendor in vendors)  # JAX asks the slice for its workers
