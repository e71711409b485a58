"""The distillation step: exact log-ratios, accumulation, skipped updates, shardings."""

import dataclasses
import functools

from batches import coupled_batch, distillation_batch
import chex
from conftest import slow
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gdsd_jax.diffusion.forward import rollout_masks
from gdsd_jax.objectives.diagnostics import policy_entropy
from gdsd_jax.objectives.own import make_objective
from gdsd_jax.objectives.scores import Scores, view_scores
from gdsd_jax.parallel.mesh import batch_sharding, make_mesh, param_shardings
from gdsd_jax.runs.config_dict import base_config, run_config
from gdsd_jax.runs.gradient import cut, join
from gdsd_jax.runs.optimizer import make_optimizer, OptimizerConfig
from gdsd_jax.runs.state import init_state, state_shardings, sync_reference
from gdsd_jax.runs.step import distillation_step, score_rollouts

N, P, L, M = 8, 4, 8, 2
GDSD = make_objective("gdsd", {})


def adamw(moments_dtype="float32"):
  return make_optimizer(OptimizerConfig(learning_rate=1e-3, moments_dtype=moments_dtype), updates=1)


@pytest.fixture(scope="module")
def optimizer():
  return adamw()


@pytest.fixture(scope="module")
def one_device():
  return make_mesh(1, 1, 1, jax.devices()[:1])


def make_state(denoiser, optimizer, mesh, dtype="float32"):
  denoiser = dataclasses.replace(denoiser, dtype=dtype, param_dtype=dtype)
  params = jax.device_put(fresh_params(denoiser), param_shardings(mesh, denoiser))
  return denoiser, init_state(denoiser, params, optimizer, seed=0, with_reference=True, mesh=mesh)


@functools.cache
def fresh_params(denoiser):
  return jax.device_get(jax.jit(denoiser.init)(jax.random.key(0)))


@functools.cache
def some_rollouts():
  rng = np.random.default_rng(0)
  confidence = rng.random((N, L), np.float32)
  masks = jax.jit(rollout_masks, static_argnums=(2, 3))(jax.random.key(1), confidence, M, 4)
  prompt_mask = np.ones((N, P), bool)
  prompt_mask[::2, 0] = False
  return jax.device_get(coupled_batch(rng.integers(0, 60, (N, P + L)), prompt_mask, np.asarray(masks)))


def make_batch(denoiser, state, objective, mesh, accumulation=1):
  rollouts = jax.device_put(some_rollouts(), batch_sharding(mesh))
  advantages = jax.device_put(np.linspace(-1, 1, N, dtype=np.float32), batch_sharding(mesh))
  scores = score_rollouts(
    state.params, rollouts, denoiser=denoiser, objective=objective, accumulation=accumulation
  )
  lengths = jax.device_put(jnp.arange(1, N + 1), batch_sharding(mesh))
  return distillation_batch(rollouts, advantages, scores, scores, 4, rewards=1 + advantages, lengths=lengths)


def run_step(denoiser, optimizer, mesh, objective=GDSD, accumulation=1, change=lambda batch: batch):
  denoiser, state = make_state(denoiser, optimizer, mesh)
  batch = change(make_batch(denoiser, state, objective, mesh, accumulation))
  return distillation_step(
    state, batch, denoiser=denoiser, objective=objective, optimizer=optimizer, accumulation=accumulation
  )


