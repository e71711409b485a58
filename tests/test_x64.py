"""With JAX_ENABLE_X64=1, which a user may have set for other work, everything computes what it does without."""

import os
import subprocess
import sys

from batches import coupled_batch, distillation_batch
from conftest import REPOSITORY, slow, without_times
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_train import command

import gdsd_jax
from gdsd_jax.diffusion.forward import rollout_masks
from gdsd_jax.models.lora import add_adapter, LoraConfig
from gdsd_jax.objectives.abstract import abstract_scored
from gdsd_jax.objectives.masked_cross_entropy import masked_cross_entropy
from gdsd_jax.objectives.named import OBJECTIVES
from gdsd_jax.objectives.own import make_objective
from gdsd_jax.objectives.views import Drawing, Rollouts
from gdsd_jax.parallel.mesh import make_mesh
from gdsd_jax.runs.files import read_rows
from gdsd_jax.runs.gradient import ScoringBatch
from gdsd_jax.runs.optimizer import make_optimizer, OptimizerConfig
from gdsd_jax.runs.state import init_state
from gdsd_jax.runs.step import distillation_step, score_rollouts

LENGTH = 8
PROMPT = np.arange(20, dtype=np.int32).reshape(4, 5)
PADDING = np.arange(5) >= np.array([0, 2, 1, 3])[:, None]
TOKENS = np.concatenate([PROMPT, np.random.default_rng(0).integers(0, 50, (4, LENGTH), np.int32)], axis=1)
CONFIDENCE = np.random.default_rng(1).random((4, LENGTH), np.float32)


def both_ways(compute, tolerance: float = 0.0) -> None:
  """`compute` gives equal bits and dtypes with 64-bit numbers and without; or equal ones up to a tolerance."""
  expected = jax.device_get(compute())
  with jax.enable_x64(True):
    found = jax.device_get(compute())
  dtypes = lambda tree: [leaf.dtype for leaf in jax.tree.leaves(tree)]
  assert dtypes(found) == dtypes(expected)
  for leaf, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(leaf, other, rtol=tolerance, atol=tolerance / 100)


@pytest.mark.parametrize("settings", [
  {}, slow({"cfg_scale": 1.0, "remasking": "random"}), slow({"cache": "dual", "threshold": 0.5, "early_stop": True}),
  slow({"kind": "dream", "alg": "maskgit_plus", "alg_temp": 0.5, "top_p": 0.9, "top_k": 20}),
  slow({"temperature": 0.0}), slow({"cache": "prefix"}), slow({"factor": 1.0}),
  slow({"kind": "dream", "alg": "origin"}), slow({"kind": "dream", "alg": "topk_margin"}),
  slow({"kind": "dream", "alg": "topk_margin", "cache": "dual", "threshold": 0.5}),
])
def test_samplers(tiny_denoiser, tiny_params, settings):
  config = gdsd_jax.SamplerConfig(**{"completion_length": LENGTH, "steps": 4, "block_length": 4, **settings})
  both_ways(lambda: gdsd_jax.sample(tiny_denoiser, tiny_params, PROMPT, PADDING, jax.random.key(3), config))


@pytest.mark.parametrize("remasking", ["low_confidence", "random"])
def test_masks(remasking):
  both_ways(lambda: gdsd_jax.consistent_masks(jax.random.key(1), CONFIDENCE, 3, 4, remasking))


def rollouts() -> ScoringBatch:
  masks = np.random.default_rng(2).random((4, 2, LENGTH)) < 0.5
  return coupled_batch(jnp.asarray(TOKENS), jnp.asarray(PADDING), jnp.asarray(masks))


