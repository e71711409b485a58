"""The device mesh, and the one table from logical axes to mesh axes: where every array lies."""

from collections.abc import Callable
import math
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gdsd_jax.checks import require

MESH_AXES = ("data", "fsdp", "tensor")
# Further axes, before the last, of a mesh that experts, or the tokens of a sequence, are split over; others lack them.
CONTEXT, EXPERT = "context", "expert"
_BATCH_AXES = ("data", "fsdp", EXPERT)  # sequences are split over all: fsdp shards weights and batch alike

# Logical axis of a weight or activation (declared in models/weights.py) -> mesh axis it is split over, or several.
AXIS_RULES = {
  "batch": _BATCH_AXES, "batch_over_data": ("data", EXPERT), "tokens": CONTEXT,
  "batch_over_context": ("data", "fsdp", CONTEXT, EXPERT),  # of passes in which no sequence is split
  "layers": None, "embed": "fsdp", "vocab": "tensor",
  "heads": "tensor", "kv_heads": "tensor", "head_dim": None, "mlp": "tensor",
  "experts": EXPERT, "expert_mlp": "tensor", "routed": None,
  "lora_rank": None,
  "lora_rank_of_b": "fsdp",  # B of most projections has no embed axis, and with its moments should not lie whole
}
# Axes that stay whole where the mesh does not divide them. Any other is refused.
_MAY_STAY_WHOLE = ("batch", "batch_over_data", "batch_over_context", "tokens", "lora_rank_of_b")


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices=None, expert: int = 1,
              context: int = 1) -> Mesh:
  """Mesh of axes data, fsdp and tensor over `devices` (all by default); one size may be -1, "the rest".

  Beside another one data may be -1, too: it is then the number of TPU slices, 1 where there is one. Only data crosses
  slices, all other axes lie within one. Other than 1, `context` and `expert` are the sizes of more axes, before tensor:
  of each sequence's tokens, and of experts and sequences. Neighbours on the last axis are neighbours on the
  interconnect (`mesh_utils`): tensor talks most, data least.
  Raises ValueError where the sizes do not multiply to the number of devices, or data is no multiple of the slices.
  """
  devices = jax.devices() if devices is None else devices
  slices = len(set(map(slice_of, devices)))
  sizes = {"data": data, "fsdp": fsdp, CONTEXT: context, EXPERT: expert, "tensor": tensor}
  sizes = {axis: size for axis, size in sizes.items() if axis in MESH_AXES or size != 1}
  named, given = ", ".join(f"mesh.{axis}={size}" for axis, size in sizes.items()), list(sizes.values())
  valid = given[1:].count(-1) <= 1 and all(size >= 1 or size == -1 for size in given)
  require(valid, named, "sizes are positive, and at most one beside mesh.data is -1 (the rest)")
  if data == -1 and -1 in given[1:]:
    given[0] = slices
  if -1 in given:
    given[given.index(-1)] = max(len(devices) // math.prod(size for size in given if size != -1), 1)
  require(math.prod(given) == len(devices), named, f"their product must be the number of devices, {len(devices)}")
  require(given[0] % slices == 0, f"mesh.data={given[0]}",
          f"must be a multiple of the {slices} slices, which no other axis crosses")
  # Where an axis is no product of the slice's own axes, one of these is split between two of the mesh.
  split = dict(allow_split_physical_axes=True)
  if slices == 1:
    return Mesh(mesh_utils.create_device_mesh(given, devices, **split), tuple(sizes))
  within, across = [given[0] // slices, *given[1:]], [slices, *[1] * len(given[1:])]
  return Mesh(mesh_utils.create_hybrid_device_mesh(within, across, devices, **split), tuple(sizes))


def slice_of(device) -> int:
  """Index of the TPU slice that a device belongs to; 0 of all devices that are not TPUs.

  JAX numbers the hosts of GPUs in the same way, but weights are often split over several of them. Their devices are
  ordered by host, so that there, too, data is the axis that crosses hosts where the others fill one.
  """
  return getattr(device, "slice_index", 0) if device.platform == "tpu" else 0


def device_of(mesh: Mesh | None):
  """A device of those that compute: of the mesh, or without one the default device."""
  return jax.devices()[0] if mesh is None else mesh.devices.flat[0]


def rounds_finely(dtype: str, platform: str) -> bool:
  """Whether products of this dtype are in full float32: accelerators take float32 numbers as coarser ones."""
  return dtype == "float32" and platform == "cpu"


def split_into(axis: str | None, mesh: Mesh | None) -> int:
  """How many parts a mesh splits a logical axis into."""
  names = () if mesh is None else axis_of(axis, mesh) or ()
  return math.prod(mesh.shape[name] for name in ((names,) if isinstance(names, str) else names))


def axis_of(axis: str | None, mesh: Mesh) -> str | tuple[str, ...] | None:
  """The axis of this mesh, or several, that a logical axis is split over; None for none."""
  rule = AXIS_RULES[axis] if axis else None
  names = tuple(name for name in ((rule,) if isinstance(rule, str) else rule or ()) if name in mesh.shape)
  return names if len(names) > 1 else next(iter(names), None)


def parts_of(axis: str | None, size: int, mesh: Mesh | None) -> int:
  """Into how many parts a mesh splits a logical axis of this size; 1 where it stays whole."""
  parts = split_into(axis, mesh)
  return 1 if size % parts else parts


def rows_axis(count: int, mesh: Mesh | None) -> str:
  """The logical axis of a batch of so many whole sequences: over context, too, where that divides them."""
  return "batch" if count % split_into("batch_over_context", mesh) else "batch_over_context"


def partition(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
  """Mesh axes of an array with these logical axes. Raises ValueError where the mesh does not divide one."""
  split = []
  for axis, size in zip(axes, shape):
    mesh_axes, shards = axis_of(axis, mesh), split_into(axis, mesh)
    if size % shards and axis not in _MAY_STAY_WHOLE:
      raise ValueError(f"mesh.{mesh_axes}={shards} does not divide the model's {axis} axis of {size}")
    split.append(None if size % shards else mesh_axes)
  return PartitionSpec(*split)


def param_shardings(mesh: Mesh | None, denoiser):
  """Tree of shardings for the parameters of a denoiser; without a mesh, the default device for each."""
  def sharding(axes, leaf):
    if mesh is None:
      return jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return NamedSharding(mesh, partition(axes, leaf.shape, mesh))

  is_axes = lambda leaf: isinstance(leaf, tuple)
  return jax.tree.map(sharding, denoiser.logical_axes(), denoiser.abstract_params(), is_leaf=is_axes)


def constrain(x, mesh: Mesh | None, *axes: str | None):
  """x, laid out over the mesh by its logical axes (inside jit); the partitioner would otherwise guess."""
  if mesh is None or mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, partition(axes, x.shape, mesh)))


def on_chips(compute: Callable, mesh: Mesh, arrays: tuple, axes: tuple):
  """compute(*arrays) on each chip for its parts of them; the result is laid out as the first, which is no tree.

  The others may be trees of arrays. `axes` has, for each, the first logical axes of its arrays; the rest is not split.
  """
  split = lambda axes, tree: jax.tree.map(lambda x: partition(axes, x.shape, mesh), tree)
  specs = tuple(map(split, axes, arrays))
  return jax.shard_map(compute, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)(*arrays)


def gather_over_fsdp(weights, axes, x, mesh: Mesh | None):
  """(weights, x): a tree of weights in the dtype of x, gathered over fsdp when x is there, still split otherwise.

  Left to itself XLA overlaps the gather with the product, piece by piece, and the sum over the pieces goes to memory
  and back for each. `axes` is the tree of logical axes of the weights, or of their stack; vectors stay as they are.
  """
  if mesh is not None and mesh.size > 1:
    # Tied to x, since JAX would otherwise gather all layers' frozen weights before the first layer, and keep them.
    weights, x = jax.lax.optimization_barrier((weights, x))

  def gather(weight, axes):
    if weight.ndim < 2:
      return weight
    axes = getattr(axes, "qvalue", axes)
    split = [axis if AXIS_RULES[axis] in ("tensor", EXPERT) else None for axis in axes[-weight.ndim:]]
    # A router's products are in float32. A quantised weight is gathered as it is, numbers and scales.
    weight = weight if "routed" in axes else weight.astype(x.dtype)
    return jax.tree.map(lambda part: constrain(part, mesh, *split), weight)

  return jax.tree.map(gather, weights, axes, is_leaf=is_quantised), x


def is_quantised(weight: Any) -> bool:
  """Whether a leaf of the parameters is a `qwix.QArray`, numbers and scales that lie alike (models/quantised.py).

  They are pytrees: `jax.tree.map` wants this as its `is_leaf`.
  """
  return hasattr(weight, "qvalue")


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
  """Axes of a mesh that sequences are split over."""
  return tuple(axis for axis in _BATCH_AXES if axis in mesh.shape)


def whole_batch(count: int, mesh: Mesh, axis: str = "batch") -> int:
  """The least number of sequences, `count` or more, that splits evenly over the mesh by this logical axis."""
  shards = split_into(axis, mesh)
  return math.ceil(count / shards) * shards


def replicated(mesh: Mesh) -> NamedSharding:
  """The same value on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Sequences, the first axis of an array, split over data and fsdp."""
  return NamedSharding(mesh, PartitionSpec(batch_axes(mesh)))
