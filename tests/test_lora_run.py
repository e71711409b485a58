"""Runs with LoRA from start to export: they resume exactly, keep the base, and leave as adapter or full model."""

import chex
from conftest import only_devices
import jax
import numpy as np
import pytest

import gdsd_jax
from gdsd_jax.huggingface.adapters import load_adapter
from gdsd_jax.huggingface.tokenizer import load_tokenizer
from gdsd_jax.models.lora import merge
from gdsd_jax.runs.checkpoints import Checkpoints
from gdsd_jax.runs.config_dict import base_config, config_json, run_config
from gdsd_jax.runs.export import export_run
from gdsd_jax.runs.files import read_rows
from gdsd_jax.runs.loop import resume, save
from gdsd_jax.runs.weights import load_run
from gdsd_jax.training.trainer import Trainer

SMALL = {
  "steps": 2, "group_size": 4, "prompts_per_step": 2, "sampler.completion_length": 8, "sampler.block_length": 4,
  "sampler.steps": 4, "sampler.prompt_buckets": (40,), "objective.num_iterations": 2, "objective.num_mc": 1,
  "eval.every": 100, "eval.num_examples": 8, "eval.batch_size": 8, "checkpoint.every": 1, "log.plot_seconds": 1000.0,
  "log.tensorboard": False, "mesh.data": 1, "mesh.fsdp": 2, "mesh.tensor": 1, "optimizer.learning_rate": 1e-3,
}


@pytest.fixture(scope="module", autouse=True)
def two_devices(quick_runs):
  with only_devices(2):
    yield


def small_config(**changes):
  config = base_config()
  config.update_from_flattened_dict({**SMALL, **changes})
  return run_config(config)


def lora_config(**changes):
  return small_config(**{"model.lora.rank": 4, "model.lora.dropout": 0.1, **changes})


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("lora")
  Trainer(lora_config(), workdir).train()
  return workdir


def untrained(workdir, **changes):
  """What a run of all parameters leaves behind, without its training: other weights than it started from."""
  trainer = Trainer(small_config(**changes), workdir)
  (workdir / "config.json").write_text(config_json(trainer.config))
  params = jax.tree.map(lambda leaf: leaf + 0.001, trainer.state.params)
  trainer.state = trainer.state.replace(step=trainer.state.step + 1, params=params)
  checkpoints = Checkpoints(workdir / "checkpoints", 1)
  save(trainer, checkpoints, None)
  checkpoints.close()
  return workdir


@pytest.fixture(scope="module")
def full_run(tmp_path_factory):
  return untrained(tmp_path_factory.mktemp("full"))


@pytest.mark.slow
def test_a_resumed_run_is_the_undisturbed_one(lora_run, tmp_path):
  Trainer(lora_config(steps=1), tmp_path).train()
  Trainer(lora_config(), tmp_path).train()
  untimed = lambda rows: [
    {name: value for name, value in row.items() if "second" not in name and not name.startswith("eval/")}
    for row in rows if row["step"] != 1  # the shorter run ended with an evaluation here
  ]
  assert untimed(read_rows(tmp_path / "metrics.jsonl")) == untimed(read_rows(lora_run / "metrics.jsonl"))
  chex.assert_trees_all_equal(load_run(tmp_path, "latest")[1], load_run(lora_run, "latest")[1])


@pytest.mark.slow
def test_full_training_in_bfloat16_keeps_float32_weights(tmp_path):
  """At this rate, bfloat16 would round most updates away."""
  config = small_config(steps=1, **{"model.dtype": "bfloat16", "optimizer.learning_rate": 1e-5})
  Trainer(config, tmp_path / "run").train()
  denoiser, trained = load_run(tmp_path / "run", "latest")
  _, start = gdsd_jax.load_pretrained("tiny")
  moved = jax.tree.leaves(jax.tree.map(lambda a, b: np.mean(np.asarray(a) != np.asarray(b)), trained, start))
  assert denoiser.dtype == "bfloat16" and min(moved) > 0.9
  export_run(tmp_path / "run", "latest", tmp_path / "exported", merged=False)
  chex.assert_trees_all_equal(gdsd_jax.load_pretrained(tmp_path / "exported")[1], jax.device_get(trained))


def test_checkpoints_hold_the_adapter_alone(lora_run):
  trainer = Trainer(lora_config(), lora_run)
  assert resume(trainer, Checkpoints(lora_run / "checkpoints", 2))
  adapter = sum(leaf.nbytes for leaf in jax.tree.leaves(trainer.state.params))
  stored = sum(file.stat().st_size for file in (lora_run / "checkpoints" / "2").rglob("*") if file.is_file())
  assert stored < 4 * adapter + 400_000  # adapter, two moments, and metadata; the base would be 1.6 MB
  _, base = gdsd_jax.load_pretrained("tiny")
  chex.assert_trees_all_equal(jax.device_get(trainer.state.frozen), jax.device_get(base))