@pytest.mark.parametrize("accumulation, over", [(1, None), (2, None), slow(2, dict(data=2, fsdp=2, tensor=2))])
def test_a_step_that_scores_its_rollouts_itself_is_the_one_that_is_given_the_scores(
    tiny_denoiser, optimizer, one_device, accumulation, over):
  objective, mesh = make_objective("gdsd_tlc", {"center_top_k": 8}), make_mesh(**over) if over else one_device
  steps = []
  for is_known in (True, False):
    denoiser, state = make_state(tiny_denoiser, optimizer, mesh)
    batch = make_batch(denoiser, state, objective, mesh, accumulation)
    ref = jax.tree.map(lambda x: x + 0.1, batch.scored.ref)  # so that there is a KL
    known = {} if is_known else {"student": None, "old": None}
    batch = batch.replace(scored=batch.scored.replace(ref=ref, **known))
    state, metrics = distillation_step(
      state, batch, denoiser=denoiser, objective=objective, optimizer=optimizer, accumulation=accumulation)
    steps.append((state.params, metrics))
  (params, metrics), (own_params, own_metrics) = steps
  entropy = own_metrics.pop("entropy")
  scores = score_rollouts(make_state(tiny_denoiser, optimizer, mesh)[1].params, batch.rollouts, denoiser=denoiser,
                          objective=objective, accumulation=accumulation, with_entropy=True)
  assert float(entropy) == pytest.approx(float(policy_entropy([scores], [batch.rollouts.views])), rel=1e-6)
  assert own_metrics.keys() == metrics.keys() and own_metrics["kl"] > 0 and own_metrics["log_ratio_abs"] == 0
  chex.assert_trees_all_close(own_metrics, metrics, rtol=1e-5, atol=1e-7)
  chex.assert_trees_all_close(own_params, params, rtol=1e-5, atol=1e-7)


def test_a_step_scores_its_rollouts_itself_where_no_other_scores_would_be_different(one_device):
  def in_step(**changes):
    recipe = base_config()
    recipe.update_from_flattened_dict({"objective.num_iterations": 1, **changes})
    return run_config(recipe).scored_in_step(one_device)

  adapter = {"model.lora.rank": 4, "model.lora.dropout": 0.0}
  assert in_step() and in_step(**adapter) and in_step(**{"model.dtype": "bfloat16", "objective.beta": 0.0, **adapter})
  for changes in ({"objective.num_iterations": 2}, {"objective.name": "espo"}, adapter | {"model.lora.dropout": 0.05},
                  adapter | {"model.dtype": "bfloat16"}, {"log.trajectory": True}):
    assert not in_step(**changes), changes


@pytest.mark.parametrize("name, dtype", [
  ("gdsd_tlc", "bfloat16"), slow("gdsd", "float32"), slow("gdsd", "bfloat16"),
])
def test_first_log_ratio_is_exactly_zero(tiny_denoiser, optimizer, one_device, name, dtype):
  """Student and old are one model, so that any other value would be rounding noise."""
  objective = make_objective(name, {})
  denoiser, state = make_state(tiny_denoiser, optimizer, one_device, dtype)
  batch = make_batch(denoiser, state, objective, one_device)
  _, metrics = distillation_step(
    state, batch, denoiser=denoiser, objective=objective, optimizer=optimizer, accumulation=1
  )
  assert metrics["log_ratio_abs"] == 0 and metrics["kl"] == 0 and metrics["clip_fraction"] == 0
  assert metrics["grad_norm"] > 0


def test_the_entropy_is_the_mean_over_tokens_each_in_the_state_that_masks_it(tiny_denoiser, optimizer, one_device):
  denoiser, state = make_state(tiny_denoiser, optimizer, one_device)
  state = state.replace(params=state.params | {"head": 20 * state.params["head"]})  # sure of some tokens
  batch = make_batch(denoiser, state, GDSD, one_device)
  scores = score_rollouts(
    state.params, batch.rollouts, denoiser=denoiser, objective=GDSD, accumulation=1, with_entropy=True
  )
  rollouts, apply, expected = some_rollouts(), jax.jit(denoiser.apply), np.zeros((N, M, L))
  for sample in range(M):
    for masked in (rollouts.views.masks[:, sample], ~rollouts.views.masks[:, sample]):
      completion = np.where(masked, denoiser.config.mask_token_id, rollouts.tokens[:, P:])
      tokens = np.concatenate([rollouts.tokens[:, :P], completion], axis=1)
      logits = np.asarray(apply(state.params, tokens, rollouts.attention_mask)[:, P:], np.float64)
      probability = np.exp(logits) / np.sum(np.exp(logits), axis=-1, keepdims=True)
      entropy = -np.sum(probability * np.log(probability), axis=-1)
      expected[:, sample] += np.where(masked, entropy, 0)
  np.testing.assert_allclose(scores.entropy, expected, rtol=1e-5, atol=1e-6)
  assert float(policy_entropy([scores, scores], [rollouts.views] * 2)) == pytest.approx(expected.mean(), rel=1e-5)
  assert batch.scored.old.entropy is None
  np.testing.assert_array_equal(batch.scored.old.plain, scores.plain)  # the entropy beside them leaves them as they are


