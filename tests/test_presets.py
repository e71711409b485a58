"""The recipes of the published models, run on small models in the published layouts, with the published token ids."""

import json

from conftest import load_recipe
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_full_size import PUBLISHED
from test_published_tokenizers import dream_folder, llada_folder  # noqa: F401  (fixtures)

import gdsd_jax
from gdsd_jax.huggingface import weights as huggingface
from gdsd_jax.runs.config_dict import run_config
from gdsd_jax.runs.files import read_rows
from gdsd_jax.runs.weights import load_run
from gdsd_jax.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("quick_runs")

SMALL_SHAPE = {
  "llada_8b": dict(d_model=16, n_layers=2, n_heads=2, n_kv_heads=2, mlp_hidden_size=24),
  "dream_7b": dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                   intermediate_size=24),
}
SMALL_RUN = {
  "steps": 1, "group_size": 2, "prompts_per_step": 1, "optimizer.accumulation": 1, "sampler.completion_length": 4,
  "sampler.steps": 2, "sampler.prompt_buckets": (320,), "objective.num_iterations": 1, "eval.every": 100,
  "eval.num_examples": 1, "eval.batch_size": 1, "log.tensorboard": False, "model.lora.rank": 4,
  "log.plot_seconds": 1000.0,
}
ROWS = {
  "math": {"problem": "What is 1 + 1?", "answer": "2"},
  "gsm8k": {"question": "Tom has 1 apple and buys 1 more. How many?", "answer": "1 + 1 = 2\n#### 2"},
}


@pytest.fixture
def model(request, tmp_path, llada_folder, dream_folder):  # noqa: F811
  """Folder of a small model of a published family: its weights, and its tokenizer with the published ids."""
  preset = request.param
  folder = llada_folder if preset == "llada_8b" else dream_folder
  path = tmp_path / "model"
  path.mkdir()
  for file in folder.iterdir():
    (path / file.name).write_bytes(file.read_bytes())
  fields = PUBLISHED[preset] | SMALL_SHAPE[preset]
  (path / "config.json").write_text(json.dumps(fields))
  denoiser = gdsd_jax.Denoiser(huggingface.load_config(path), param_dtype="bfloat16")
  gdsd_jax.save_pretrained(path, denoiser, denoiser.init(jax.random.key(0)))
  return preset, path


@pytest.mark.slow
@pytest.mark.parametrize("model, recipe", [
  ("llada_8b", "gsm8k"), ("dream_7b", "math"),
], indirect=["model"])
def test_recipes_run_on_the_published_layouts(model, recipe, tmp_path):
  preset, path = model
  data = tmp_path / "problems.jsonl"
  data.write_text(json.dumps(ROWS[recipe]) + "\n" + json.dumps(ROWS[recipe]) + "\n")
  config = load_recipe(f"gdsd_{recipe}").get_config(preset)
  if preset == "llada_8b":
    config.sampler.block_length = 2
  config.update_from_flattened_dict({**SMALL_RUN, "model.path": str(path), "task.train_source": str(data),
                                     "task.test_source": str(data)})
  Trainer(run_config(config), tmp_path / "run").train()
  rows = read_rows(tmp_path / "run" / "metrics.jsonl")
  assert [row["step"] for row in rows] == [0, 1]
  for row in rows[1:]:
    assert np.isfinite([row["loss"], row["kl"], row["grad_norm"], row["reward"]]).all() and row["skipped"] == 0
  denoiser, params = load_run(tmp_path / "run", "latest")
  assert denoiser.config.mask_token_id == PUBLISHED[preset]["mask_token_id"]
  assert params["blocks"]["query"].dtype == jnp.bfloat16 and params["lora"]["query"]["a"].dtype == jnp.float32


@pytest.mark.parametrize("recipe", ["gsm8k", "code"])
def test_recipes_beyond_the_embedded_model_say_so(recipe):
  with pytest.raises(ValueError, match="no preset tiny here, .*there are llada_8b, dream_7b"):
    load_recipe(f"gdsd_{recipe}").get_config()


@pytest.mark.parametrize("recipe", ["math", "gsm8k", "code", "sft", "vrpo"])
def test_an_unknown_preset_is_refused_with_the_known_ones(recipe):
  with pytest.raises(ValueError, match="unknown preset 'llada', known are tiny, llada_8b, dream_7b"):
    load_recipe(recipe if recipe in ("sft", "vrpo") else f"gdsd_{recipe}").get_config("llada")