def test_the_adapter_is_exported_for_peft(lora_run, tmp_path):
  export_run(lora_run, "latest", tmp_path, merged=False)
  files = {".made_from", "README.md", "adapter_config.json", "adapter_model.safetensors", "base_model"}
  assert {file.name for file in tmp_path.iterdir()} == files
  base, params = gdsd_jax.load_pretrained("tiny")
  _, exported = load_adapter(tmp_path, base, params)
  chex.assert_trees_all_equal(exported, load_run(lora_run, "latest")[1])


def test_the_merged_model_is_exported_whole(lora_run, tmp_path):
  export_run(lora_run, "latest", tmp_path, merged=True)
  denoiser, params = gdsd_jax.load_pretrained(tmp_path)
  adapted, run_params = load_run(lora_run, "latest")
  chex.assert_trees_all_close(params, merge(run_params, adapted.lora), atol=1e-7)
  tokens = np.arange(20).reshape(2, 10)
  logits, expected = jax.jit(denoiser.apply)(params, tokens), jax.jit(adapted.apply)(run_params, tokens)
  np.testing.assert_allclose(logits, expected, atol=1e-4)
  assert load_tokenizer(tmp_path, denoiser.config).chat_template


def test_a_full_run_is_exported_bit_by_bit(full_run, tmp_path):
  export_run(full_run, "latest", tmp_path, merged=False)
  chex.assert_trees_all_equal(gdsd_jax.load_pretrained(tmp_path)[1], load_run(full_run, "latest")[1])


def test_merging_a_run_without_an_adapter_is_refused(full_run, tmp_path):
  with pytest.raises(ValueError, match="--merge: the run in .* has no adapter"):
    export_run(full_run, "latest", tmp_path / "out", merged=True)
  assert not (tmp_path / "out").exists()


def test_the_model_that_a_run_started_from_is_not_overwritten(tmp_path):
  denoiser, params = gdsd_jax.load_pretrained("tiny")
  source = gdsd_jax.huggingface.weights.resolve_path("tiny")
  model = tmp_path / "model"
  gdsd_jax.save_pretrained(model, denoiser, params)
  for file in source.glob("*.json"):
    if file.name != "config.json":
      (model / file.name).write_bytes(file.read_bytes())
  for file in source.glob("*.jinja"):
    (model / file.name).write_bytes(file.read_bytes())
  untrained(tmp_path / "run", **{"model.path": str(model)})
  with pytest.raises(ValueError, match="--out: .* is the model that the run started from"):
    export_run(tmp_path / "run", "latest", model, merged=False)


def test_a_run_is_not_overwritten_by_its_own_export(lora_run):
  config = (lora_run / "config.json").read_text()
  with pytest.raises(ValueError, match="--out: .* is the run's own folder"):
    export_run(lora_run, "latest", lora_run, merged=True)
  assert (lora_run / "config.json").read_text() == config


def test_an_export_into_a_file_is_refused(lora_run, tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(OSError, match="--out: cannot write to .*file is a file"):
    export_run(lora_run, "latest", tmp_path / "file" / "out", merged=False)


def test_rl_starts_from_an_exported_adapter(lora_run, tmp_path):
  export_run(lora_run, "latest", tmp_path / "adapter", merged=False)
  trainer = Trainer(lora_config(**{"model.lora.path": str(tmp_path / "adapter")}), tmp_path / "run")
  chex.assert_trees_all_equal(
    jax.device_get(trainer.state.student_params), jax.device_get(load_run(lora_run, "latest")[1])
  )
  with pytest.raises(ValueError, match="has rank 4, .*the config has 8"):
    Trainer(
      lora_config(**{"model.lora.path": str(tmp_path / "adapter"), "model.lora.rank": 8}), tmp_path / "other"
    )


@pytest.mark.parametrize("changes, message", [
  ({"model.lora.targets": ("q", "x")}, "model.lora.targets: 'x'"),
  ({"objective.reference_sync_every": 5}, "objective.reference_sync_every: must be 0 with model.lora.rank"),
  ({"model.lora.rank": 0, "model.lora.path": "somewhere"}, "model.lora.path: needs model.lora.rank > 0"),
  ({"sampler.prompt_buckets": (5,)}, "none of the 500 train prompts fits 5 tokens"),
])
def test_bad_fields_are_named(tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    Trainer(lora_config(**changes), tmp_path)


def test_problems_with_long_prompts_are_left_out_and_counted(tmp_path, caplog):
  with caplog.at_level("INFO", logger="gdsd_jax"):
    trainer = Trainer(lora_config(**{"sampler.prompt_buckets": (30,)}), tmp_path)
  lengths = trainer.sampler.prompt_lengths(trainer.sampler.prompts(trainer.overlap.stream.examples))
  assert 0 < len(lengths) < 500 and lengths.max() <= 30
  assert f"{500 - len(lengths)} of 500 train problems are left out" in caplog.text
