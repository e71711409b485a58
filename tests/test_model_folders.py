"""Model and adapter folders as people have them: read, or refused by their right name, in one line."""

import dataclasses
import json
import logging
import shutil

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from test_huggingface import (
  CONFIG,
  hugging_face_fields,
  hugging_face_weights,
  INDEX,
  random_params,
  SINGLE,
  write_hugging_face,
)

import gdsd_jax
from gdsd_jax.huggingface import config_fields
from gdsd_jax.huggingface.adapters import load_adapter, save_adapter
from gdsd_jax.huggingface.eurobert import EUROBERT
from gdsd_jax.huggingface.folder import load_config
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.models.lora import add_adapter, LoraConfig
from gdsd_jax.models.transformer import rotate

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1652488\n"
HEAD, EMBEDDING = "model.transformer.ff_out.weight", "model.transformer.wte.weight"
TIED = dataclasses.replace(CONFIG, tied_head=True)


def write(folder, weights, **fields):
  """A LLaDA folder of CONFIG's shape with other fields; `...` leaves one out."""
  write_hugging_face(folder, CONFIG, weights)
  fields = {**hugging_face_fields(CONFIG), **fields}
  (folder / "config.json").write_text(json.dumps({name: value for name, value in fields.items() if value is not ...}))
  return folder


def refusal(folder):
  with pytest.raises((ValueError, OSError)) as caught:
    gdsd_jax.load_pretrained(folder)
  message = str(caught.value)
  assert message.startswith("model.path: ") and "\n" not in message
  return message


@pytest.fixture
def weights():
  return hugging_face_weights(CONFIG)


# Heads that are the embedding, under the names that people's files have.


@pytest.mark.parametrize("field", ["weight_tying", "tie_word_embeddings", None])
@pytest.mark.parametrize("names", [(EMBEDDING,), (HEAD,), (EMBEDDING, HEAD), (EMBEDDING, "lm_head.weight")])
def test_a_tied_head_is_read_under_each_of_its_names(tmp_path, field, names):
  weights = hugging_face_weights(TIED)
  embedding = weights.pop(EMBEDDING)
  stated = {"weight_tying": ...} | ({field: True} if field else {})
  if field is None and len(names) == 2 or field is None and HEAD in names:
    pytest.skip("config.json and the files leave it open")
  denoiser, params = gdsd_jax.load_pretrained(write(tmp_path, weights | dict.fromkeys(names, embedding), **stated))
  assert denoiser.config.tied_head and "head" not in params
  np.testing.assert_array_equal(params["embedding"], embedding)


def test_a_head_that_is_not_the_embedding_though_config_json_says_so_is_refused(tmp_path, weights):
  message = refusal(write(tmp_path, weights, weight_tying=True))
  assert f"but {HEAD}" in message and "set weight_tying" in message


def test_a_missing_head_of_a_model_that_says_it_has_one_is_named(tmp_path, weights):
  del weights[HEAD]
  assert f"holds {HEAD}" in refusal(write(tmp_path, weights, weight_tying=False))


def test_a_head_may_be_called_as_transformers_calls_it(tmp_path, weights):
  head = weights["lm_head.weight"] = weights.pop(HEAD)
  _, params = gdsd_jax.load_pretrained(write(tmp_path, weights))
  np.testing.assert_array_equal(params["head"].T, head)


# Files that are not what they seem, or lie under other names.


@pytest.mark.parametrize("name", [SINGLE, "config.json"])
def test_a_git_lfs_pointer_is_told_as_one(tmp_path, weights, name):
  write(tmp_path, weights)
  (tmp_path / name).write_text(POINTER)
  message = refusal(tmp_path)
  assert f"{tmp_path / name} is a Git LFS pointer" in message and "git lfs pull" in message


@pytest.mark.parametrize("name, words", [
  ("pytorch_model.bin", "pytorch_model.bin is pickles"), ("model.gguf", "model.gguf is of llama.cpp's format"),
  ("model.pt", "model.pt is pickles"), ("adapter_config.json", "is a PEFT adapter, which model.lora.path takes"),
])
def test_weights_of_another_format_are_told_by_their_name(tmp_path, weights, name, words):
  write(tmp_path, weights)
  (tmp_path / SINGLE).rename(tmp_path / name)
  message = refusal(tmp_path)
  assert f"has neither {SINGLE} nor {INDEX}" in message and words in message