def test_scores_without_logits_tell_no_entropy():
  assert policy_entropy([Scores(None, jnp.zeros((N, M, L)))], [some_rollouts().views]) is None


@functools.partial(jax.jit, static_argnums=(2, 3))
@jax.grad
def gradient_of_loss(params, batch, denoiser, objective):
  """The gradient of the loss by the parameters, through all samples at once."""
  rollouts = batch.rollouts
  score = lambda view: view_scores(
    denoiser, params, rollouts.tokens, view, rollouts.attention_mask, objective.scoring)
  scores = jax.vmap(score, in_axes=1, out_axes=1)(rollouts.views)
  return objective.loss(batch.scored.replace(student=scores))[0]


def mean_distances(one, other):
  """The mean distance of each weight of two trees."""
  return [np.mean(np.abs(np.asarray(a) - b)) for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True)]


def test_step_is_adamw_on_the_gradient_of_the_loss(tiny_denoiser, optimizer, one_device):
  objective = make_objective("gdsd", {})
  denoiser, state = make_state(tiny_denoiser, optimizer, one_device)
  batch = make_batch(denoiser, state, objective, one_device)
  before = jax.tree.map(np.asarray, state.params)  # the step donates the state
  gradient = gradient_of_loss(state.params, batch, denoiser, objective)
  updates, _ = jax.jit(optimizer.update)(gradient, state.opt_state, state.params)
  expected = jax.tree.map(np.add, before, updates)
  stepped, _ = distillation_step(
    state, batch, denoiser=denoiser, objective=objective, optimizer=optimizer, accumulation=1
  )
  # AdamW's first update is the rate times the gradient's sign, so an entry near zero may differ by a part of it.
  assert max(mean_distances(stepped.params, expected)) < 1e-6
  assert min(mean_distances(stepped.params, before)) > 1e-4


@pytest.mark.parametrize("tied", [False, slow(True)])
@pytest.mark.parametrize("objective", [
  GDSD, *(slow(objective) for objective in (
    make_objective("gdsd_tlc", dict(center_top_k=8, center_gradient=True)),
    make_objective("espo", {}),
    make_objective("gdsd_tlc", dict(center_top_k=10**6)),
    make_objective("gdsd_tlc", dict(center_top_k=10**6, center_gradient=True, beta=0.0)),
  )),
])
def test_gradient_is_that_of_the_loss(tiny_denoiser, one_device, tied, objective):
  """It is summed over single samples and microbatches, the head's apart; autodiff goes through all at once."""
  denoiser = dataclasses.replace(tiny_denoiser, config=dataclasses.replace(tiny_denoiser.config, tied_head=tied))
  descent = optax.apply_if_finite(optax.sgd(1.0), 1)
  denoiser, state = make_state(denoiser, descent, one_device)
  batch = make_batch(denoiser, state, objective, one_device)
  shifted = jax.tree.map(lambda scores: scores + 0.1, batch.scored.old)
  batch = batch.replace(scored=batch.scored.replace(ref=shifted if objective.beta else None))
  expected = gradient_of_loss(state.params, batch, denoiser, objective)
  before = jax.tree.map(np.asarray, state.params)
  state, metrics = distillation_step(
    state, batch, denoiser=denoiser, objective=objective, optimizer=descent, accumulation=2
  )
  norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(jax.device_get(expected))))
  np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
  moved = jax.tree.map(np.subtract, before, state.params)
  chex.assert_trees_all_close(moved, expected, rtol=1e-3, atol=1e-5 * norm)


