"""--help of every command, and what is said of a field or flag that is not there."""

import os
import subprocess
import sys

from commands import run_command
from conftest import load_recipe, REPOSITORY, slow
from ml_collections import ConfigDict
import pytest

from gdsd_jax.checks import did_you_mean_field
from gdsd_jax.comparison.config import ComparisonConfig
from gdsd_jax.runs.config import RunConfig
from gdsd_jax.runs.config_dict import base_config, flatten, run_config, typed
from gdsd_jax.runs.fields import explanations
from gdsd_jax.supervised.config import FinetuningConfig, PreferenceConfig, pretraining_config, PretrainingConfig


@pytest.mark.parametrize("command, words", [
  ("train", ["--workdir", "--config.sampler.temperature=1.0", "at which tokens are sampled; 0 is greedy"]),
  slow("evaluate", ["--num_examples", "--config.eval.lengths=16", "completion lengths; the accuracy is the best"]),
  slow("export", ["--step=latest", "Checkpoint to export: latest, best, or its step."]),
  slow("pretrain", ["--out", "--config.careless_after=", "steps on right solutions before the careless ones"]),
  slow("compile", ["--topology", "--config.mesh.fsdp=1"]),
  slow("benchmark", ["--model=tiny", "--num_mc"]),
  slow("sample", ["--index", "--html", "--config.sampler.temperature=1.0"]),
  slow("report", ["--workdir", "--watch", "the page follows"]),
  slow("compare", ["--report", "--config.window=8", "steps that a smoothed curve is a mean of"]),
])
def test_help_shows_flags_and_fields_with_defaults_and_explanations(command, words):
  result = run_command(f"launch/{command}.py", "--help")
  assert result.returncode == 0 and result.stderr == ""
  said = " ".join(result.stdout.split())
  for word in words:
    assert word in said


@pytest.mark.slow
def test_help_shows_the_recipe_that_is_named():
  result = run_command("launch/pretrain.py", "--config=sft", "--help")
  assert result.returncode == 0 and "--config.data.train_source=" in result.stdout
  result = run_command("launch/train.py", "--config=nothing", "--help")
  assert result.returncode == 1 and result.stderr.startswith("error: --config: no recipe 'nothing'")


@pytest.mark.parametrize("cls, recipe", [
  (RunConfig, None), (FinetuningConfig, "sft"), (PreferenceConfig, "vrpo"), (PretrainingConfig, "pretrain_tiny"),
  (ComparisonConfig, "compare"),
])
def test_every_field_of_a_recipe_is_explained(cls, recipe):
  said = explanations(cls)
  config = base_config() if recipe is None else load_recipe(recipe).get_config()
  whole = ("task.", "tasks.", "objectives.", "shared.")  # sections of anything
  special = {"kind", *(path for path in flatten(config.to_dict()) if path.startswith(whole))}
  assert flatten(config.to_dict()).keys() - special <= said.keys()
  assert [path for path, text in said.items() if not text and not path.endswith("_token_id")] == []


@pytest.mark.parametrize("typed, meant", [
  ("sampler.temprature", "'sampler.temperature'"), ("tempreature", "'eval.temperature' or 'sampler.temperature'"),
  ("optimzer.learning_rate", "'optimizer.learning_rate'"), ("learnig_rate", "'optimizer.learning_rate'"),
  ("lora.rank", "'model.lora.rank'"), ("model.lora.rnk", "'model.lora.rank'"), ("num_mcc", "'objective.num_mc'"),
  ("eval.lenghts", "'eval.lengths'"), ("grup_size", "'group_size'"), ("psi", "'objective.psi'"),
  ("sampler.learning_rate", "'optimizer.learning_rate'"), ("steps.foo", "'steps'"),
])
def test_the_nearest_field_is_suggested_wherever_it_is(typed, meant):
  assert did_you_mean_field(typed, flatten(base_config().to_dict())) == f"; did you mean {meant}?"


def test_nothing_is_suggested_where_nothing_is_near():
  assert did_you_mean_field("zzz", flatten(base_config().to_dict())) == ""


