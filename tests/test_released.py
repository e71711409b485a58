"""The models that GDSD's authors released: their presets, and how they are loaded, be they whole models or adapters."""

import json
import shutil

from commands import run_command
from conftest import load_recipe
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gdsd_jax
from gdsd_jax.huggingface.adapters import save_adapter
from gdsd_jax.huggingface.folder import resolve_path, tokenizer_files
from gdsd_jax.models.lora import add_adapter, LoraConfig, merge
from gdsd_jax.runs.chosen_model import ChosenModel
from gdsd_jax.runs.config import evaluation_samplers
from gdsd_jax.runs.config_dict import run_config

BASE, OTHER = "GSAI-ML/LLaDA-8B-Instruct", "GSAI-ML/LLaDA-1.5"
RELEASED = "diffusion-reasoning/gdsd_sudoku_llada"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
# The official run's lora_target_modules (scripts/train_gdsd.yaml); LLaDA calls its o, gate and down otherwise.
OFFICIAL_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"]


def snapshot(cache, name):
  """An empty folder of the hub's cache, where its library finds the files of a model without a network."""
  folder = cache / f"models--{name.replace('/', '--')}"
  (folder / "refs").mkdir(parents=True)
  (folder / "refs" / "main").write_text(COMMIT)
  (folder / "snapshots" / COMMIT).mkdir(parents=True)
  return folder / "snapshots" / COMMIT


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
  """A hub's cache with a small model in LLaDA's published layout as BASE and as OTHER; the denoiser, and an adapter."""
  cache = tmp_path_factory.mktemp("hub")
  denoiser, params = gdsd_jax.load_pretrained("tiny_sudoku")
  whole(folder := snapshot(cache, BASE), denoiser, params)
  shutil.copytree(folder, snapshot(cache, OTHER), dirs_exist_ok=True)
  base, params = gdsd_jax.load_pretrained(folder)
  denoiser, params = add_adapter(base, params, LoraConfig(4, 2.0, 0.05, ("q", "k", "v", "up")), jax.random.key(0))
  params["lora"] = jax.tree.map(lambda x: x + 0.05, params["lora"])
  return cache, denoiser, params


def whole(folder, denoiser, params):
  gdsd_jax.save_pretrained(folder, denoiser, params, layout="published")
  for file in tokenizer_files(resolve_path("tiny_sudoku")):
    (folder / file.name).write_bytes(file.read_bytes())


def adapter(folder, denoiser, params, base=BASE):
  """An adapter as PEFT writes the official runs': all seven targets in its config, four of them in its weights."""
  save_adapter(folder, denoiser, params, base)
  config = json.loads((folder / "adapter_config.json").read_text())
  (folder / "adapter_config.json").write_text(json.dumps({**config, "target_modules": OFFICIAL_TARGETS}))
  weights = folder / "adapter_model.safetensors"
  save_file(load_file(weights), weights, metadata={"format": "pt"})  # PEFT knows no fingerprint


@pytest.fixture
def hub(stand_in, tmp_path, monkeypatch):
  """The stand-in as this test's hub, which it may add to."""
  cache = tmp_path / "hub"
  cache.mkdir()
  for folder in stand_in[0].iterdir():
    (cache / folder.name).symlink_to(folder)
  monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
  monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
  return cache, *stand_in[1:]


def released_config(**changes):
  config = load_recipe("gdsd_sudoku").get_config("released_llada")
  config.update_from_flattened_dict({"model.dtype": "float32", **changes})
  return run_config(config)


def loaded(**changes):
  return ChosenModel().load(released_config(**changes).model, None)


def test_an_adapter_with_four_of_its_targets_is_laid_over_the_base_that_it_names(hub, caplog):
  caplog.set_level("INFO", "gdsd_jax")
  cache, denoiser, params = hub
  adapter(snapshot(cache, RELEASED), denoiser, params)
  found, weights, model = loaded()
  assert model.path == BASE and found.lora.targets == ("q", "k", "v", "up")
  assert f"{RELEASED} is a PEFT adapter, laid over {BASE}" in caplog.messages
  jax.tree.map(np.testing.assert_array_equal, weights, params)
  over, again, _ = loaded(**{"model.path": BASE, "model.lora.path": RELEASED})
  assert over.lora == found.lora
  jax.tree.map(np.testing.assert_array_equal, again, params)


def test_a_whole_model_is_loaded_by_itself(hub, caplog):
  caplog.set_level("INFO", "gdsd_jax")
  cache, denoiser, params = hub
  merged = merge(params, denoiser.lora)
  whole(snapshot(cache, RELEASED), denoiser, merged)
  found, weights, model = loaded()
  assert model.path == RELEASED and found.lora is None and f"{RELEASED} is a whole model" in caplog.messages
  jax.tree.map(np.testing.assert_array_equal, weights, merged)


