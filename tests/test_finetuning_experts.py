"""Fine-tuning of mixtures of experts: the numbers of their load, the loss and the biases that even it out."""

import dataclasses
import json
import shutil

from block_folder import write_block_folder
from documented import undocumented
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_finetuning import chats_file, sft_recipe  # noqa: F401  (a fixture)
from test_load_balance import mixed  # noqa: F401  (a fixture)

import gdsd_jax
from gdsd_jax.huggingface.folder import load_config, resolve_path
from gdsd_jax.models.config import ExpertsConfig
from gdsd_jax.objectives.masked_cross_entropy import masked_cross_entropy
from gdsd_jax.parallel.mesh import make_mesh
from gdsd_jax.runs.config_dict import typed
from gdsd_jax.runs.files import read_rows
from gdsd_jax.runs.optimizer import make_optimizer, OptimizerConfig
from gdsd_jax.runs.state import init_state
from gdsd_jax.supervised.config import FinetuningConfig, PreferenceConfig, RouterConfig
from gdsd_jax.supervised.finetuning import _finetuning_step, finetune

pytestmark = pytest.mark.usefixtures("quick_runs")


@pytest.fixture
def folder(tmp_path):
  """LLaDA-MoE's layout with the tokenizer of the embedded model."""
  path = tmp_path / "model"
  shutil.copytree(resolve_path("tiny"), path)
  ids = json.loads((path / "config.json").read_text())
  (path / "config.json").write_text(json.dumps({name: ids[name] for name in (
    "vocab_size", "mask_token_id", "eos_token_id", "pad_token_id")} | {
      "model_type": "lladamoe", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_experts": 4,
      "num_experts_per_tok": 2, "expert_intermediate_size": 8, "tie_word_embeddings": False,
      "max_position_embeddings": 256}))
  denoiser = gdsd_jax.Denoiser(load_config(path))
  params = denoiser.init(jax.random.key(0))
  params["blocks"]["router"] = params["blocks"]["router"].at[:, :, 0].add(0.5)  # no even load to begin with
  gdsd_jax.save_pretrained(path, denoiser, params)
  return path


def test_an_adapter_that_files_have_no_place_for_is_refused_before_training(chats_file, tmp_path):  # noqa: F811
  """Query, key and value are one weight of LLaDA 2's files."""
  folder = write_block_folder(tmp_path / "model", family="llada2_moe", experts=ExpertsConfig(
    count=2, per_token=2, size=8, router="sigmoid", normalised=True, selection_bias=True))
  recipe = sft_recipe(chats_file, **{
    "model.path": str(folder), "model.lora.rank": 2, "model.lora.targets": ("q", "v", "o")})
  with pytest.raises(ValueError, match="^model.lora.targets: .* query, key, value as one module, model.layers.*:"
                                       " adapt all of these or none, or export the merged model$"):
    finetune(typed(FinetuningConfig, recipe), tmp_path / "run", tmp_path / "out")
  assert not (tmp_path / "run" / "metrics.jsonl").exists() and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_auxiliary_loss_evens_out_the_load_which_every_step_tells(folder, chats_file, tmp_path):  # noqa: F811
  found = {}
  for name, coefficient in (("even", 1.0), ("free", 0.0)):
    recipe = sft_recipe(chats_file, **{
      "model.path": str(folder), "model.train_router": True, "router.balance_coefficient": coefficient, "steps": 20,
      "optimizer.learning_rate": 3e-3, "log.every": 1})
    finetune(typed(FinetuningConfig, recipe), tmp_path / name, tmp_path / f"{name}_out")
    found[name] = read_rows(tmp_path / name / "metrics.jsonl")
  assert not undocumented(found["even"][-1]) and "router/balance_loss" not in found["free"][-1]
  # The loss told is that of the chats alone.
  assert found["even"][0]["loss"] == pytest.approx(found["free"][0]["loss"], rel=1e-6)
  assert found["even"][-1]["router/balance_loss"] < found["even"][0]["router/balance_loss"]
  assert found["even"][-1]["router/largest_load"] < found["free"][-1]["router/largest_load"] - 0.05


