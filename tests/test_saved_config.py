"""A run's own settings: read again from its config.json, and held against the recipe and flags of an evaluation."""

import json
import logging

import pytest

from gdsd_jax.evaluation.settings import check_flags, tell_differences
from gdsd_jax.runs.config import evaluation_samplers
from gdsd_jax.runs.config_dict import base_config, flatten, run_config
from gdsd_jax.runs.recipe_files import run_of
from gdsd_jax.runs.saved_config import saved_recipe


def changed(fields):
  config = base_config()
  config.update_from_flattened_dict(fields)
  return config


@pytest.fixture
def run(tmp_path):
  """A folder that holds the config.json of a run, which is all that is read here."""
  (tmp_path / "config.json").write_text(json.dumps(base_config().to_dict()))
  return tmp_path


def test_flags_about_the_model_must_be_the_runs_own(run, caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger("gdsd_jax"), "propagate", True)
  check_flags({"model.path": "tiny", "eval.lengths": (8,), "model.dtype": "float32"}, "llada", run, None)
  with pytest.raises(ValueError, match="^--config.model.path: 'other' is not what the run in .* made with, 'tiny'"):
    check_flags({"model.path": "other"}, "llada", run, None)
  with pytest.raises(ValueError, match="^--config.model.path: --model=tiny says already what is loaded"):
    check_flags({"model.dtype": "bfloat16", "model.path": "other"}, "llada", None, "tiny")
  assert not caplog.text
  check_flags({"sampler.temperature": 0.5, "sampler.steps": 256}, "llada", run, None)  # the run has so many steps
  assert [record.message for record in caplog.records] == [
    "--config.sampler.temperature is of rollouts, and without effect here: evaluations have --config.eval.temperature"]


def test_another_recipe_tells_what_it_changes(run, caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger("gdsd_jax"), "propagate", True)
  caplog.set_level(logging.INFO)
  typed = run_config(changed({"eval.prefill": "so", "eval.prompt": "training", "task.rewards": ("task",)}))
  tell_differences(typed, {"eval.prompt": "training"}, "r", run)
  assert [record.message for record in caplog.records] == [
    "evaluated by r, and so with another eval.prefill, task.rewards than the run's own, which holds without --config"]


def test_a_saved_recipe_is_the_runs_whatever_it_is_of(tmp_path):
  """Own code's fields included; what older versions had besides is left out."""
  config = changed({
    "eval.lengths": (8, 16), "sampler.kind": "examples/own_sampler/sliding_window.py:sliding_window",
    "masks.kind": "uniform", "objective.epsilon": 0.1, "task.rewards": ("my.py:short",), "model.lora.targets": ("q",),
  })
  config.task.shape, config.sampler.window = {"deep": [1, 2]}, 3
  saved = json.loads(json.dumps(config.to_dict())) | {"provenance": {"versions": {}}, "momentum": 0.9}
  saved["model"]["remat"] = True
  del saved["eval"]["every"]
  (tmp_path / "config.json").write_text(json.dumps(saved))
  found = flatten(saved_recipe(str(tmp_path / "config.json")).to_dict())
  assert found == flatten(config.to_dict()) | {"model.remat": "full", "eval.every": 100}


def test_a_run_from_before_samplers_refused_what_they_lack_has_what_it_had(run, caplog, monkeypatch):
  """Dream's exact sampler had no blocks, whatever was said of their length, and no remasking."""
  saved = base_config().to_dict()
  for name in ("noise", "eos_penalty"):
    del saved["sampler"][name]
  saved["sampler"] |= {"kind": "dream", "block_length": 32, "remasking": "random", "top_p": 0.95}
  saved["eval"]["block_length"] = 32
  (run / "config.json").write_text(json.dumps(saved))
  monkeypatch.setattr(logging.getLogger("gdsd_jax"), "propagate", True)
  config = run_config(saved_recipe(f"{run}/config.json"))
  assert config.sampler.top_p == 0.95
  assert not any(sampler.is_blockwise for sampler in (config.sampler, *evaluation_samplers(config).values()))
  assert [record.message.rpartition(" its ")[2] for record in caplog.records] == ["sampler.remasking"]


@pytest.mark.parametrize("text, words", [
  ("[]", "is not the config of a run"), ("{", "is not the config of a run"),
  ('{"kind": "sft", "model": {}, "data": {}}', "is no RL run, and says no task; name a recipe that does by --config"),
])
def test_what_is_no_rl_run_has_no_recipe(tmp_path, text, words):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(ValueError, match=f"^--workdir: .*{words}"):
    saved_recipe(str(tmp_path / "config.json"))


@pytest.mark.parametrize("arguments, run", [
  (["--workdir=a"], "a"), (["-workdir", "a", "--step=best"], "a"), (["--config=c", "--workdir=a"], None),
  (["--workdir=a", "--config", "c"], None), (["--config.eval.lengths=(8,)", "--workdir=a"], "a"), (["--model=a"], None),
])
def test_a_recipe_is_the_runs_where_none_is_given(arguments, run):
  assert run_of(arguments) == run