def test_an_adapter_in_the_place_of_a_model_is_told_as_one(tmp_path):
  (tmp_path / "adapter_config.json").write_text("{}")
  assert "is a PEFT adapter, which model.lora.path takes, with its base model as model.path" in refusal(tmp_path)


def shards(folder, weights, names, index=None):
  """The weights dealt out to files of these names, with an index where it has a name."""
  (folder / SINGLE).unlink()
  parts = {file: {name: weights[name] for name in sorted(weights)[i::len(names)]} for i, file in enumerate(names)}
  for file, part in parts.items():
    save_file(part, folder / file)
  if index:
    where = {name: file for file, part in parts.items() for name in part}
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": where}))


NUMBERED = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.mark.parametrize("names, index", [
  (NUMBERED, INDEX), (NUMBERED, None), (NUMBERED, "pytorch_model.safetensors.index.json"), (["a.st.safetensors"], None),
  (["x.safetensors", "y.safetensors"], "consolidated.safetensors.index.json"),
])
def test_weights_are_found_under_other_names(tmp_path, weights, names, index):
  shards(write(tmp_path, weights), weights, names, index)
  _, params = gdsd_jax.load_pretrained(tmp_path)
  np.testing.assert_array_equal(params["embedding"], weights[EMBEDDING])


def test_missing_and_ambiguous_shards_are_told(tmp_path, weights):
  shards(write(tmp_path, weights), weights, NUMBERED)
  (tmp_path / NUMBERED[0]).rename(tmp_path / "elsewhere")
  assert f"weight file {tmp_path / NUMBERED[0]} is missing" in refusal(tmp_path)
  save_file({}, tmp_path / "other.safetensors")
  assert "several weight files, and no model.safetensors.index.json" in refusal(tmp_path)


def test_an_index_that_names_what_its_files_lack_is_told(tmp_path, weights):
  shards(write(tmp_path, weights), weights, NUMBERED, INDEX)
  stated = json.loads((tmp_path / INDEX).read_text())["weight_map"][EMBEDDING]
  for name in NUMBERED:
    with safe_open(tmp_path / name, "np") as opened:
      kept = {key: opened.get_tensor(key) for key in opened.keys() if key != EMBEDDING}
    save_file(kept, tmp_path / name)
  assert f"{INDEX} says that {stated} holds {EMBEDDING}, which it does not" in refusal(tmp_path)


@pytest.mark.parametrize("rename, words", [
  (lambda name: f"module.{name}", "which was saved from within another module"),
  (lambda name: name.replace("weight", "qweight"), "as quantised models do"),
])
def test_what_other_names_mean_is_told(tmp_path, weights, rename, words):
  assert words in refusal(write(tmp_path, {rename(name): value for name, value in weights.items()}))


@pytest.mark.parametrize("name", [
  "model.transformer.blocks.0.q_norm.weight", "model.transformer.blocks.2.q_proj.weight",
  "model.transformer.blocks.0.attn_out.bias", "model.transformer.ln_f.bias",
])
def test_weights_that_the_published_network_would_use_are_not_left_out(tmp_path, weights, name):
  message = refusal(write(tmp_path, weights | {name: np.ones(16, np.float32)}))
  assert f"holds {name}, which this network has no place for" in message


def test_weights_of_something_else_are_left_out_with_a_word(tmp_path, weights, caplog):
  extra = {"value_head.weight": np.ones(2, np.float32),
           "model.transformer.blocks.0.rotary_emb.inv_freq": np.ones(2, np.float32)}
  with caplog.at_level(logging.WARNING):
    gdsd_jax.load_pretrained(write(tmp_path, weights | extra))
  [record] = caplog.records
  assert record.getMessage() == f"{tmp_path}: weights that the network has no place for are left out: value_head.weight"


# Fields of config.json: obeyed, refused, or known to change nothing.

REFUSED = {
  "quantization_config": {"quant_method": "bitsandbytes"}, "layer_norm_with_affine": False, "block_group_size": 2,
  "use_sliding_window": True, "use_mrope": True, "qk_layernorm": True, "partial_rotary_factor": 0.5, "num_experts": 8,
  "is_causal": True,
  "layer_types": ["sliding_attention"] * 2, "logit_scale": 0.5, "final_logit_softcapping": 30.0,
  "rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0},
  "scale_logits": True, "alibi": True, "attention_layer_norm": True, "input_emb_norm": True, "activation_type": "gelu",
}