@pytest.mark.parametrize("command, arguments, line", [
  ("train", ["--config=gdsd_math", "--config.optimzer.clip=1"],
   "error: --config.optimzer.clip=1: the config has no field 'optimzer.clip'; did you mean 'optimizer.clip'?"),
  ("train", ["--config=gdsd_math", "--wrokdir=runs/x"],
   "error: Unknown command line flag 'wrokdir'. Did you mean: workdir ?"),
  slow("train", ["--config=gdsd_math", "--config.steps.foo=3"],
       "error: --config.steps.foo=3: the config has no field 'steps.foo'; did you mean 'steps'?"),
  slow("train", ["--config=gdsd_math", "--config.grup_size=None"],
       "error: --config.grup_size=None: the config has no field 'grup_size'; did you mean 'group_size'?"),
  slow("evaluate", ["--config=gdsd_math", "--config.lenghts=3"],
       "error: --config.lenghts: the config has no field 'lenghts'; did you mean 'eval.lengths'?"),
  slow("pretrain", ["--config=sft", "--out=x", "--config.data.train_sorce=y"],
       "error: --config.data.train_sorce=y: the config has no field 'data.train_sorce'; did you mean"
       " 'data.train_source'?"),
  slow("pretrain", ["--config=vrpo", "--out=x", "--config.objective.bta=1"],
       "error: --config.objective.bta=1: the config has no field 'objective.bta'; did you mean 'objective.beta'?"),
])
def test_a_mistyped_field_or_flag_is_one_line_with_the_nearest(command, arguments, line):
  result = run_command(f"launch/{command}.py", *arguments)
  assert result.returncode == 1 and result.stderr.splitlines() == [line]


@pytest.mark.parametrize("change, line", [
  ({"sampler.temprature": 1.0},
   "--config.sampler.temprature: the config has no field 'sampler.temprature'; did you mean 'sampler.temperature'?"),
  ({"gruop_size": 4}, "--config.gruop_size: the config has no field 'gruop_size'; did you mean 'group_size'?"),
  ({"optimizer": None}, "--config.optimizer: the recipe lacks it; begin with gdsd_jax.runs.config_dict.base_config()"),
])
def test_what_a_recipe_of_rl_has_beside_its_fields_or_lacks_is_told(change, line):
  fields = base_config().to_dict()
  for path, value in change.items():
    section, _, name = path.rpartition(".")
    if value is None:
      del fields[name]
    else:
      (fields[section] if section else fields)[name] = value
  config = ConfigDict(fields)
  with pytest.raises(ValueError) as caught:
    run_config(config)
  assert str(caught.value).startswith(line)


@pytest.mark.parametrize("recipe, command", [
  ("sft", "pretrain"), ("vrpo", "pretrain"), ("pretrain_tiny", "pretrain"), ("compare", "compare"),
])
def test_a_recipe_of_another_command_is_told_where_it_belongs(recipe, command):
  with pytest.raises(ValueError, match=f"^--config: a recipe of the kind '.*' is for launch/{command}.py$"):
    run_config(load_recipe(recipe).get_config())


@pytest.mark.parametrize("make, recipe, path, value, line", [
  (lambda config: typed(FinetuningConfig, config), "sft", "batchsize", 3,
   "--config.batchsize: the config has no field 'batchsize'; did you mean 'batch_size'?"),
  (lambda config: typed(FinetuningConfig, config), "sft", "data.train_sorce", "x",
   "--config.data.train_sorce: the config has no field 'data.train_sorce'; did you mean 'data.train_source'?"),
  (pretraining_config, "pretrain_tiny", "model.hidden_sizes", 3,
   "--config.model.hidden_sizes: the config has no field 'model.hidden_sizes'; did you mean 'model.hidden_size'?"),
  (pretraining_config, "pretrain_tiny", "model.head_dim", 3, "model.head_dim: follows from the rest"),
  (lambda config: typed(FinetuningConfig, config), "sft", "batch_size", None,
   "--config.batch_size: the recipe lacks this field, which has no default"),
])
def test_what_a_supervised_recipe_has_beside_its_fields_or_lacks_is_told(make, recipe, path, value, line):
  fields = load_recipe(recipe).get_config().to_dict()
  *sections, name = path.split(".")
  section = fields[sections[0]] if sections else fields
  if value is None:
    del section[name]
  else:
    section[name] = value
  with pytest.raises(ValueError) as caught:
    make(ConfigDict(fields))
  assert str(caught.value).startswith(line)


@pytest.mark.slow
def test_help_is_shown_where_python_leaves_docstrings_out():
  command, environment = [sys.executable, "launch/train.py", "--help"], {**os.environ, "PYTHONOPTIMIZE": "2"}
  result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
  assert result.returncode == 0 and "--config.objective.psi=" in result.stdout, result.stderr
