"""Runs over a quantised base: they resume exactly, and leave an adapter of the weights that they had read, or these."""

import chex
import jax
import numpy as np
import pytest

import gdsd_jax
from gdsd_jax.chat.answers import Answering
from gdsd_jax.chat.config import sample_config
from gdsd_jax.huggingface.adapters import load_adapter
from gdsd_jax.models.lora import merge
from gdsd_jax.parallel.mesh import is_quantised
from gdsd_jax.runs.chosen_model import ChosenModel
from gdsd_jax.runs.config_dict import base_config, run_config
from gdsd_jax.runs.export import export_run
from gdsd_jax.runs.files import read_rows
from gdsd_jax.runs.saved_config import saved_recipe
from gdsd_jax.runs.weights import load_run
from gdsd_jax.training.report import announce
from gdsd_jax.training.trainer import Trainer

SMALL = {
  "steps": 2, "group_size": 4, "prompts_per_step": 2, "sampler.completion_length": 8, "sampler.block_length": 4,
  "sampler.steps": 4, "sampler.prompt_buckets": (40,), "objective.num_iterations": 2, "objective.num_mc": 1,
  "eval.every": 100, "eval.num_examples": 8, "eval.batch_size": 8, "checkpoint.every": 1, "log.plot_seconds": 1000.0,
  "log.tensorboard": False, "optimizer.learning_rate": 1e-3, "model.lora.rank": 4, "model.quantize.kind": "nf4",
  "model.quantize.block_size": 32, "model.quantize.head": True,
}


@pytest.fixture(scope="module", autouse=True)
def one_device(quick_runs):
  yield


def small_config(**changes):
  config = base_config()
  config.update_from_flattened_dict({**SMALL, **changes})
  return run_config(config)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("quantised")
  Trainer(small_config(), workdir).train()
  return workdir


def test_the_base_stays_quantised_and_the_reference_is_it(run):
  trainer = Trainer(small_config(), run)
  state = trainer.state
  assert is_quantised(state.frozen["blocks"]["query"]) and is_quantised(state.frozen["head"])
  for params in (state.student_params, state.reference_params):
    assert params["blocks"]["query"] is state.frozen["blocks"]["query"]
  rows = read_rows(run / "metrics.jsonl")
  assert all(np.isfinite(row["loss"]) for row in rows[1:])


def test_its_size_is_that_of_the_weights_as_they_were_read(run, caplog):
  trainer = Trainer(small_config(), run)
  whole = load_run(run, "latest", whole=True)[1]
  with caplog.at_level("INFO"):
    announce(trainer.config, trainer.state, trainer.mesh)
  assert f"{sum(leaf.size for leaf in jax.tree.leaves(whole)) / 1e6:.3g} M parameters" in caplog.text


def test_it_answers_as_the_run_itself_does(run):
  chosen, question = ChosenModel(run), "Tom has 3 apples."
  config = sample_config(saved_recipe(str(run)), {}, chosen)
  answering = Answering(config, chosen.resolved())
  prompt = answering.prompt([{"role": "user", "content": question}], config.sampler)
  answer = answering.answer(prompt, config.sampler, seed=3)
  trainer = Trainer(small_config(), run)
  trainer.train()  # which is done already
  assert [answer.text] == trainer.sample([question], seed=3)


@pytest.mark.slow
def test_a_resumed_run_is_the_undisturbed_one(run, tmp_path):
  Trainer(small_config(steps=1), tmp_path).train()
  Trainer(small_config(), tmp_path).train()
  chex.assert_trees_all_equal(load_run(tmp_path, "latest")[1], load_run(run, "latest")[1])


def test_another_kind_is_another_run(run):
  with pytest.raises(ValueError, match="model.quantize.kind"):
    Trainer(small_config(**{"model.quantize.kind": "int8"}), run).train()


def test_the_adapter_is_exported_for_the_weights_as_they_were_read(run, tmp_path):
  export_run(run, "latest", tmp_path, merged=False)
  base, params = gdsd_jax.load_pretrained("tiny")
  exported = load_adapter(tmp_path, base, params)[1]
  chex.assert_trees_all_equal(exported, load_run(run, "latest", whole=True)[1])
  chex.assert_trees_all_equal(exported["lora"], load_run(run, "latest")[1]["lora"])


def test_it_is_merged_into_the_weights_as_they_were_read(run, tmp_path):
  export_run(run, "latest", tmp_path / "run", merged=True)
  adapted, params = load_run(run, "latest", whole=True)
  merged = jax.device_get(merge(params, adapted.lora))
  chex.assert_trees_all_close(gdsd_jax.load_pretrained(tmp_path / "run")[1], merged, atol=1e-7)


def test_a_program_writes_the_model_in_training_merged_into_the_weights_as_they_were_read(tmp_path):
  trainer = Trainer(small_config(), tmp_path / "run")  # whose adapter does nothing yet
  trainer.save_pretrained(tmp_path / "out", merged=True)
  chex.assert_trees_all_equal(*(gdsd_jax.load_pretrained(path)[1] for path in (tmp_path / "out", "tiny")))


def test_all_parameters_of_a_quantised_model_are_not_trained(tmp_path):
  config = small_config(**{"model.lora.rank": 0})  # which may be evaluated
  with pytest.raises(ValueError, match="model.quantize.kind: needs model.lora.rank > 0"):
    Trainer(config, tmp_path / "run")


@pytest.mark.parametrize("field", ["model.quantize.kind", "model.lora.path"])
def test_an_empty_word_is_not_taken_for_none(field):
  with pytest.raises(ValueError, match=f"^{field}: (is empty|'' is not one of)"):
    small_config(**{"model.quantize.block_size": 64, "model.quantize.head": False, field: ""})


def test_how_is_not_said_without_what():
  with pytest.raises(ValueError, match="model.quantize.block_size: has no effect without model.quantize.kind"):
    small_config(**{"model.quantize.kind": None})