@pytest.mark.parametrize("name, value", REFUSED.items())
def test_a_field_that_changes_the_computation_is_refused_by_its_name(tmp_path, name, value):
  (tmp_path / "config.json").write_text(json.dumps(hugging_face_fields(CONFIG) | {name: value}))
  with pytest.raises(ValueError, match=rf"config\.json: .*{name}") as caught:
    load_config(tmp_path)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fields, words", [
  ({"attention_dropout": 0.1}, "attention_dropout is 0.1, which is not applied in training"),
  ({"new_idea": 3, "off": None, "no": False}, "what these fields ask for is not known here, and left out: new_idea"),
])
def test_what_is_not_obeyed_is_warned_of(tmp_path, caplog, fields, words):
  config_fields._warn.cache_clear()
  (tmp_path / "config.json").write_text(json.dumps(hugging_face_fields(CONFIG) | fields))
  with caplog.at_level(logging.WARNING):
    load_config(tmp_path)
  assert [record.getMessage() for record in caplog.records] == [f"config.json: {words}"]


def test_published_configs_need_no_warning(goldens, caplog):
  config_fields._warn.cache_clear()
  with caplog.at_level(logging.WARNING):
    for name in ("llada_tiny", "dream_tiny"):
      load_config(goldens / name / "hf")
  assert caplog.records == []


def test_linear_scaling_gives_longer_texts_the_angles_of_shorter_ones():
  x = np.random.default_rng(0).normal(size=(1, 9, 2, 16)).astype(np.float32)
  positions = np.arange(9)[None]
  np.testing.assert_allclose(rotate(x, 4 * positions, 1000.0, 4.0), rotate(x, positions, 1000.0), atol=1e-5)


