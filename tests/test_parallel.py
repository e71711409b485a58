"""The mesh, and where the weights of a denoiser lie on it."""

import dataclasses
import importlib.util

import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.models.lora import LoraConfig
from gdsd_jax.parallel.mesh import (
  AXIS_RULES,
  batch_sharding,
  make_mesh,
  MESH_AXES,
  param_shardings,
  replicated,
  slice_of,
)
from gdsd_jax.parallel.processes import may_be_one_of_several
from gdsd_jax.parallel.rows import owners


def leaves_of(axes_tree):
  return jax.tree.leaves(axes_tree, is_leaf=lambda leaf: isinstance(leaf, tuple))


@pytest.mark.parametrize("sizes, shape", [
  ((8, 1, 1), (8, 1, 1)),
  ((2, 2, 2), (2, 2, 2)),
  ((-1, 1, 1), (8, 1, 1)),
  ((-1, 2, 2), (2, 2, 2)),
  ((1, -1, 2), (1, 4, 2)),
  ((2, 4, -1), (2, 4, 1)),
])
def test_mesh_has_the_sizes_asked_for(sizes, shape):
  mesh = make_mesh(*sizes)
  assert dict(mesh.shape) == dict(zip(("data", "fsdp", "tensor"), shape))


def test_mesh_holds_every_device_once():
  assert sorted(device.id for device in make_mesh(2, 2, 2).devices.flat) == list(range(8))


def test_a_rank_that_fsdp_does_not_divide_stays_whole(tiny_denoiser):
  mesh = make_mesh(fsdp=4, tensor=2)
  adapted = dataclasses.replace(tiny_denoiser, lora=LoraConfig(rank=6))
  assert param_shardings(mesh, adapted)["lora"]["gate"]["b"].spec == P(None, None, "tensor")


def test_mesh_is_all_data_by_default():
  assert make_mesh().shape["data"] == len(jax.devices())


def test_mesh_may_use_some_of_the_devices():
  some = jax.devices()[2:4]
  assert set(make_mesh(fsdp=2, devices=some).devices.flat) == set(some)


@pytest.mark.parametrize("sizes", [(3, 1, 1), (2, 2, 1), (4, 4, 1), (-1, 3, 1), (-1, 16, 1)])
def test_sizes_that_do_not_multiply_to_the_devices_are_refused_with_the_numbers(sizes):
  with pytest.raises(ValueError) as caught:
    make_mesh(*sizes)
  named = "mesh.data={}, mesh.fsdp={}, mesh.tensor={}".format(*sizes)
  assert str(caught.value) == f"{named}: their product must be the number of devices, 8"


@pytest.mark.parametrize("sizes", [(-1, -1, -1), (1, -1, -1), (0, 1, 1), (8, -2, 1), (-8, -1, 1)])
def test_sizes_that_are_no_sizes_are_refused_with_the_numbers(sizes):
  with pytest.raises(ValueError) as caught:
    make_mesh(*sizes)
  named = "mesh.data={}, mesh.fsdp={}, mesh.tensor={}".format(*sizes)
  assert str(caught.value) == f"{named}: sizes are positive, and at most one beside mesh.data is -1 (the rest)"


@dataclasses.dataclass(frozen=True)
class FakeTpu:
  """A chip of a slice, with what `mesh_utils` asks of it."""

  id: int
  slice_index: int
  coords: tuple[int, int, int]
  device_kind: str = "TPU v5 lite"
  platform: str = "tpu"
  process_index: int = 0
  core_on_chip: int = 0


def slices_of_tpus(count: int, width: int = 4) -> list[FakeTpu]:
  """Chips of as many slices of width × width, the last slice first, as no run promises an order."""
  places = [(x, y, 0) for y in range(width) for x in range(width)]
  return [FakeTpu(1000 * index + i, index, place) for index in reversed(range(count)) for i, place in enumerate(places)]


