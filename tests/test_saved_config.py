"""A run's own settings: read again from its config.json, and held against the recipe and flags of an evaluation."""

import json
import logging

from conftest import REPOSITORY
import pytest
from recipes import load

from gdsd_jax.evaluation.settings import tell_differences, warn_of_flags
from gdsd_jax.runs.chosen_model import ChosenModel
from gdsd_jax.runs.config import evaluation_samplers
from gdsd_jax.runs.config_dict import base_config, flatten, run_config
from gdsd_jax.runs.given import load_config
from gdsd_jax.runs.recipe_files import run_of
from gdsd_jax.runs.saved_config import contradictions, open_workdir, saved_recipe

# The config.json of configs/gdsd_math.py as commit 216a67e wrote it, before None stood for what an
# objective was published with.
EARLIER = {
  "async_rollouts": False, "checkpoint": {"every": 5, "keep": 2}, "eval": {"batch_size": 64, "block_length": 8,
  "every": 25, "lengths": [16], "num_examples": 256, "prefill": "", "prompt_buckets": [36], "steps_per_token": 1.0},
  "group_size": 8, "log": {"every": 1, "plot_seconds": 20.0, "rollouts_every": 25, "tensorboard": True,
  "wandb_project": ""}, "masks": {"block_length": None, "fresh": True, "kind": "sampler", "remasking": None},
  "max_skipped_steps": 5, "mesh": {"data": -1, "fsdp": 1, "tensor": 1}, "model": {"dtype": "float32", "layout":
  None, "lora": {"alpha": 64.0, "dropout": 0.05, "path": None, "rank": 0, "targets": ["q", "k", "v", "o", "gate",
  "up", "down"]}, "path": "tiny", "remat": "full", "revision": None}, "objective": {"beta": None, "center_gradient":
  None, "center_top_k": None, "epsilon": 0.2, "name": "gdsd", "num_iterations": 4, "num_mc": 2, "psi": None,
  "reference_sync_every": 0, "reference_sync_mix": 0.6, "scale_rewards": False, "weighted": None}, "optimizer":
  {"accumulation": 1, "b1": 0.9, "b2": 0.99, "clip": 0.2, "final_share": 0.0, "learning_rate": 0.0001,
  "moments_dtype": "float32", "schedule": "constant", "warmup_ratio": 0.0, "warmup_steps": 0, "weight_decay": 0.01},
  "prompts_per_step": 8, "sampler": {"alg": "entropy", "alg_temp": 0.0, "block_length": 8, "cache": "none",
  "cfg_scale": 0.0, "completion_length": 16, "early_stop": False, "eps": 0.001, "factor": None, "kind": "llada",
  "microbatches": 1, "prompt_buckets": [36], "remasking": "low_confidence", "steps": 16, "temperature": 1.0,
  "threshold": None, "top_k": None, "top_p": None}, "seed": 0, "steps": 100, "task": {"bad_rows": None, "columns":
  None, "data_dir": None, "name": "arithmetic", "reward_weights": None, "rewards": None, "test_source": None,
  "train_source": None, "validation_source": None},
}


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
  ChosenModel.of_flags(run, None, None, {"model.path": "tiny", "eval.lengths": (8,), "model.dtype": "float32"})
  with pytest.raises(ValueError, match="^--config.model.path: 'other' is not what the run in .* made with, 'tiny'"):
    ChosenModel.of_flags(run, None, None, {"model.path": "other"})
  with pytest.raises(ValueError, match="^--config.model.path: --model=tiny says already what is loaded"):
    ChosenModel.of_flags(None, None, "tiny", {"model.dtype": "bfloat16", "model.path": "other"})
  warn_of_flags({"model.path": "tiny", "eval.lengths": (8,)}, "llada", run)
  assert not caplog.text
  warn_of_flags({"sampler.temperature": 0.5, "sampler.steps": 256}, "llada", run)  # the run has so many steps
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
    "eval.lengths": (8, 16), "sampler.kind": "examples/own_sampler.py:sliding_window",
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