@pytest.mark.slow
@pytest.mark.parametrize("objective", [
  make_objective("gdsd", dict(beta=0.1)),
  make_objective("gdsd_tlc", dict(center_top_k=5, center_gradient=True, beta=0.1)),
  make_objective("espo", dict(beta=0.1)), make_objective("gdsd_tlc", dict(center_top_k=64)),
])
def test_scores_losses_and_updates(tiny_denoiser, tiny_params, objective):
  optimizer = make_optimizer(OptimizerConfig(schedule="cosine", warmup_steps=1, learning_rate=1e-3), 9)
  denoiser, params = tiny_denoiser, tiny_params
  if objective.name == "gdsd":
    denoiser, params = add_adapter(denoiser, params, LoraConfig(rank=2, dropout=0.5), jax.random.key(0))
  static = dict(denoiser=denoiser, objective=objective)
  mesh = make_mesh(devices=jax.local_devices()[:1])
  advantages = np.array([1.0, -1.0, 0.5, -0.5], np.float32)

  def two_updates():
    batch, metrics = rollouts(), []
    state = init_state(denoiser, jax.tree.map(jnp.copy, params), optimizer, 0, True, mesh)
    scores = score_rollouts(state.student_params, batch, with_entropy=True, **static)
    for _ in range(2):
      current = score_rollouts(state.student_params, batch, **static)
      scored = distillation_batch(batch, advantages, current, scores, old=scores)
      state, step_metrics = distillation_step(state, scored, optimizer=optimizer, **static)
      metrics.append(step_metrics)
    return scores, metrics, state.params, state.opt_state

  both_ways(two_updates, tolerance=1e-5)  # optax makes its rates in Python's numbers


def test_supervised_loss(tiny_denoiser, tiny_params):
  maskable = np.broadcast_to(np.arange(TOKENS.shape[1]) >= 5, TOKENS.shape)
  loss = jax.jit(masked_cross_entropy, static_argnums=0)
  both_ways(lambda: loss(tiny_denoiser, tiny_params, jax.random.key(4), TOKENS, maskable))


@pytest.mark.slow
def test_a_run_goes_on_in_either_way_and_ends_the_same(tmp_path):
  def train(workdir, x64, steps, **changes):
    result = subprocess.run(
      [sys.executable, *command(tmp_path / workdir, steps=steps, **changes)], cwd=REPOSITORY, capture_output=True,
      text=True, env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": str(x64)})
    assert result.returncode == 0, result.stderr

  changes = {"async_rollouts": "True", "model.lora.rank": 4}
  train("straight", 0, 4, **changes)
  train("turns", 1, 2, **changes)
  train("turns", 0, 3, **changes)
  train("turns", 1, 4, **changes)
  expected, found = (without_times(read_rows(tmp_path / name / "metrics.jsonl")) for name in ("straight", "turns"))
  assert len(found) == len(expected) == 5
  for row, other in zip(found, expected):
    for name in ("reward", "loss", "completion_length"):
      assert (row.get(name) is None) == (other.get(name) is None)
      assert row.get(name) is None or row[name] == pytest.approx(other[name], rel=1e-3)


@pytest.mark.parametrize("name", [name if name == "spg" else slow(name) for name in OBJECTIVES if name != "mdpo"])
def test_views_and_losses_of_every_objective(name):
  needs_temperature = {"agrpo", "just_grpo"}
  objective = make_objective(name, {"temperature": 0.7} if name in needs_temperature else
                             {"segments": 4} if name == "d2" else {})
  random = np.random.default_rng(0)
  tokens, numbers = TOKENS[:, 5:], random.random((4, LENGTH), np.float32)
  rollouts = Rollouts(
    tokens=tokens, lengths=np.array([3, 8, 8, 5], np.int32), rewards=numbers[:, 0], advantages=numbers[:, 1] - 0.5,
    confidence=CONFIDENCE, logp=-numbers, entropy=numbers, group_size=2,
    steps=np.argsort(random.random((4, LENGTH)), axis=1).astype(np.int32))
  masks = lambda key, rollouts: rollout_masks(key, rollouts.confidence, 2, group_size=2)
  drawing = Drawing(2, 2, 5, 1 if name == "just_grpo" else 4, LENGTH, masks, (3, 7))

  def compute():
    views = objective.views(jax.random.key(2), rollouts, jnp.int32(1), drawing)
    scored = abstract_scored(objective, rollouts, drawing)
    made = jax.tree.map(lambda leaf: -jnp.linspace(0.1, 2, leaf.size, dtype=jnp.float32).reshape(leaf.shape),
                        (scored.student, scored.old, scored.ref))
    fixed = scored.fixed and scored.fixed.replace(views=views, old=made[0], ref=made[2])
    scored = scored.replace(views=views, student=made[0], old=made[1], ref=made[2], fixed=fixed)
    return views, objective.loss(scored)

  both_ways(jax.jit(compute), tolerance=1e-5)