@pytest.mark.parametrize("sizes, shape", [
  ((2, 16, 1), (2, 16, 1)), ((-1, 4, 4), (2, 4, 4)), ((-1, -1, 1), (2, 16, 1)), ((4, -1, 2), (4, 4, 2)),
  ((-1, 1, -1), (2, 1, 16)), ((-1, 2, 1), (16, 2, 1)),
])
def test_only_data_crosses_slices(sizes, shape):
  devices = slices_of_tpus(2)
  mesh = make_mesh(*sizes, devices=devices)
  assert mesh.devices.shape == shape and set(mesh.devices.flat) == set(devices)
  slices = np.vectorize(slice_of)(mesh.devices)
  assert (slices == np.repeat([0, 1], shape[0] // 2)[:, None, None]).all()


def test_experts_lie_within_a_slice():
  mesh = make_mesh(-1, -1, 1, devices=slices_of_tpus(3), expert=4)
  assert mesh.axis_names == ("data", "fsdp", "expert", "tensor") and mesh.devices.shape == (3, 4, 4, 1)
  assert (np.vectorize(slice_of)(mesh.devices) == np.arange(3)[:, None, None, None]).all()


@pytest.mark.parametrize("sizes, data", [((1, -1, 1), 1), ((-1, 32, 1), 1), ((1, 8, 4), 1)])
def test_an_axis_that_would_cross_slices_is_refused(sizes, data):
  with pytest.raises(ValueError) as caught:
    make_mesh(*sizes, devices=slices_of_tpus(2))
  assert str(caught.value) == f"mesh.data={data}: must be a multiple of the 2 slices, which no other axis crosses"


def test_hosts_of_gpus_are_no_slices():
  """JAX numbers them alike, and weights are split over several hosts there."""
  gpus = [dataclasses.replace(tpu, platform="gpu", device_kind="NVIDIA H100") for tpu in slices_of_tpus(2, width=2)]
  assert make_mesh(-1, -1, 1, devices=gpus).devices.shape == (1, 8, 1)
  by_host = make_mesh(2, 4, 1, devices=gpus).devices
  assert [[gpu.slice_index for gpu in row] for row in by_host[..., 0]] == [[0] * 4, [1] * 4]


def test_data_and_another_axis_may_both_be_the_rest():
  assert make_mesh(-1, -1, 2).devices.shape == (1, 4, 2)


@pytest.mark.parametrize("change", [{}, {"qkv_bias": True}, {"tied_head": True}])
def test_every_logical_axis_of_the_transformer_has_a_rule(tiny_config, change):
  denoiser = Denoiser(dataclasses.replace(tiny_config, **change))
  axes = {axis for leaf in leaves_of(denoiser.logical_axes()) for axis in leaf}
  assert axes <= AXIS_RULES.keys()


@pytest.mark.parametrize("change", [{}, {"qkv_bias": True}, {"tied_head": True}])
def test_every_weight_names_as_many_axes_as_it_has(tiny_config, change):
  denoiser = Denoiser(dataclasses.replace(tiny_config, **change))
  ranks = [len(spec.shape) for spec in jax.tree.leaves(denoiser.abstract_params())]
  assert [len(axes) for axes in leaves_of(denoiser.logical_axes())] == ranks


def test_every_rule_leads_to_an_axis_of_the_mesh():
  led_to = jax.tree.leaves(list(AXIS_RULES.values()))
  assert set(led_to) <= set(make_mesh(expert=2, context=2).axis_names) == {*MESH_AXES, "context", "expert"}
  assert make_mesh().axis_names == MESH_AXES


def test_weights_are_split_by_their_axes(tiny_denoiser):
  shardings = param_shardings(make_mesh(2, 2, 2), tiny_denoiser)
  assert {
    "embedding": shardings["embedding"].spec,
    "query": shardings["blocks"]["query"].spec,
    "output": shardings["blocks"]["output"].spec,
    "down": shardings["blocks"]["down"].spec,
    "final_norm": shardings["final_norm"].spec,
    "head": shardings["head"].spec,
  } == {
    "embedding": P("tensor", "fsdp"),
    "query": P(None, "fsdp", "tensor", None),
    "output": P(None, "tensor", None, "fsdp"),
    "down": P(None, "tensor", "fsdp"),
    "final_norm": P("fsdp"),
    "head": P("fsdp", "tensor"),
  }


def test_without_a_mesh_every_weight_lies_on_the_default_device(tiny_denoiser):
  shardings = jax.tree.leaves(param_shardings(None, tiny_denoiser))
  assert {sharding.device_set == {jax.devices()[0]} for sharding in shardings} == {True}


@pytest.mark.parametrize("sizes, change, message", [
  ((1, 2, 4), {}, "mesh.tensor=4 does not divide the model's kv_heads axis of 2"),
  ((1, 8, 1), {"hidden_size": 36}, "mesh.fsdp=8 does not divide the model's embed axis of 36"),
  ((4, 1, 2), {"vocab_size": 65}, "mesh.tensor=2 does not divide the model's vocab axis of 65"),
])
def test_a_mesh_that_does_not_divide_the_model_is_refused_with_the_numbers(tiny_config, sizes, change, message):
  denoiser = Denoiser(dataclasses.replace(tiny_config, **change))
  with pytest.raises(ValueError) as caught:
    param_shardings(make_mesh(*sizes), denoiser)
  assert str(caught.value) == message


class FakeDevice:
  def __init__(self, process_index):
    self.process_index = process_index


def test_rows_that_two_processes_hold_are_dealt_out():
  indices = {FakeDevice(process): (slice(start, start + 2),) for process in (0, 1) for start in (0, 2)}
  assert owners(indices, 4).tolist() == [0, 1, 0, 1]


def test_rows_that_one_process_holds_are_its_own():
  indices = {FakeDevice(0): (slice(0, 2),), FakeDevice(1): (slice(2, None),)}
  assert owners(indices, 4).tolist() == [0, 0, 1, 1]


def test_a_batch_is_split_over_data_and_fsdp():
  batch = jax.device_put(np.zeros((8, 3)), batch_sharding(make_mesh(2, 2, 2)))
  assert {shard.data.shape for shard in batch.addressable_shards} == {(2, 3)}


def test_replicated_values_are_whole_on_every_device():
  value = jax.device_put(np.zeros((8, 3)), replicated(make_mesh(2, 2, 2)))
  assert [shard.data.shape for shard in value.addressable_shards] == [(8, 3)] * 8


def test_a_machine_without_tpus_is_not_asked_for_other_processes(monkeypatch):
  for name in ("JAX_PLATFORMS", "JAX_COORDINATOR_ADDRESS", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(importlib.util, "find_spec", {"libtpu": None}.get)
  assert not may_be_one_of_several()