@pytest.mark.slow
def test_biases_go_up_where_the_load_is_below_the_mean_and_down_where_it_is_above(mixed):  # noqa: F811
  denoiser, params = mixed
  rng = np.random.default_rng(0)
  tokens = jnp.asarray(rng.integers(0, 50, (4, 12)))
  batch = tokens, jnp.arange(12)[None] >= jnp.full((4, 1), 4), jnp.ones(tokens.shape, bool)
  optimizer = make_optimizer(OptimizerConfig(weight_decay=0.5), updates=1)
  mesh = make_mesh(1, devices=jax.devices()[:1])
  state = init_state(denoiser, jax.tree.map(jnp.copy, params), optimizer, 0, with_reference=False, mesh=mesh)
  noise_key = jax.random.split(jax.random.split(jax.random.split(state.key)[1], 1)[0])[0]
  router = RouterConfig(bias_rate=0.25)
  new, _ = _finetuning_step(state, batch, denoiser=denoiser, optimizer=optimizer, router=router, prompt_length=4,
                            accumulation=1)
  load = masked_cross_entropy(denoiser, params, noise_key, *batch, 4, with_load=True)[1]["load"].chosen
  by = new.params["blocks"]["router_bias"] - params["blocks"]["router_bias"]
  np.testing.assert_allclose(by, 0.25 * np.sign(1 / load.shape[1] - np.asarray(load)), atol=1e-6)


@pytest.mark.parametrize("changes, message", [
  ({"router.balance_coefficient": -1.0}, "^router.balance_coefficient: must be at least 0, not -1.0$"),
  ({"router.bias_rate": -1.0}, "^router.bias_rate: must be at least 0"),
])
def test_weights_of_the_balance_are_no_less_than_none(tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    typed(FinetuningConfig, sft_recipe(tmp_path, **changes))


SOFTMAX, SIGMOID = ExpertsConfig(8, 2, 8), ExpertsConfig(8, 2, 8, router="sigmoid", selection_bias=True)


@pytest.mark.parametrize("experts, changes, message", [
  (None, {"router.balance_coefficient": 0.1}, "^router.balance_coefficient: must be 0: tiny has no experts"),
  (None, {"router.bias_rate": 0.1}, "^router.bias_rate: must be 0: tiny has no experts"),
  (SOFTMAX, {"router.balance_coefficient": 0.1}, "^router.balance_coefficient: needs model.train_router=True"),
  (SOFTMAX, {"router.bias_rate": 0.1}, "^router.bias_rate: must be 0: the routers of tiny choose experts without a"),
  (SIGMOID, {"router.bias_rate": 0.1, "model.lora.rank": 4}, "^router.bias_rate: needs model.lora.rank=0"),
  (SOFTMAX, {"router.balance_coefficient": 0.1, "model.train_router": True}, None),
  (SIGMOID, {"router.bias_rate": 0.1}, None), (None, {}, None),
])
def test_what_moves_routers_is_refused_where_there_is_nothing_to_move(tiny_config, experts, changes, message):
  config = typed(FinetuningConfig, sft_recipe("chats.jsonl", **changes))
  check = lambda: config.router.check_model(config.model, dataclasses.replace(tiny_config, experts=experts))
  if message is None:
    return check()
  with pytest.raises(ValueError, match=message):
    check()


def test_preferences_have_no_balance_of_experts(tmp_path):
  from conftest import load_recipe

  recipe = load_recipe("vrpo").get_config("tiny")
  recipe.router.bias_rate = 0.1
  with pytest.raises(ValueError, match="^router.balance_coefficient, router.bias_rate: must be 0 in fine-tuning on"):
    typed(PreferenceConfig, recipe)
