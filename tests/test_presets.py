"""The recipes of the published models, run on small models in the published layouts, with the published token ids."""

import json
import shutil

from block_folder import SAMPLED, write_block_folder
from commands import run_command
from conftest import load_recipe
from documented import undocumented
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_full_size import PUBLISHED
from test_published_tokenizers import dream_folder, llada_folder  # noqa: F401  (fixtures)

import gdsd_jax
from gdsd_jax.chat.config import sample_config
from gdsd_jax.huggingface import weights as huggingface
from gdsd_jax.huggingface.chat_format import PRESETS
from gdsd_jax.huggingface.published import architecture, HUB_NAMES
from gdsd_jax.runs.chosen_model import ChosenModel
from gdsd_jax.runs.config import evaluation_samplers
from gdsd_jax.runs.config_dict import run_config
from gdsd_jax.runs.files import read_rows
from gdsd_jax.runs.fit import validate_family
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


@pytest.mark.slow
def test_a_run_of_a_mixture_of_experts_tells_their_load(tmp_path, llada_folder, caplog):  # noqa: F811
  """LLaDA-MoE's layout with the tokenizer of LLaDA: all parameters but the routers are trained."""
  model = tmp_path / "model"
  shutil.copytree(llada_folder, model)
  (model / "chat_template.jinja").write_text(PRESETS["llada"])  # which this family's files must have
  ids = {name: PUBLISHED["llada_8b"][name] for name in ("vocab_size", "mask_token_id", "eos_token_id", "pad_token_id")}
  (model / "config.json").write_text(json.dumps(ids | {
    "model_type": "lladamoe", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_experts": 4,
    "num_experts_per_tok": 2, "expert_intermediate_size": 8, "qk_layernorm": True, "tie_word_embeddings": False,
    "max_position_embeddings": 1024}))
  denoiser = gdsd_jax.Denoiser(huggingface.load_config(model))
  params = denoiser.init(jax.random.key(0))
  gdsd_jax.save_pretrained(model, denoiser, params)
  data = tmp_path / "problems.jsonl"
  data.write_text(2 * (json.dumps(ROWS["gsm8k"]) + "\n"))
  config = load_recipe("gdsd_gsm8k").get_config("llada_moe")
  config.sampler.block_length = 2
  config.update_from_flattened_dict({**SMALL_RUN, "model.path": str(model), "task.train_source": str(data),
                                     "task.test_source": str(data), "model.lora.rank": 0})
  with caplog.at_level("INFO", logger="gdsd_jax"):
    Trainer(run_config(config), tmp_path / "run").train()
  assert "the routers of experts stay as they are" in caplog.text
  row = read_rows(tmp_path / "run" / "metrics.jsonl")[1]
  assert not undocumented(name for name in row if name.startswith("router/")) and row["skipped"] == 0
  assert 1 <= row["router/largest_load"] <= 2 and 0 < row["router/load_entropy"] <= 1
  assert row["router/idle_experts"] in (0, 0.125, 0.25, 0.375, 0.5)
  _, trained = load_run(tmp_path / "run", "latest")
  np.testing.assert_array_equal(trained["blocks"]["router"], params["blocks"]["router"])
  assert not np.array_equal(trained["blocks"]["query"], params["blocks"]["query"])


@pytest.mark.parametrize("recipe", ["gsm8k", "code"])
def test_recipes_beyond_the_embedded_model_say_so(recipe):
  with pytest.raises(ValueError, match="no preset tiny here, .*there are llada_8b, dream_7b, sdar_8b"):
    load_recipe(f"gdsd_{recipe}").get_config()


@pytest.mark.parametrize("recipe", ["math", "gsm8k", "code", "sft", "vrpo"])
def test_an_unknown_preset_is_refused_with_the_known_ones(recipe):
  with pytest.raises(ValueError, match="unknown preset 'llada', known are tiny, llada_8b, dream_7b"):
    load_recipe(recipe if recipe in ("sft", "vrpo") else f"gdsd_{recipe}").get_config("llada")


BLOCKS = {"sdar_8b": 4, "sdar_1.7b": 4, "llada2_mini": 32}


@pytest.mark.parametrize("recipe", ["math", "gsm8k", "countdown", "sudoku", "code"])
@pytest.mark.parametrize("preset", BLOCKS)
def test_block_causal_presets_go_block_by_block_with_the_exact_cache(recipe, preset):
  config = run_config(load_recipe(f"gdsd_{recipe}").get_config(preset))
  assert config.model.path == HUB_NAMES[preset]
  validate_family(config, architecture(config.model.path), config.model.path)
  for sampler in (config.sampler, *evaluation_samplers(config).values()):
    assert (sampler.kind, sampler.block_length, sampler.cache) == ("block", BLOCKS[preset], "exact")
  assert all(sampler.block_steps == BLOCKS[preset] for sampler in evaluation_samplers(config).values())


@pytest.mark.parametrize("preset, class_name", [("illada_8b", "iLLaDA-8B-Instruct"), ("llada_moe", "LLaDA-MoE-7B-A1B")])
def test_presets_whose_config_json_is_not_known_say_so_and_take_a_folder(goldens, tmp_path, preset, class_name):
  config = run_config(load_recipe("gdsd_math").get_config(preset))
  assert class_name in config.model.path and config.sampler.kind == "llada"
  with pytest.raises(ValueError, match=f"model.path: '.*{class_name}.*' is no folder.*--config.model.path=FOLDER"):
    architecture(config.model.path)
  golden = goldens / ("illada_tiny" if preset == "illada_8b" else "lladamoe_tiny") / "hf" / "config.json"
  (tmp_path / "config.json").write_text(json.dumps({**json.loads(golden.read_text()), "mask_token_id": 510}))
  validate_family(config, architecture(str(tmp_path)), str(tmp_path))


def test_another_block_length_than_the_models_is_refused_with_the_models():
  recipe = load_recipe("gdsd_math").get_config("llada2_mini")
  recipe.sampler.block_length = 16
  config = run_config(recipe)
  with pytest.raises(ValueError, match="^sampler.block_length: 16 is not the model's block length; give 32$"):
    validate_family(config, architecture(config.model.path), config.model.path)


def test_a_block_causal_model_alone_is_sampled_block_by_block(goldens):
  from gdsd_jax.chat import model_alone

  chosen = ChosenModel(model=str(goldens / "sdar_tiny" / "hf"))
  sampler = sample_config(model_alone.get_config(), {}, chosen, is_alone=True).sampler
  model = architecture(chosen.model)
  assert (sampler.kind, sampler.block_length, sampler.cache) == ("block", model.block_length, "exact")
  assert sampler.temperature == 0 and sampler.block_steps == model.block_length and sampler.early_stop


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [False, True])
def test_a_block_causal_model_answers_on_the_command_line(tmp_path, recipe):
  folder = write_block_folder(tmp_path / "model")
  given = [f"--config.{name}={value}" for name, value in SAMPLED.items() if not name.startswith("eval.")]
  done = run_command("launch/sample.py", f"--model={folder}", "--prompt=1 + 1", "--json",
                     *(["--config=configs/gdsd_math.py", *given] if recipe else []))
  assert done.returncode == 0, done.stderr
  told = json.loads(done.stdout)
  assert told["sampler"]["kind"] == "block" and told["sampler"]["cache"] == "exact"