def test_samples_are_cut_and_joined():
  """Sample a M + m is mask sample m of microbatch a, which is every accumulation-th rollout from the a-th on."""
  x = np.arange(N * M * L).reshape(N, M, L)
  samples = cut(x, accumulation=4)
  assert samples.shape == (4 * M, N // 4, L)
  np.testing.assert_array_equal(samples[2 * M + 1], x[2::4, 1])
  np.testing.assert_array_equal(join(samples[..., 0], accumulation=4), x[..., 0])


@pytest.mark.slow
def test_accumulation_gives_the_same_update(tiny_denoiser, optimizer, one_device):
  whole, whole_metrics = run_step(tiny_denoiser, optimizer, one_device)
  parts, parts_metrics = run_step(tiny_denoiser, optimizer, one_device, accumulation=4)
  np.testing.assert_allclose(whole_metrics["loss"], parts_metrics["loss"], rtol=1e-5)
  np.testing.assert_allclose(whole_metrics["grad_norm"], parts_metrics["grad_norm"], rtol=1e-4)
  # The first AdamW update moves by the sign of the gradient: entries near zero may differ by the rate.
  assert max(mean_distances(whole.params, parts.params)) < 1e-5


def test_update_that_is_not_finite_is_left_out_and_counted(tiny_denoiser, optimizer, one_device):
  _, before = make_state(tiny_denoiser, optimizer, one_device)
  poison = lambda batch: batch.replace(
    scored=batch.scored.replace(advantages=batch.scored.advantages.at[3].set(jnp.nan)))
  after, metrics = run_step(tiny_denoiser, optimizer, one_device, change=poison)
  assert metrics["skipped"] == 1
  chex.assert_trees_all_equal(after.params, before.params)
  chex.assert_tree_all_finite(after.opt_state)
  _, metrics = run_step(tiny_denoiser, optimizer, one_device)
  assert metrics["skipped"] == 0


def test_sharded_step_agrees_with_one_device(tiny_denoiser, optimizer, one_device):
  mesh = make_mesh(2, 2, 2)
  alone, alone_metrics = run_step(tiny_denoiser, optimizer, one_device)
  sharded, sharded_metrics = run_step(tiny_denoiser, optimizer, mesh)
  for name in ("loss", "grad_norm", "score"):
    np.testing.assert_allclose(sharded_metrics[name], alone_metrics[name], rtol=1e-5)
  assert max(mean_distances(sharded.params, alone.params)) < 1e-5


def test_optimizer_moments_lie_as_the_parameters_do(tiny_denoiser, optimizer):
  mesh = make_mesh(1, 4, 2)
  denoiser, state = make_state(tiny_denoiser, optimizer, mesh)
  shardings = state_shardings(state, denoiser, optimizer, mesh)
  moments = jax.tree.leaves(shardings.opt_state)
  assert sum(not s.is_fully_replicated for s in moments) == 2 * sum(
    not s.is_fully_replicated for s in jax.tree.leaves(shardings.params)
  )
  chex.assert_trees_all_equal(jax.tree.map(lambda x: x.sharding, state), shardings)


@pytest.mark.slow
def test_a_first_moment_in_bfloat16_stays_so_and_lies_as_the_parameters_do(tiny_denoiser):
  mesh, optimizer = make_mesh(1, 4, 2), adamw("bfloat16")
  state, _ = run_step(tiny_denoiser, optimizer, mesh)
  is_adam = lambda node: isinstance(node, optax.ScaleByAdamState)
  [adam] = [s for s in jax.tree.leaves(state.opt_state, is_leaf=is_adam) if is_adam(s)]
  for moment, dtype in ((adam.mu, jnp.bfloat16), (adam.nu, jnp.float32)):
    chex.assert_type(jax.tree.leaves(moment), dtype)
    chex.assert_trees_all_equal(*(jax.tree.map(lambda x: x.sharding, tree) for tree in (moment, state.params)))


def test_reference_is_mixed_with_the_student():
  mixed = sync_reference({"w": jnp.zeros(2)}, {"w": jnp.ones(2)}, mix=0.6)
  np.testing.assert_allclose(mixed["w"], 0.6)


@pytest.mark.parametrize("change, field", [
  ({"name": "other"}, "objective.name"),
  ({"center_top_k": 8}, "objective.center_top_k"),
  ({"name": "gdsd_tlc", "center_top_k": 0}, "objective.center_top_k"),
  ({"epsilon": 1.0}, "objective.epsilon"),
  ({"psi": 0.0}, "objective.psi"),
  ({"beta": -1.0}, "objective.beta"),
])
def test_bad_objective_names_the_field(change, field):
  with pytest.raises(ValueError, match=field):
    make_objective(change.pop("name", "gdsd"), change)
