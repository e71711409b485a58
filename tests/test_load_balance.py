"""The load of experts: its numbers, the loss and the update that even it out, and routers that are held in training."""

import dataclasses

from batches import coupled_batch, distillation_batch
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_experts import B, CONFIG, D, E, F, layer, T

import gdsd_jax
from gdsd_jax.models.config import ExpertsConfig
from gdsd_jax.models.experts import Load, load_of, route
from gdsd_jax.models.lora import LoraConfig
from gdsd_jax.objectives.gdsd import Gdsd
from gdsd_jax.objectives.load_balance import balance_loss, balanced_bias, load_metrics
from gdsd_jax.parallel.mesh import make_mesh
from gdsd_jax.runs.model_config import ModelConfig
from gdsd_jax.runs.optimizer import make_optimizer, OptimizerConfig
from gdsd_jax.runs.routers import said_of_routers
from gdsd_jax.runs.state import init_state
from gdsd_jax.runs.step import distillation_step, score_rollouts
from gdsd_jax.runs.weights import make_denoiser


def test_the_load_counts_the_choices_of_real_tokens():
  x, weights, _ = layer()
  real = np.arange(B * T).reshape(B, T) % 3 > 0
  load = load_of(x, weights["router"], weights["router_bias"], CONFIG, jnp.asarray(real))
  chosen, _ = route(x, weights["router"], weights["router_bias"], CONFIG)
  counts = np.bincount(np.asarray(chosen)[real].ravel(), minlength=E)
  np.testing.assert_allclose(load.chosen, counts / counts.sum(), rtol=1e-6)
  scores = 1 / (1 + np.exp(-np.asarray(x, np.float64) @ np.asarray(weights["router"], np.float64)))[real]
  np.testing.assert_allclose(load.share, np.mean(scores / scores.sum(-1, keepdims=True), axis=0), rtol=1e-5)


def test_numbers_of_a_load_are_its_definitions():
  load = Load(jnp.array([[0.25] * 4, [0.5, 0.5, 0, 0]]), jnp.array([[0.25] * 4, [0.7, 0.1, 0.1, 0.1]]))
  told = load_metrics(load)
  assert float(told["router/largest_load"]) == pytest.approx((1 + 2) / 2)
  assert float(told["router/load_entropy"]) == pytest.approx((1 + 0.5) / 2)
  assert float(told["router/idle_experts"]) == 0.25
  assert float(balance_loss(load)) == pytest.approx((1 + 4 * 0.5 * (0.7 + 0.1)) / 2)
  np.testing.assert_allclose(balanced_bias(jnp.zeros((2, 4)), load, 0.1), [[0] * 4, [-0.1, -0.1, 0.1, 0.1]], atol=1e-7)


@pytest.mark.slow
def test_the_balance_loss_is_that_of_transformers():
  """Whose f sums to the number of experts of a token: for one layer it is so many times ours."""
  torch, mixtral = pytest.importorskip("torch"), pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
  x, weights, _ = layer()
  config = ExpertsConfig(count=E, per_token=3, size=F)
  real = np.arange(B * T).reshape(B, T) % 3 > 0
  logits = torch.tensor(np.asarray(x.reshape(-1, D) @ weights["router"]))
  expected = mixtral.load_balancing_loss_func((logits,), E, 3, torch.tensor(real.astype(np.float32)))
  load = load_of(x, weights["router"], None, config, jnp.asarray(real))
  np.testing.assert_allclose(3 * balance_loss(jax.tree.map(lambda leaf: leaf[None], load)), float(expected), rtol=1e-5)


@pytest.fixture(scope="module")
def mixed(tiny_config):
  """(denoiser, params) of three layers, the last two of experts."""
  experts = dataclasses.replace(CONFIG, dense_layers=1, shared_size=8)
  denoiser = gdsd_jax.Denoiser(dataclasses.replace(tiny_config, num_layers=3, experts=experts))
  params = jax.jit(denoiser.init)(jax.random.key(0))
  params["blocks"]["router_bias"] = jnp.linspace(-1, 1, 2 * E).reshape(2, E)
  return denoiser, params


def test_hidden_states_are_the_same_with_the_load_which_leaves_padding_out(mixed):
  denoiser, params = mixed
  tokens = jax.random.randint(jax.random.key(1), (3, 7), 0, 60)
  mask = jnp.arange(7)[None] >= jnp.array([0, 2, 4])[:, None]
  hidden, load = denoiser.hidden_and_load(params, tokens, mask)
  np.testing.assert_array_equal(hidden[mask], denoiser.hidden(params, tokens, mask)[mask])
  assert load.chosen.shape == load.share.shape == (2, E)
  np.testing.assert_allclose(np.asarray(load.chosen) * int(mask.sum()) * CONFIG.per_token % 1, 0, atol=1e-4)
  np.testing.assert_allclose([part.sum(-1) for part in load], 1, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("trains", [True, False])
def test_routers_move_only_where_they_are_trained_and_their_biases_never(mixed, trains):
  denoiser, params = mixed
  denoiser, rng = dataclasses.replace(denoiser, trains_routers=trains), np.random.default_rng(0)
  tokens, masks = rng.integers(0, 50, (4, 8)), rng.random((4, 1, 4)) < 0.5
  batch = jax.tree.map(jnp.asarray, coupled_batch(tokens, np.ones((4, 4), bool), masks))
  optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, weight_decay=0.5), updates=1)
  mesh = make_mesh(1, devices=jax.devices()[:1])
  state = init_state(denoiser, jax.tree.map(jnp.copy, params), optimizer, 0, with_reference=False, mesh=mesh)
  static = dict(denoiser=denoiser, objective=Gdsd(beta=0.0))
  scored = distillation_batch(batch, jnp.array([1.0, -1, 0.5, -0.5]), score_rollouts(params, batch, **static))
  state, told = distillation_step(state, scored, optimizer=optimizer, accumulation=1, **static)
  old, new = params["blocks"], state.params["blocks"]
  assert told["skipped"] == 0 and not np.array_equal(new["expert_up"], old["expert_up"])
  assert np.array_equal(new["router"], old["router"]) != trains
  np.testing.assert_array_equal(new["router_bias"], old["router_bias"])


def test_routers_are_held_unless_asked_for_which_is_told_and_refused_where_there_are_none(mixed, tiny_config):
  config, architecture = ModelConfig(), mixed[0].config
  said = said_of_routers(make_denoiser(config, architecture, None))
  assert "stay as they are; --config.model.train_router=True" in said
  trained = make_denoiser(ModelConfig(train_router=True), architecture, None)
  assert trained.trains_routers and "are trained, too" in said_of_routers(trained)
  assert said_of_routers(make_denoiser(config, tiny_config, None)) is None
  with pytest.raises(ValueError, match="^model.train_router: tiny has no experts, and so no router$"):
    make_denoiser(ModelConfig(train_router=True), tiny_config, None)
  with pytest.raises(ValueError, match="^model.train_router: needs model.lora.rank=0"):
    ModelConfig(train_router=True, lora=LoraConfig(4))
