"""TPU slices that add up their own part of a gradient: here the halves of eight devices are taken for two slices."""

import dataclasses

from batches import distillation_batch
from conftest import slow
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_step import GDSD, some_rollouts

from gdsd_jax.models.config import ExpertsConfig
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.models.lora import LoraConfig
from gdsd_jax.models.quantised import QuantizeConfig
from gdsd_jax.objectives.own import make_objective
from gdsd_jax.objectives.scores import Scores
from gdsd_jax.parallel import slices
from gdsd_jax.parallel.mesh import batch_sharding, make_mesh, param_shardings
from gdsd_jax.runs import gradient
from gdsd_jax.runs.gradient import loss_and_gradient
from gdsd_jax.runs.optimizer import make_optimizer, OptimizerConfig
from gdsd_jax.runs.state import init_state

MODELS = {
  "full": {}, "adapter": {"lora": LoraConfig(rank=4, dropout=0.0)},
  "quantised": {"lora": LoraConfig(rank=4, dropout=0.0), "quantize": QuantizeConfig("int8", 8)},
}
CONFIGS = {
  "tied": {"tied_head": True}, "in blocks": {"block_length": 4, "positions_skip_padding": True},
  "experts": {"experts": ExpertsConfig(count=8, per_token=2, size=16)},
}
OBJECTIVES = {"gdsd": GDSD, "tlc": make_objective("gdsd_tlc", dict(center_top_k=8, center_gradient=True))}


@pytest.fixture
def two_slices(monkeypatch):
  monkeypatch.setattr(slices, "slice_of", lambda device: device.id // 4)


def some_batch(objective):
  """Rollouts with scores of no model: a gradient takes their values as they are."""
  rollouts, rng = some_rollouts(), np.random.default_rng(1)
  draw = lambda: rng.normal(-2, 1, rollouts.views.masks.shape).astype(np.float32)
  scores = Scores(draw(), draw() if objective.scoring.center_top_k else None)
  return distillation_batch(rollouts, np.linspace(-1, 1, len(rollouts.tokens), dtype=np.float32), scores, scores, 4)


def gradient_of(denoiser: Denoiser, sizes, objective, accumulation=2):
  """The gradient of the first update, over a mesh of these sizes, as it lies there."""
  expert = {"expert": sizes[3]} if sizes[3:] else {}
  mesh = make_mesh(*sizes[:3], devices=jax.devices()[:int(np.prod(sizes))], **expert)
  denoiser = dataclasses.replace(denoiser, mesh=mesh)
  params = jax.jit(denoiser.init, out_shardings=param_shardings(mesh, denoiser))(jax.random.key(0))
  if denoiser.lora:  # B is zero at first, and with it the gradient by A
    params["lora"] = jax.tree.map(lambda leaf: leaf + 0.1, params["lora"])
  optimizer = make_optimizer(OptimizerConfig(), updates=1)
  state = init_state(denoiser, params, optimizer, seed=0, with_reference=False, mesh=mesh)
  batch = jax.device_put(some_batch(objective), batch_sharding(mesh))
  compute = jax.jit(lambda state, batch: loss_and_gradient(denoiser, objective, state, batch, accumulation))
  (loss, _), gradient, _ = compute(state, batch)
  return loss, gradient


@pytest.mark.parametrize("model, config, sizes, objective", [
  ("full", None, (4, 1, 2), "tlc"), slow("adapter", None, (2, 2, 2), "gdsd"),
  slow("full", None, (2, 2, 2), "gdsd"), slow("full", "tied", (2, 4, 1), "gdsd"),
  slow("quantised", None, (2, 4, 1), "gdsd"),
  slow("adapter", "in blocks", (2, 2, 2), "tlc"), slow("full", "experts", (2, 1, 1, 4), "gdsd"),
  slow("adapter", "experts", (4, 2, 1), "gdsd"),
])
def test_slices_add_up_the_gradient_of_one_device(tiny_config, monkeypatch, model, config, sizes, objective):
  config = dataclasses.replace(tiny_config, **(CONFIGS[config] if config else {}))
  denoiser = Denoiser(config, remat="full", **MODELS[model])
  loss, expected = gradient_of(denoiser, (1, 1, 1), OBJECTIVES[objective])
  monkeypatch.setattr(slices, "slice_of", lambda device: device.id // 4)
  apart = []
  monkeypatch.setattr(gradient, "sum_over_slices", lambda *given: apart.append(1) or slices.sum_over_slices(*given))
  again, found = gradient_of(denoiser, sizes, OBJECTIVES[objective])
  assert len(apart) == (config.experts is None)
  np.testing.assert_allclose(again, loss, rtol=1e-5)
  largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(expected))
  assert largest > 0
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5 * largest), found, expected)


def test_each_slice_works_by_itself(two_slices):
  """What work sums over its batch is the slice's own; the total lies as it is asked to."""
  mesh = make_mesh(4, 2, 1)
  inner = slices.within_slices(mesh)
  assert dict(inner.shape) == {"slice": 2, "data": 2, "fsdp": 2, "tensor": 1}
  x = jnp.arange(16.0)
  lies = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
  square = lambda part: jnp.full(4, jnp.sum(part) ** 2)
  total = jax.jit(lambda x: slices.sum_over_slices(square, x, lies, mesh))(x)
  np.testing.assert_array_equal(total, [28.0**2 + 92.0**2] * 4)
  assert total.sharding.is_equivalent_to(lies, 1)


def test_each_slice_has_its_own_random_key(two_slices):
  mesh = make_mesh(2, 4, 1)
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  draw = lambda part, key: {"sum": jnp.sum(part), "drawn": jax.random.uniform(key, (3,))}
  key = jax.random.key(0)
  found = jax.jit(lambda x, key: slices.sum_over_slices(draw, x, {"sum": whole, "drawn": whole}, mesh, key))(
    jnp.ones(8), key)
  assert found["sum"] == 8
  expected = sum(jax.random.uniform(own, (3,)) for own in jax.random.split(key, 2))
  np.testing.assert_allclose(found["drawn"], expected, rtol=1e-6)
