"""Mixtures of experts: the router against its formulas, the grouped product against a loop over experts, meshes."""

import dataclasses

from batches import coupled_batch, distillation_batch
from conftest import slow
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdsd_jax
from gdsd_jax.models.config import ExpertsConfig
from gdsd_jax.models.experts import mixture, route
from gdsd_jax.models.lora import add_adapter, EXPERT_LEAVES, LoraConfig
from gdsd_jax.objectives.gdsd import Gdsd
from gdsd_jax.parallel.mesh import batch_sharding, make_mesh, param_shardings
from gdsd_jax.runs.optimizer import make_optimizer, OptimizerConfig
from gdsd_jax.runs.state import init_state
from gdsd_jax.runs.step import distillation_step, score_rollouts

B, T, D, E, F = 8, 6, 16, 8, 12
CONFIG = ExpertsConfig(count=E, per_token=3, size=F, router="sigmoid", normalised=True, scale=2.5, selection_bias=True,
                       groups=4, groups_per_token=2)
LORA = LoraConfig(2, 4.0, 0.0, ("experts",))


def random(seed=0, *shapes):
  rng = np.random.default_rng(seed)
  return [jnp.asarray(0.4 * rng.normal(size=shape).astype(np.float32)) for shape in shapes]


def layer():
  """(x, weights, factors) by which experts 4 and 5 get no token, and the others get few or many."""
  x, router, gate, up, down = random(0, (B, T, D), (D, E), (E, D, F), (E, D, F), (E, F, D))
  bias = jnp.array([0, 0, 3, 0, -9, -9, 0, 1.0])
  weights = {"router": router, "router_bias": bias, "expert_gate": gate, "expert_up": up, "expert_down": down}
  factors = {}
  for name in EXPERT_LEAVES:
    a, b = random(len(factors) + 1, (*weights[name].shape[:2], 2), (E, 2, weights[name].shape[2]))
    factors[name] = {"a": a, "b": b}
  return x, weights, factors


def one_by_one(x, weights, factors):
  chosen, shares = route(x, weights["router"], weights["router_bias"], CONFIG)
  total = 0
  for expert in range(E):
    gate, up, down = (weights[name][expert] + LORA.scale * factors[name]["a"][expert] @ factors[name]["b"][expert]
                      for name in EXPERT_LEAVES)
    share = jnp.sum(jnp.where(chosen == expert, shares, 0), axis=-1, keepdims=True)
    total += share * ((jax.nn.silu(x @ gate) * (x @ up)) @ down)
  return total


def value_and_gradient(function):
  return jax.jit(jax.value_and_grad(lambda *arguments: jnp.sum(jnp.sin(function(*arguments))), (0, 1, 2)))


def assert_equal(actual, expected):
  for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
    np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5 * float(np.abs(e).max()))


def test_a_grouped_product_is_a_loop_over_experts_some_of_which_have_no_token():
  chosen, _ = route(layer()[0], layer()[1]["router"], layer()[1]["router_bias"], CONFIG)
  tokens = np.bincount(np.ravel(chosen), minlength=E)
  assert tokens.min() == 0 and tokens.max() == B * T
  mixed = value_and_gradient(lambda *arguments: mixture(*arguments, CONFIG, LORA, None))
  assert_equal(mixed(*layer()), value_and_gradient(one_by_one)(*layer()))


@pytest.mark.slow
@pytest.mark.parametrize("sizes, expert", [
  ((8, 1, 1), 1), ((4, 1, 1), 2), ((1, 2, 1), 4), ((2, 1, 1), 4), ((1, 2, 2), 2), ((1, 1, 2), 4)])
def test_experts_are_the_same_over_every_mesh(sizes, expert):
  mesh, (x, weights, factors) = make_mesh(*sizes, expert=expert), layer()
  mixed = value_and_gradient(lambda *arguments: mixture(*arguments, CONFIG, LORA, mesh))
  assert_equal(mixed(x, weights, factors), value_and_gradient(one_by_one)(x, weights, factors))
  few = jax.jit(lambda x: mixture(x, weights, factors, CONFIG, LORA, mesh))(x[:3])  # that no axis divides
  assert_equal(few, one_by_one(x[:3], weights, factors))