@pytest.mark.parametrize("base, changes, message", [
  (BASE, {"model.path": OTHER, "model.lora.path": RELEASED},
   f"model.lora.path: .* was made for {BASE}, not for {OTHER}; name its own base model by model.path"),
  (BASE, {"model.lora.path": RELEASED}, f"model.lora.path: {RELEASED}, which is model.path, is an adapter already"),
  ("/data/shared/LLaDA-8B-Instruct/", {}, "model.path: the base model of .*config.model.path=BASE --config.model.lora."
   "path=ADAPTER lay it over another.: '/data/shared/LLaDA-8B-Instruct' is neither a folder nor a hub name"),
  ("nobody/nothing", {}, "model.path: the base model of .*: 'nobody/nothing' is no local folder, and the hub refused"),
])
def test_a_base_that_does_not_fit_or_is_not_there_is_named(hub, base, changes, message):
  cache, denoiser, params = hub
  adapter(snapshot(cache, RELEASED), denoiser, params, base)
  with pytest.raises((ValueError, OSError), match=message) as raised:
    loaded(**changes)
  assert "\n" not in str(raised.value)


def test_a_released_model_that_the_hub_does_not_give_is_named(hub):
  with pytest.raises(FileNotFoundError, match=f"model.path: '{RELEASED}' is no local folder, and the hub refused"):
    loaded()


# Preset -> what github.com/GaryBall/GDSD names, how it evaluates, and what its scripts train with.
_GREEDY = {"eval.temperature": 0.0, "eval.lengths": (128, 256, 512), "eval.steps_per_token": 0.5,
           "eval.prompt": "evaluation", "eval.prefill": "<reasoning>"}
_TLC = {"objective.name": "gdsd_tlc", "objective.num_mc": 2, "objective.psi": 0.04}
PRESETS = {
  ("sudoku", "released_llada"): {"model.path": RELEASED, "sampler.kind": "llada", "eval.test_size": 256, **_GREEDY},
  ("sudoku", "released_dream"): {"model.path": "diffusion-reasoning/gdsd_sudoku_dream", "sampler.kind": "dream",
                                 "eval.test_size": 256, **_GREEDY},
  ("countdown", "released_llada"): {"model.path": "diffusion-reasoning/gdsd_countdown_llada", "sampler.kind": "llada",
                                    "eval.test_size": None, **_GREEDY},
  ("countdown", "released_dream"): {"model.path": "diffusion-reasoning/gdsd_countdown_dream", "sampler.kind": "dream",
                                    "eval.test_size": None, **_GREEDY},
  ("code", "released_llada"): {"model.path": "diffusion-reasoning/gdsd_code_llada", "sampler.kind": "llada",
                               "eval.temperature": 0.0, "eval.lengths": (128, 256, 512), "task.name": "code"},
  # scripts/run_gdsd_dream_sudoku.sh, run_gdsd_dream_ctd.sh, and the later run_gdsd_llada_gsm8k.sh
  ("sudoku", "dream_7b"): {**_TLC, "objective.center_top_k": 8, "objective.num_iterations": 1, "sampler.steps": 128,
                           "objective.beta": 1e-3, "optimizer.learning_rate": 1e-5, "masks.remasking": "random",
                           "masks.block_length": 32, "objective.epsilon": 0.2, "optimizer.accumulation": 4},
  ("countdown", "dream_7b"): {**_TLC, "objective.num_iterations": 8, "objective.beta": 3e-3, "sampler.steps": 256,
                              "objective.epsilon": 4e-4, "optimizer.learning_rate": 1e-5, "optimizer.accumulation": 4},
  ("gsm8k", "llada_8b_tlc"): {**_TLC, "objective.num_iterations": 8, "objective.beta": 1e-3, "sampler.steps": 256,
                              "objective.epsilon": 4e-4, "optimizer.learning_rate": 3e-6, "optimizer.accumulation": 4,
                              "model.path": BASE, "task.name": "gsm8k_xml"},
  ("code", "llada_8b"): {**_TLC, "objective.num_mc": 4, "objective.beta": 5e-2, "objective.epsilon": 4e-4,
                         "objective.num_iterations": 8, "optimizer.learning_rate": 3e-6, "optimizer.accumulation": 20},
}


@pytest.mark.parametrize("recipe, preset", PRESETS)
def test_presets_are_as_published(recipe, preset):
  module = load_recipe(f"gdsd_{recipe}")
  config = module.get_config(preset)
  built = run_config(config)
  assert set(evaluation_samplers(built)) == {128, 256, 512} and f"{preset}" in module.__doc__
  for path, value in PRESETS[recipe, preset].items():
    found = config
    for name in path.split("."):
      found = found[name]
    if path == "objective.epsilon":
      found = built.objective.epsilon
    assert found == value, path


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adapter", "whole"])
def test_one_command_evaluates_a_released_model(hub, tmp_path, kind):
  cache, denoiser, params = hub
  if kind == "adapter":
    adapter(snapshot(cache, RELEASED), denoiser, params)
  else:
    whole(snapshot(cache, RELEASED), denoiser, merge(params, denoiser.lora))
  fields = {"task.variant": "small", "task.prompt": "bare", "eval.lengths": "(20,)",
            "eval.block_length": 20, "model.dtype": "float32", "eval.test_size": 4,
            "eval.prompt_buckets": "(40,)", "eval.batch_size": 8}
  overrides = [f"--config.{name}={value}" for name, value in fields.items()]
  result = run_command("launch/evaluate.py", "--config=configs/gdsd_sudoku.py:released_llada", *overrides,
                       f"--out={tmp_path / 'out'}", HF_HUB_CACHE=str(cache), HF_HUB_OFFLINE="1")
  assert result.returncode == 0, result.stderr
  summary = json.loads(result.stdout.splitlines()[-1])
  assert summary["model"]["source"] == RELEASED and summary["n"] == 4
