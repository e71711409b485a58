"""The published models at full size, without their memory: shapes, parameter counts, shardings, the real programs."""

import dataclasses
import functools
import json
import math

from conftest import load_recipe, slow
import jax
import jax.numpy as jnp
import pytest

import gdsd_jax
from gdsd_jax.huggingface import published, stored_layers, weights as huggingface
from gdsd_jax.models.lora import TARGETS
from gdsd_jax.objectives.abstract import abstract_rollouts, abstract_scored
from gdsd_jax.parallel.mesh import make_mesh, param_shardings
from gdsd_jax.runs import optimizer as training_optimizer, state as training_state
from gdsd_jax.runs.config_dict import run_config
from gdsd_jax.runs.gradient import DistillationBatch, ScoringBatch
from gdsd_jax.runs.step import distillation_step, score_rollouts
from gdsd_jax.training.updates import drawing_of

COUNTS = {"llada_8b": 8_015_581_184, "dream_7b": 7_615_616_512}
PUBLISHED = {preset: published.PUBLISHED[published.HUB_NAMES[preset]] for preset in COUNTS}
RECIPES = {  # and the models that the quick suite traces them with
  "math": "llada_8b", "gsm8k": "dream_7b", "countdown": "llada_8b", "sudoku": "dream_7b", "code": "llada_8b",
}


@pytest.fixture(params=PUBLISHED)
def full_size(request, tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[request.param]))
  config = huggingface.load_config(tmp_path)
  return request.param, gdsd_jax.Denoiser(config, "bfloat16", "bfloat16", remat="full")


def test_parameter_counts_to_the_unit(full_size):
  name, denoiser = full_size
  assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(denoiser.abstract_params())) == COUNTS[name]


def test_special_tokens_come_from_the_file(full_size):
  name, denoiser = full_size
  fields = PUBLISHED[name]
  config = denoiser.config
  assert (config.mask_token_id, config.eos_token_id) == (fields["mask_token_id"], fields["eos_token_id"])


def test_shapes_of_the_published_weights(full_size):
  name, denoiser = full_size
  leaves = jax.tree.leaves_with_path(denoiser.abstract_params())
  shapes = {}
  for path, spec in leaves:
    leaf = ".".join(key.key for key in path)
    shape = spec.shape[1:] if stored_layers.is_stacked(leaf) else spec.shape
    for weight in stored_layers.names_of(denoiser.config, leaf).flat:
      shapes[weight] = stored_layers._linear_shape(leaf, shape)
  if name == "llada_8b":
    assert len(shapes) == 3 + 32 * 9
    assert shapes["model.transformer.blocks.31.ff_out.weight"] == (4096, 12288)
    assert shapes["model.transformer.ff_out.weight"] == (126464, 4096)
  else:
    assert len(shapes) == 3 + 28 * 12
    assert shapes["model.layers.27.self_attn.k_proj.weight"] == (512, 3584)
    assert shapes["model.layers.27.self_attn.k_proj.bias"] == (512,)
    assert shapes["model.layers.0.mlp.down_proj.weight"] == (3584, 18944)
    assert shapes["lm_head.weight"] == (152064, 3584)


@pytest.mark.parametrize("sizes", [(1, 8, 1), (1, 4, 2), (2, 1, 4)])
def test_weights_divide_over_meshes(full_size, sizes):
  _, denoiser = full_size
  shardings = param_shardings(make_mesh(*sizes), denoiser)
  def local_size(spec, sharding):
    return math.prod(sharding.shard_shape(spec.shape))

  local = sum(jax.tree.leaves(jax.tree.map(local_size, denoiser.abstract_params(), shardings)))
  norms = 2 * denoiser.config.num_layers * denoiser.config.hidden_size * 10
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(denoiser.abstract_params()))
  assert count / (sizes[1] * sizes[2]) <= local < count / (sizes[1] * sizes[2]) + norms


@pytest.mark.parametrize("full_size, name", [
  (preset, name) if preset == RECIPES[name] else slow(preset, name) for preset in PUBLISHED for name in RECIPES
], indirect=["full_size"])
def test_recipes_trace_at_full_size(full_size, name):
  """Sampler, scores and distillation step of the recipe, by shapes alone."""
  preset, denoiser = full_size
  config = run_config(load_recipe(f"gdsd_{name}").get_config(preset))
  denoiser = dataclasses.replace(denoiser, lora=config.model.lora)
  params = denoiser.abstract_params()
  adapter = {"lora": params["lora"]}
  assert set(params["lora"]) == {TARGETS[target] for target in config.model.lora.targets}
  rollouts_per_step = config.group_size * config.prompts_per_step
  batch = rollouts_per_step // config.optimizer.accumulation
  width = config.rollouts.prompt_buckets[-1]
  sampler = config.sampler
  key = jax.eval_shape(lambda: jax.random.key(0))
  of = jax.ShapeDtypeStruct
  rollout = jax.eval_shape(
    functools.partial(gdsd_jax.sample, denoiser, config=sampler), params, of((batch, width), jnp.int32),
    of((batch, width), bool), key,
  )
  length = sampler.completion_length
  assert rollout.tokens.shape == rollout.confidence.shape == (batch, length)

  objective = config.objective
  abstract = abstract_rollouts(objective, rollouts_per_step, length, config.group_size)
  scored = abstract_scored(objective, abstract, drawing_of(config, width))
  shape = (rollouts_per_step, width + length)
  rollouts = ScoringBatch(of(shape, jnp.int32), of(shape, bool), scored.views.inputs)
  static = dict(denoiser=denoiser, objective=objective, accumulation=config.optimizer.accumulation)
  scores = jax.eval_shape(functools.partial(score_rollouts, **static), params, rollouts)
  assert scores.plain.shape == scored.student.plain.shape == (rollouts_per_step, config.num_mc, length)
  optimizer = training_optimizer.make_optimizer(config.optimizer, config.updates)
  state = training_state.TrainState(
    step=of((), jnp.int32), params=adapter, frozen={k: v for k, v in params.items() if k != "lora"},
    opt_state=jax.eval_shape(optimizer.init, adapter), reference={}, key=key,
  )
  new_state, _ = jax.eval_shape(
    functools.partial(distillation_step, optimizer=optimizer, **static), state,
    DistillationBatch(rollouts, scored.replace(student=scores, old=scores, ref=scores)),
  )
  assert jax.tree.map(lambda x: (x.shape, x.dtype), new_state) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
