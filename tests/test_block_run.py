"""RL runs of a block-causal model, rollouts with its exact cache and updates: objectives, resuming, what is refused."""

import dataclasses

from block_folder import SAMPLED, write_block_folder
import chex
from commands import run_command
from conftest import all_devices, slow
from documented import undocumented
import jax
import numpy as np
import pytest
import recipes

from gdsd_jax.huggingface.published import architecture
from gdsd_jax.huggingface.weights import load_pretrained
from gdsd_jax.models.config import ExpertsConfig
from gdsd_jax.runs.config import evaluation_samplers
from gdsd_jax.runs.config_dict import base_config, run_config
from gdsd_jax.runs.files import read_rows
from gdsd_jax.runs.metrics import Stopwatch
from gdsd_jax.runs.weights import load_run
from gdsd_jax.training.trainer import Trainer

SMALL = {
  **SAMPLED, "steps": 2, "group_size": 4, "prompts_per_step": 2, "objective.num_iterations": 2, "eval.every": 100,
  "eval.num_examples": 8, "eval.batch_size": 8, "checkpoint.every": 1, "log.plot_seconds": 1000.0,
  "log.tensorboard": False, "optimizer.learning_rate": 1e-3,
}


@pytest.fixture(scope="module", autouse=True)
def one_device(quick_runs):
  yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return write_block_folder(tmp_path_factory.mktemp("sdar"))


def config_of(folder, **changes):
  config = base_config()
  config.update_from_flattened_dict(
    {**SMALL, "model.path": str(folder), **{name.replace("__", "."): value for name, value in changes.items()}})
  return run_config(config)


def step_of(trainer):
  """The numbers of the updates on a step's rollouts, graded by hand: a random model earns no reward."""
  before = jax.tree.map(np.asarray, trainer.state.params)
  graded = trainer.sampler.grade(trainer.overlap.take(trainer.state)[2])
  graded = dataclasses.replace(graded, rewards={"told": np.linspace(-1, 1, 8, dtype=np.float32)})
  state, row = trainer.updates(trainer.state, graded, jax.random.key(1), Stopwatch())
  moved = [np.abs(a - b).max() for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(state.params))]
  assert max(moved) > 0 and all(np.isfinite(moved))
  return row


@pytest.mark.slow
def test_a_step_tells_the_trajectory_beside_the_elbo_as_of_any_sampler(folder, tmp_path):
  config = config_of(folder, objective__num_iterations=1, log__trajectory=True)
  assert {"steps", "logp"} <= config.remembered
  row = step_of(Trainer(config, tmp_path))
  told = ["trajectory_logp", "elbo", "elbo_gap", "elbo_gap_std", "elbo_correlation"]
  assert all(np.isfinite(row[name]) for name in told) and row["trajectory_logp"] < 0 and not undocumented(told)
  assert row["elbo_gap"] == pytest.approx(row["elbo"] - row["trajectory_logp"], abs=1e-5)


@pytest.mark.parametrize("name, changes", [
  ("gdsd", {}), slow("gdsd_tlc", {}), slow("gdsd", {"objective__coupled": False}),
  slow("espo", {"objective__beta": 1e-3}), slow("trace_rl", {"objective__shrink": 2}), slow("cj_grpo", {}),
  slow("agrpo", {"objective__num_mc": 2}), slow("d2", {"objective__segments": 2, "objective__prompt_masking": 0.0}),
  slow("diffu_grpo", {"objective__prompt_masking": 0.0}), slow("wd1", {"objective__prompt_masking": 0.0}),
  slow("coupled_grpo", {}), slow("unigrpo", {}), slow("dmpo", {}), slow("gdpo", {"objective__truncated": True}),
  slow("bgpo", {"objective__num_mc": 2}), slow("vrpo", {"objective__num_mc": 2}),
])
def test_an_objective_trains_and_its_first_ratios_are_one(folder, tmp_path, name, changes):
  config = config_of(folder, objective__name=name, objective__num_iterations=1, **changes)
  row = step_of(Trainer(config, tmp_path))
  assert row["skipped"] == 0 and np.isfinite(row["loss"]) and row["grad_norm"] > 0
  if config.objective.needs_old:
    assert row["log_ratio_abs"] == 0
  assert row.get("kl", 0) == 0


@pytest.mark.slow
def test_a_step_over_a_mesh_is_that_of_one_device(folder, tmp_path):
  changes = {"sampler__temperature": 0.0, "objective__num_iterations": 1}
  alone = step_of(Trainer(config_of(folder, **changes), tmp_path / "one"))
  with all_devices():
    over = step_of(Trainer(config_of(
      folder, **changes, mesh__data=2, mesh__fsdp=2, mesh__tensor=2, optimizer__accumulation=2), tmp_path / "mesh"))
  for name in ("loss", "grad_norm", "score", "entropy"):
    assert over[name] == pytest.approx(alone[name], rel=1e-3), name