def test_the_router_chooses_from_groups_with_its_bias_and_weighs_without():
  x, weights, _ = layer()
  chosen, shares = map(np.asarray, route(x, weights["router"], weights["router_bias"], CONFIG))
  scores = 1 / (1 + np.exp(-np.float64(x) @ np.float64(weights["router"])))
  for token in np.ndindex(B, T):
    wanted = scores[token] + np.float64(weights["router_bias"])
    groups = wanted.reshape(4, 2).sum(axis=1).argsort()[-2:]
    wanted[[expert for expert in range(E) if expert // 2 not in groups]] = -np.inf
    expected = wanted.argsort()[-3:]
    assert set(chosen[token]) == set(expected)
    own = scores[token][chosen[token]]
    np.testing.assert_allclose(shares[token], 2.5 * own / own.sum(), rtol=1e-5)


@pytest.mark.parametrize("normalised", [True, False])
def test_a_softmax_is_over_all_experts(normalised):
  x, weights, _ = layer()
  config = ExpertsConfig(count=E, per_token=2, size=F, normalised=normalised)
  chosen, shares = map(np.asarray, route(x, weights["router"], None, config))
  scores = np.asarray(jax.nn.softmax(x @ weights["router"], axis=-1))
  expected = -np.sort(-scores, axis=-1)[..., :2]
  np.testing.assert_allclose(np.take_along_axis(scores, chosen, -1), expected, rtol=1e-6)
  np.testing.assert_allclose(shares, expected / (expected.sum(-1, keepdims=True) if normalised else 1), rtol=1e-5)


@pytest.fixture(scope="module")
def mixed_config(tiny_config):
  return dataclasses.replace(
    tiny_config, num_layers=3, experts=dataclasses.replace(CONFIG, dense_layers=1, shared_size=16), qk_norm=True,
    rotary_share=0.5)


@pytest.mark.parametrize("changes, message", [
  (dict(router="top"), "the experts' router is 'top'; known are softmax, sigmoid"),
  (dict(groups=3), "8 experts cannot be chosen from 2 of 3 equal groups"),
  (dict(per_token=5), "5 experts of a token are more than the 4"), (dict(count=0), "count of experts must not be 0"),
  (dict(scale="1"), "scale of experts must be a positive number"), (dict(dense_layers=3), "dense_layers"),
])
def test_what_cannot_be_is_said(mixed_config, changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(mixed_config, experts=dataclasses.replace(mixed_config.experts, **changes))


@pytest.mark.parametrize("mesh, message", [
  (dict(data=5, expert=3), "their product must be the number of devices, 8"),
  (dict(data=1, expert=8), None), (dict(data=2, expert=4), None),
])
def test_an_axis_of_experts_divides_them_and_the_devices(mixed_config, mesh, message):
  sixteen = dataclasses.replace(mixed_config, experts=dataclasses.replace(mixed_config.experts, count=12))
  if message:
    with pytest.raises(ValueError, match=message):
      make_mesh(**mesh)
    return
  mesh = make_mesh(**mesh)
  shardings = param_shardings(mesh, gdsd_jax.Denoiser(mixed_config, mesh=mesh))
  assert shardings["blocks"]["expert_up"].spec[1] == "expert"
  if mesh.shape["expert"] == 8:
    with pytest.raises(ValueError, match="^mesh.expert=8 does not divide the model's experts axis of 12"):
      param_shardings(mesh, gdsd_jax.Denoiser(sixteen, mesh=mesh))


def test_a_model_without_experts_has_no_axis_of_them(tiny_config):
  with pytest.raises(ValueError, match="^mesh.expert: must be 1 for a model without experts"):
    gdsd_jax.Denoiser(tiny_config, mesh=make_mesh(data=2, expert=4))


@pytest.mark.parametrize("lora, message", [
  (dict(targets=("experts",), dropout=0.1), "^model.lora.dropout: must be 0 where model.lora.targets names experts"),
  (dict(targets=("experts",), rank=13), "^model.lora.rank: 13 is more than the 12"),
])
def test_adapters_of_experts_are_checked(mixed_config, lora, message):
  with pytest.raises(ValueError, match=message):
    gdsd_jax.Denoiser(mixed_config, lora=LoraConfig(**dict(rank=2, dropout=0.0) | lora))


def test_a_dense_model_has_no_experts_to_adapt(tiny_config):
  with pytest.raises(ValueError, match="^model.lora.targets: names experts, and the model has none"):
    gdsd_jax.Denoiser(tiny_config, lora=LORA)


@pytest.mark.parametrize("sizes", [slow((4, 1, 1)), slow((1, 2, 1)), slow((1, 1, 2))])
def test_a_model_of_experts_is_the_same_over_a_mesh(mixed_config, sizes):
  """Hidden states and gradients of the whole network, its first layer dense, with an expert axis."""
  tokens = np.arange(8 * 10).reshape(8, 10) % 50
  values = []
  for mesh in (None, make_mesh(*sizes, expert=8 // int(np.prod(sizes)))):
    denoiser = gdsd_jax.Denoiser(mixed_config, mesh=mesh, remat="full")
    init = jax.jit(denoiser.init, out_shardings=param_shardings(mesh, denoiser))
    loss = lambda params, denoiser=denoiser: jnp.sum(jnp.sin(denoiser.hidden(params, tokens)))
    values.append(jax.jit(jax.value_and_grad(loss))(init(jax.random.key(0))))
  assert_equal(*values[::-1])


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LoraConfig(2, 4.0, 0.0, ("q", "gate", "experts"))])
def test_rollouts_scores_and_an_update_are_the_same_over_an_axis_of_experts(mixed_config, lora):
  rng, found = np.random.default_rng(0), []
  prompt, masks = rng.integers(0, 50, (8, 4)), rng.random((8, 2, 8)) < 0.5
  tokens = np.concatenate([prompt, rng.integers(0, 50, (8, 8))], axis=1)
  objective, optimizer = Gdsd(beta=1e-3), make_optimizer(OptimizerConfig(), updates=1)
  sampler = gdsd_jax.SamplerConfig(completion_length=8, steps=8, block_length=4, temperature=0.7)
  for mesh in (make_mesh(1, devices=jax.devices()[:1]), make_mesh(1, 2, 1, expert=4), make_mesh(2, 1, 2, expert=2)):
    denoiser = gdsd_jax.Denoiser(mixed_config, mesh=mesh, remat="full")
    params = jax.jit(denoiser.init, out_shardings=param_shardings(mesh, denoiser))(jax.random.key(0))
    if lora is not None:
      denoiser, params = add_adapter(denoiser, params, lora, jax.random.key(1))
    put = lambda x, mesh=mesh: jax.device_put(x, batch_sharding(mesh))
    rollout = gdsd_jax.sample(denoiser, params, put(prompt), None, jax.random.key(2), sampler)
    state = init_state(denoiser, params, optimizer, seed=0, with_reference=True, mesh=mesh)
    rollouts = jax.tree.map(put, coupled_batch(tokens, np.ones((8, 4), bool), masks))
    static = dict(denoiser=denoiser, objective=objective)
    scores = score_rollouts(state.student_params, rollouts, **static)
    advantages = put(np.array([1, -1, 0.5, -0.5] * 2, np.float32))
    batch = distillation_batch(rollouts, advantages, scores, scores, group_size=4, lengths=put(np.full(8, 8, np.int32)))
    _, metrics = distillation_step(state, batch, optimizer=optimizer, accumulation=1, **static)
    found.append(jax.device_get((rollout.tokens, scores.plain, metrics["loss"], metrics["grad_norm"])))
  for tokens, *values in found[1:]:
    np.testing.assert_array_equal(tokens, found[0][0])
    for a, e in zip(values, found[0][1:]):
      np.testing.assert_allclose(a, e, rtol=2e-5, atol=1e-5)