@pytest.mark.slow
def test_linear_scaling_is_transformers_own():
  torch = pytest.importorskip("torch")
  from transformers import LlamaConfig
  from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

  config = LlamaConfig(hidden_size=32, num_attention_heads=2, rope_parameters={
    "rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0})
  frequencies, scale = ROPE_INIT_FUNCTIONS["linear"](config, "cpu")
  assert scale == 1
  x = np.random.default_rng(0).normal(size=(1, 9, 2, 16)).astype(np.float32)
  angles = torch.arange(9)[:, None] * frequencies
  cos, sin = (np.asarray(f(angles))[None, :, None] for f in (torch.cos, torch.sin))
  expected = np.concatenate([x[..., :8] * cos - x[..., 8:] * sin, x[..., 8:] * cos + x[..., :8] * sin], -1)
  np.testing.assert_allclose(rotate(x, np.arange(9)[None], 1000.0, 4.0), expected, atol=1e-5)


# Adapters.

BLOCK = "base_model.model.model.transformer.blocks."


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  return gdsd_jax.load_pretrained(write(tmp_path_factory.mktemp("base"), hugging_face_weights(CONFIG)))


@pytest.fixture(scope="module")
def made(base, tmp_path_factory):
  """A folder with an adapter of rank 2 and alpha 4 on queries and down projections, none of it zero."""
  denoiser, params = add_adapter(*base, LoraConfig(2, 4.0, 0.0, ("q", "down")), jax.random.key(0))
  rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("made")
  params["lora"] = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params["lora"])
  save_adapter(folder, denoiser, params, base_model=denoiser.source)
  return folder


@pytest.fixture
def adapter(made, tmp_path):
  """A copy of that folder, to be changed."""
  return shutil.copytree(made, tmp_path / "adapter")


def edit(folder, fields=None, tensors=lambda tensors: tensors):
  file = folder / "adapter_config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | (fields or {})))
  with safe_open(folder / "adapter_model.safetensors", "np") as opened:
    kept = {name: opened.get_tensor(name) for name in opened.keys()}
  save_file(tensors(kept), folder / "adapter_model.safetensors")
  return kept


def updates(denoiser, params, leaf="query"):
  """What the adapter adds to a weight of each layer, [L, in, out]."""
  factors, (layers, rank) = params["lora"][leaf], (denoiser.config.num_layers, denoiser.lora.rank)
  a, b = np.asarray(factors["a"]).reshape(layers, -1, rank), np.asarray(factors["b"]).reshape(layers, rank, -1)
  return denoiser.lora.scale * a @ b


def test_rank_stabilised_adapters_are_scaled_by_the_root_of_the_rank(base, adapter):
  plain = updates(*load_adapter(adapter, *base))
  edit(adapter, {"use_rslora": True})
  np.testing.assert_allclose(updates(*load_adapter(adapter, *base)), plain * np.sqrt(2), atol=1e-5)


def test_ranks_and_scales_of_patterns_are_those_of_peft(base, adapter):
  def wider(tensors):
    one = tensors[f"{BLOCK}0.q_proj.lora_A.weight"], tensors[f"{BLOCK}0.q_proj.lora_B.weight"]
    tensors[f"{BLOCK}0.q_proj.lora_A.weight"] = np.concatenate([one[0], one[0][:1]])
    tensors[f"{BLOCK}0.q_proj.lora_B.weight"] = np.concatenate([one[1], one[1][:, :1]], axis=1)
    return tensors

  edit(adapter, {"rank_pattern": {"blocks.0.q_proj": 3}, "alpha_pattern": {"q_proj": 5, "1.ff_out": 7}}, wider)
  with safe_open(adapter / "adapter_model.safetensors", "np") as opened:
    tensors = {name: opened.get_tensor(name).astype(np.float64) for name in opened.keys()}
  denoiser, params = load_adapter(adapter, *base)
  assert denoiser.lora.rank == 3
  for leaf, module, scales in (("query", "q_proj", (5 / 3, 5 / 2)), ("down", "ff_out", (4 / 2, 7 / 2))):
    found = updates(denoiser, params, leaf)
    for layer, scale in enumerate(scales):
      a, b = (tensors[f"{BLOCK}{layer}.{module}.lora_{factor}.weight"] for factor in "AB")
      np.testing.assert_allclose(found[layer], scale * (b @ a).T, rtol=2e-5, atol=1e-5)


def test_layers_that_are_not_adapted_stay_as_they_are(base, adapter):
  plain = updates(*load_adapter(adapter, *base))
  edit(adapter, {"layers_to_transform": [1]}, lambda tensors: {k: v for k, v in tensors.items() if "blocks.1." in k})
  found = updates(*load_adapter(adapter, *base))
  assert not found[0].any()
  np.testing.assert_array_equal(found[1], plain[1])


def test_a_layer_that_should_be_adapted_and_is_not_there_is_named(base, adapter):
  edit(adapter, None, lambda tensors: {k: v for k, v in tensors.items() if "blocks.1." in k})
  with pytest.raises(ValueError, match=r"lacks .*blocks\.0\.q_proj\.lora_A.weight, which adapter_config.json asks for"):
    load_adapter(adapter, *base)


@pytest.mark.parametrize("fields, words", [
  ({"modules_to_save": ["lm_head"]}, "modules_to_save"), ({"bias": "lora_only"}, "bias = 'lora_only'"),
  ({"use_dora": True}, "use_dora"), ({"use_new_kind": True}, "use_new_kind"), ({"lora_bias": True}, "lora_bias"),
  ({"trainable_token_indices": [1]}, "trainable_token_indices"), ({"rank_pattern": {"q_proj": 0}}, "rank_pattern"),
  ({"r": 0}, "r must be positive, not 0"), ({"alpha_pattern": {"[": 1}}, "is no pattern of module names"),
  ({"target_modules": "("}, "is no pattern of module names"), ({"alpha_pattern": [1]}, "must be an object"),
])
def test_what_an_adapter_cannot_be_here_is_refused_by_its_name(base, adapter, fields, words):
  edit(adapter, fields)
  with pytest.raises(ValueError, match=rf"^model\.lora\.path: .*{words}"):
    load_adapter(adapter, *base)


def test_an_adapter_that_pytorch_saved_itself_has_its_name_in_its_weights(base, adapter):
  plain = updates(*load_adapter(adapter, *base))
  edit(adapter, None, lambda tensors: {k.replace(".weight", ".default.weight"): v for k, v in tensors.items()})
  np.testing.assert_array_equal(updates(*load_adapter(adapter, *base)), plain)


@pytest.mark.parametrize("damage, words", [
  (lambda folder: (folder / "adapter_model.safetensors").write_text(POINTER), "is a Git LFS pointer"),
  (lambda folder: (folder / "adapter_config.json").write_text(POINTER), "is a Git LFS pointer"),
  (lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin"), "is a pickle"),
  (lambda folder: (folder / "adapter_config.json").rename(folder / "config.json"), "is a whole model"),
])
def test_an_adapters_folder_that_cannot_be_read_is_told_by_what_it_is(base, adapter, damage, words):
  damage(adapter)
  with pytest.raises((ValueError, OSError), match=words) as caught:
    load_adapter(adapter, *base)
  assert str(caught.value).startswith("model.lora.path: ") and "\n" not in str(caught.value)


def test_an_adapter_of_other_weights_is_refused(tmp_path, adapter):
  other = gdsd_jax.load_pretrained(write(tmp_path / "other", hugging_face_weights(CONFIG, seed=1)))
  with pytest.raises(ValueError, match=f"was trained over other weights .* than those of {tmp_path / 'other'}"):
    load_adapter(adapter, *other)


def test_the_same_weights_elsewhere_and_in_another_layout_are_its_base(tmp_path, base, adapter, caplog):
  gdsd_jax.save_pretrained(tmp_path / "copy", *base, layout="transformers")
  plain = updates(*load_adapter(adapter, *base))
  np.testing.assert_array_equal(updates(*load_adapter(adapter, *gdsd_jax.load_pretrained(tmp_path / "copy"))), plain)
  assert caplog.records == []


def test_an_adapter_without_a_fingerprint_over_a_model_of_another_name_is_warned_of(tmp_path, base, adapter, caplog):
  edit(adapter)  # written again, its fingerprint is gone
  load_adapter(adapter, *base)
  assert caplog.records == []
  edit(adapter, {"base_model_name_or_path": "organisation/another"})
  load_adapter(adapter, *base)
  assert "was made for organisation/another, and is laid over" in caplog.text


# transformers' own class as a layout.


@pytest.mark.parametrize("change", [
  {}, {"qkv_bias": True}, {"tied_head": True}, {"rope_factor": 2.0},
  {"family": "dream", "qkv_bias": True, "shifted_output": True, "positions_skip_padding": True},
])
def test_transformers_own_class_gives_back_every_bit(tmp_path, change):
  denoiser = Denoiser(dataclasses.replace(CONFIG, **change))
  params = random_params(denoiser)
  gdsd_jax.save_pretrained(tmp_path, denoiser, params, layout="transformers")
  loaded, restored = gdsd_jax.load_pretrained(tmp_path)
  assert loaded == denoiser and loaded.config.layout == "transformers"
  jax.tree.map(np.testing.assert_array_equal, restored, params)


@pytest.mark.parametrize("name, value", [
  ("num_attention_heads", 0), ("hidden_size", "16"), ("diffusion_family", "gpt"), ("mlp_bias", True),
  ("hidden_act", "gelu"), ("mask_token_id", 99), ("rope_parameters", {"rope_type": "llama3", "factor": 8.0}),
])
def test_a_config_of_transformers_own_class_is_checked_as_the_published_are(tmp_path, name, value):
  fields = EUROBERT.format_config(CONFIG, "float32")
  (tmp_path / "config.json").write_text(json.dumps(fields | {name: value}))
  with pytest.raises(ValueError, match=rf"config\.json: .*{name}"):
    load_config(tmp_path)


def test_a_bias_that_this_network_lacks_must_be_zero(tmp_path):
  denoiser = Denoiser(dataclasses.replace(CONFIG, qkv_bias=True))
  gdsd_jax.save_pretrained(tmp_path, denoiser, random_params(denoiser), layout="transformers")
  with safe_open(tmp_path / SINGLE, "np") as opened:
    weights = {name: opened.get_tensor(name) for name in opened.keys()}
  name = "model.layers.1.self_attn.o_proj.bias"
  assert not weights[name].any()
  save_file(weights | {name: np.ones_like(weights[name])}, tmp_path / SINGLE)
  assert f"{name} in {tmp_path / SINGLE} is not zero" in refusal(tmp_path)


def test_how_files_call_things_is_no_matter_to_what_is_computed():
  assert hash(CONFIG) == hash(dataclasses.replace(CONFIG, layout="transformers"))
  assert isinstance(CONFIG, DenoiserConfig)