def test_the_default_of_an_own_objective_may_be_said_when_its_run_goes_on():
  own = {"objective.name": f"{REPOSITORY}/examples/own_objective.py:TokenPPO", "masks.kind": "uniform"}
  saved = load_config("gdsd_math:tiny", own).to_dict()
  told = lambda **said: contradictions(saved, run_config(load_config("gdsd_math:tiny", {**own, **said})))
  assert told(**{"objective.beta": 0.04}) == []
  assert told(**{"objective.beta": 0.05}) == ["objective.beta: None → 0.05"]


@pytest.mark.parametrize("useless, needs", [
  ({"name": "prompts", "extract": "last_number", "answer_after": "####"}, {"answer_column": "answer"}),
  ({"reward_seconds": 2.0, "reward_chat": True}, {"rewards": ("own.py:f",)}),
  ({"reward_late": -1.0, "rewards": ("own.py:f",)}, {"reward_seconds": 2.0}),
])
def test_a_run_that_had_set_what_nothing_uses_goes_on_and_is_evaluated_without_it(tmp_path, caplog, monkeypatch,
                                                                                 useless, needs):
  """Its fields were ignored when it began, and are refused today."""
  kept = {f"task.{name}": value for name, value in useless.items() if name in ("name", "rewards")}
  saved = load_config("gdsd_math:tiny", {f"task.{name}": value for name, value in useless.items()}).to_dict()
  current = run_config(load_config("gdsd_math:tiny", kept))
  assert contradictions(saved, current) == []
  (tmp_path / "config.json").write_text(json.dumps(saved))
  monkeypatch.setattr(logging.getLogger("gdsd_jax"), "propagate", True)
  task = saved_recipe(f"{tmp_path}/config.json").task.to_dict()
  assert not [name for name in useless if f"task.{name}" not in kept and task.get(name)]
  assert [record.message.rpartition(" its ")[2] for record in caplog.records] == [
    ", ".join(f"task.{name}" for name in sorted(useless) if f"task.{name}" not in kept)]
  saved["task"] |= needs  # what uses them
  assert len(contradictions(saved, current)) == len(useless) - len(kept) + len(needs)


def test_a_run_is_not_begun_where_a_sweep_or_a_comparison_lies(tmp_path):
  for name in ("sweep", "comparison"):
    (tmp_path / name).mkdir()
    (tmp_path / name / f"{name}.json").write_text("{}")
    with pytest.raises(ValueError, match=f"^--workdir: .*/{name} is the folder of a {name}, whose runs lie below it"):
      open_workdir(tmp_path / name, run_config(load("gdsd_math", "tiny")))


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


@pytest.mark.parametrize("then, now, different", [
  ({}, {}, []),
  ({"objective.name": "gdsd_tlc"}, {"objective.name": "gdsd_tlc", "objective.epsilon": 0.2}, []),
  ({"objective.epsilon": None}, {"objective.epsilon": 4e-4, "masks.kind": "sampler", "objective.num_mc": 2}, []),
  ({"masks.kind": "uniform", "objective.name": "espo"}, {"objective.name": "espo"}, []),
  # GDSD never had a centre, whatever was said of it.
  ({"objective.center_gradient": False, "objective.weighted": True}, {}, []),
  # ESPO's own masks are others than were chosen for it then.
  ({"objective.name": "espo"}, {"objective.name": "espo"}, ["masks.kind: 'sampler' → None"]),
  ({"objective.num_mc": 4}, {}, ["objective.num_mc: 4 → None"]),
  ({}, {"objective.psi": 0.05}, ["objective.psi: None → 0.05"]),
  # Dream's exact sampler had neither blocks nor remasking, whatever was said of them.
  ({"sampler.kind": "dream", "sampler.block_length": 32, "sampler.remasking": "random"},
   {"sampler.kind": "dream", "sampler.block_length": None}, []),
])
def test_a_run_of_the_release_before_goes_on_where_nothing_changes(tmp_path, then, now, different):
  saved, config = json.loads(json.dumps(EARLIER)), load("gdsd_math", "tiny")
  for path, value in then.items():
    part, _, name = path.partition(".")
    saved[part][name] = value
  config.update_from_flattened_dict(now)
  assert contradictions(saved, config := run_config(config)) == different
  (tmp_path / "config.json").write_text(json.dumps(saved))
  if different:
    with pytest.raises(ValueError, match="^--workdir: .* holds a run with another config"):
      open_workdir(tmp_path, config)
  else:
    open_workdir(tmp_path, config)