@pytest.mark.slow
def test_a_step_of_experts_tells_their_load_and_is_the_same_over_their_axis(tmp_path):
  """LLaDA 2's layout, all parameters but the routers trained."""
  experts = ExpertsConfig(count=8, per_token=2, size=16, router="sigmoid", normalised=True, scale=2.5,
                          selection_bias=True, groups=4, groups_per_token=2, shared_size=16, dense_layers=1)
  folder = write_block_folder(tmp_path / "model", family="llada2_moe", experts=experts, rotary_share=0.5)
  changes = {"sampler__temperature": 0.0, "objective__num_iterations": 1, "optimizer__accumulation": 2}
  trainer = Trainer(config_of(folder, **changes), tmp_path / "one")
  alone = step_of(trainer)
  assert not undocumented(name for name in alone if name.startswith("router/"))
  assert 1 <= alone["router/largest_load"] <= 4 and 0 < alone["router/load_entropy"] < 1
  with all_devices():
    over = step_of(Trainer(config_of(
      folder, **changes, mesh__data=2, mesh__fsdp=1, mesh__tensor=2, mesh__expert=2), tmp_path / "mesh"))
  for name in ("loss", "grad_norm", "score", "entropy", "router/largest_load", "router/load_entropy"):
    assert over[name] == pytest.approx(alone[name], rel=1e-3), name


def command(folder, workdir, **changes):
  given = {**SMALL, "model.path": folder, **changes}
  return ["launch/train.py", "--config=configs/gdsd_math.py", f"--workdir={workdir}",
          *(f"--config.{name}={value}" for name, value in given.items())]


@pytest.mark.slow
def test_a_run_by_the_command_resumes_where_it_was_stopped(folder, tmp_path):
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  for workdir, steps in ((whole, 2), (parts, 1), (parts, 2)):
    done = run_command(*command(folder, workdir, steps=steps))
    assert done.returncode == 0, done.stderr
  untimed = lambda rows: [
    {name: value for name, value in row.items() if "second" not in name and not name.startswith("eval/")}
    for row in rows if row["step"] == 2]
  [first] = [row for row in read_rows(whole / "rollouts.jsonl") if row["group"] == 0]
  for completion in first["completions"]:  # what its page replays: every token, at a step of its own block
    assert len(completion["tokens"]) == len(completion["unmasked"]) == len(completion["logp"]) == 8
    assert all(0 <= step < 12 for step in completion["unmasked"]) and max(completion["logp"]) <= 0
  page = run_command("launch/report.py", f"--workdir={whole}", f"--out={tmp_path / 'page.html'}")
  assert page.returncode == 0, page.stderr
  assert untimed(read_rows(whole / "metrics.jsonl")) == untimed(read_rows(parts / "metrics.jsonl")) != []
  chex.assert_trees_all_equal(load_run(whole, "latest")[1], load_run(parts, "latest")[1])


@pytest.mark.parametrize("changes, message", [
  ({"objective__name": "diffu_grpo"}, "objective.name: its views mask tokens of the prompt, but models of the family"),
  ({"objective__name": "spg"}, "objective.name: its views mask tokens of the prompt, but models of the family sdar"),
  ({"objective__name": "mdpo"}, "objective.name: mdpo needs rollouts that remember predictions"),
  ({"objective__name": "just_grpo"}, "objective.name: just_grpo needs rollouts from left to right"),
  ({"objective__name": "d2", "objective__prompt_masking": 0.0}, "objective.segments: 16 must be at most the 4 steps"),
  ({"objective__name": "trace_rl"}, "objective.shrink: 8 merges all 4 steps that a block of this sampler takes"),
  ({"masks__kind": "blocks"}, "masks.kind: 'blocks' is for models whose tokens all see each other; "),
  ({"sampler__kind": "llada", "sampler__cache": "none"}, "model.path: llada's sampler knows models whose tokens all"),
  ({"sampler__block_length": 8}, "sampler.block_length: 8 is not the model's block length; give 4"),
])
def test_what_a_model_in_blocks_cannot_be_trained_on_is_said_in_a_line(folder, tmp_path, changes, message):
  with pytest.raises(ValueError, match=f"^{message}"):
    Trainer(config_of(folder, **changes), tmp_path)


def test_the_embedded_model_goes_block_by_block_and_fits_its_recipe():
  recipe = recipes.load("gdsd_math", "tiny_block")
  recipes.check_embedded_model(recipe)
  config, model = run_config(recipe), architecture("tiny_block")
  assert (model.family, model.block_length, model.qk_norm) == ("sdar", 4, True)
  _, params = load_pretrained("tiny_block")
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 412_464
  for sampler in (config.sampler, *evaluation_samplers(config).values()):
    assert (sampler.kind, sampler.block_length, sampler.block_steps, sampler.cache) == ("block", 4, 4, "exact")


@pytest.mark.slow
def test_the_recipe_of_the_embedded_model_runs(tmp_path):
  recipes.check_runs(recipes.load("gdsd_math", "tiny_block"), tmp_path)
