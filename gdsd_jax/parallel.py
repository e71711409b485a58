"""Where arrays live: the device mesh and the one table from logical axes to mesh axes."""

import math

import jax
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis of a weight (declared in models/transformer.py) -> mesh axis it is split over.
AXIS_RULES = {
  "layers": None,
  "embed": "fsdp",
  "vocab": "tensor",
  "heads": "tensor",
  "kv_heads": "tensor",
  "head_dim": None,
  "mlp": "tensor",
  "lora_rank": None,
}

# Sequences are split over both of these: fsdp shards weights and batch alike.
BATCH_AXES = ("data", "fsdp")


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
  """Mesh of axes data, fsdp and tensor over `devices` (all by default); one size may be -1, "the rest".

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
  return Mesh(mesh_utils.create_device_mesh(sizes, devices), MESH_AXES)


def param_shardings(mesh: Mesh | None, denoiser):
  """Tree of shardings for the parameters of a denoiser; without a mesh, the default device for each."""
  is_axes = lambda leaf: isinstance(leaf, tuple)
  if mesh is None:
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda _: place, denoiser.logical_axes(), is_leaf=is_axes)

  def sharding(axes, spec):
    mesh_axes = [AXIS_RULES[axis] for axis in axes]
    for axis, mesh_axis, size in zip(axes, mesh_axes, spec.shape):
      if mesh_axis and size % mesh.shape[mesh_axis]:
        raise ValueError(f"mesh.{mesh_axis}={mesh.shape[mesh_axis]} does not divide the model's {axis} axis of {size}")
    return NamedSharding(mesh, PartitionSpec(*mesh_axes))

  return jax.tree.map(sharding, denoiser.logical_axes(), denoiser.abstract_params(), is_leaf=is_axes)


def replicated(mesh: Mesh) -> NamedSharding:
  """The same value on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
  """Sequences split over data and fsdp; `axis` is where the array has its batch dimension."""
  return NamedSharding(mesh, PartitionSpec(*[None] * axis, BATCH_AXES))
