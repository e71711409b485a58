"""Folders of SDAR, LLaDA 2, iLLaDA and LLaDA-MoE: read, written and read again, their sizes, what is refused."""

import dataclasses
import json
import math
import shutil

from check_models import read
import chex
from conftest import slow
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gdsd_jax
from gdsd_jax.huggingface.adapters import load_adapter, save_adapter
from gdsd_jax.huggingface.families import FAMILIES
from gdsd_jax.huggingface.folder import load_config
from gdsd_jax.huggingface.published import architecture
from gdsd_jax.models.config import ExpertsConfig
from gdsd_jax.models.lora import add_adapter, LoraConfig, merge

# From the models' own config.json and index files; the second number is used for one token, where that is not all.
COUNTS = {
  "JetLM/SDAR-1.7B-Chat": (2_031_739_904, None), "JetLM/SDAR-4B-Chat": (4_411_424_256, None),
  "JetLM/SDAR-8B-Chat": (8_190_735_360, None), "JetLM/SDAR-30B-A3B-Chat": (30_532_122_624, 3_353_032_704),
  "inclusionAI/LLaDA2.0-mini": (16_255_643_392, 1_432_968_192),
  "inclusionAI/LLaDA2.0-flash": (102_889_705_216, 6_152_269_824),
}
ILLADA = {  # as its paper and the size of its files say
  "model_type": "illada", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
  "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 155136, "tie_word_embeddings": True,
  "max_position_embeddings": 8192, "eos_token_id": 0,
}


def sizes(config) -> tuple[int, int]:
  """(parameters, those of them that one token goes through)."""
  shapes = gdsd_jax.Denoiser(config).abstract_params()
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
  own = sum(leaf.size for name, leaf in shapes["blocks"].items() if name.startswith("expert_"))
  bias = shapes["blocks"]["router_bias"].size if "router_bias" in shapes["blocks"] else 0  # only to choose by
  experts = config.experts
  return count, count - bias - own + (own // experts.count * experts.per_token if experts else 0)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_to_the_unit(name):
  count, used = COUNTS[name]
  assert sizes(architecture(name)) == (count, used or count)


def test_parameter_count_of_illada():
  config = FAMILIES["illada"].parse_config(ILLADA)
  assert sizes(config)[0] == 7_615_025_152 and config.mask_token_id == 5


@pytest.mark.parametrize("name, ids, block_length", [
  ("JetLM/SDAR-8B-Chat", (151669, 151643, 151643), 4), ("inclusionAI/LLaDA2.0-mini", (156895, 156892, 156892), 32)])
def test_ids_and_blocks_that_config_json_does_not_name_are_the_familys(name, ids, block_length):
  config = architecture(name)
  assert (config.mask_token_id, config.eos_token_id, config.pad_token_id) == ids
  assert config.block_length == block_length


def files_of(folder) -> dict[str, np.ndarray]:
  return {name: weight for file in folder.glob("*.safetensors") for name, weight in load_file(file).items()}


@pytest.mark.parametrize("family", [slow("sdar"), "llada2", "illada", slow("lladamoe")])
def test_a_folder_is_written_as_it_was_read(goldens, tmp_path, family):
  golden = read(goldens / f"{family}_tiny")
  gdsd_jax.save_pretrained(tmp_path, golden.denoiser, golden.params, max_shard_bytes=200_000)
  written, recorded = files_of(tmp_path), files_of(goldens / f"{family}_tiny" / "hf")
  assert written.keys() == recorded.keys()
  for name, weight in written.items():
    np.testing.assert_array_equal(weight, recorded[name], err_msg=name)
  denoiser, params = gdsd_jax.load_pretrained(tmp_path)
  assert denoiser.config == golden.denoiser.config
  chex.assert_trees_all_equal(params, golden.params)
  fields, told = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, goldens /
                                                                                 f"{family}_tiny" / "hf"))
  # What both say is the same, but for what changes nothing.
  free = ("auto_map", "transformers_version", "torch_dtype", "dtype", "sliding_window", "max_window_layers")
  other = {name: (value, fields[name]) for name, value in told.items()
           if name in fields and fields[name] != value and name not in free}
  assert not other or other == {"pad_token_id": (None, 500)}, other


@pytest.mark.slow
@pytest.mark.parametrize("family, name, tied", [
  ("sdar_moe", "Qwen3MoeForCausalLM", False), ("sdar", "Qwen3ForCausalLM", True)])
def test_sdar_is_qwen3_under_a_mask_of_blocks(tiny_config, tmp_path, family, name, tied):
  """transformers' own class reads what is written here, and computes the same, given the mask."""
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  experts = ExpertsConfig(count=8, per_token=3, size=16, normalised=True) if family == "sdar_moe" else None
  config = dataclasses.replace(
    tiny_config, head_dim=12, block_length=4, positions_skip_padding=True, qk_norm=True, family=family, experts=experts,
    tied_head=tied)
  denoiser = gdsd_jax.Denoiser(config)
  params = jax.tree.map(lambda leaf: 3 * leaf if leaf.ndim > 2 else leaf, jax.jit(denoiser.init)(jax.random.key(0)))
  gdsd_jax.save_pretrained(tmp_path, denoiser, params)
  fields = json.loads((tmp_path / "config.json").read_text())
  fields |= {"model_type": family.replace("sdar", "qwen3"), "architectures": [name], "auto_map": None}
  (tmp_path / "config.json").write_text(json.dumps(fields))
  model = getattr(transformers, name).from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager").eval()
  tokens, block = np.random.default_rng(0).integers(0, 60, (2, 13)), np.arange(13) // 4
  mask = torch.where(torch.tensor(block[:, None] >= block), 0.0, -torch.inf).expand(2, 1, 13, 13)
  with torch.no_grad():
    expected = model(torch.tensor(tokens), attention_mask=mask).logits.numpy()
  np.testing.assert_allclose(apply(denoiser, params, tokens), expected, atol=5e-5)


def test_merged_experts_are_those_one_by_one(goldens, tmp_path):
  golden = read(goldens / "llada2_tiny")
  folder = goldens / "llada2_tiny" / "hf"
  weights = files_of(folder)
  for layer in (1, 2):
    for name in ("gate", "up", "down"):
      module = f"model.layers.{layer}.mlp.experts"
      weights[f"{module}.{name}_proj"] = np.stack([weights.pop(f"{module}.{e}.{name}_proj.weight") for e in range(16)])
  save_file(weights, tmp_path / "model.safetensors")
  fields = json.loads((folder / "config.json").read_text()) | {
    "model_type": "llada2_moe_veomni", "mask_token_id": 510, "eos_token_id": 500, "block_size": 8}
  (tmp_path / "config.json").write_text(json.dumps(fields))
  denoiser, params = gdsd_jax.load_pretrained(tmp_path)
  assert denoiser.config == golden.denoiser.config
  chex.assert_trees_all_equal(params, golden.params)


REFUSED = {
  "sdar": [({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling is"),
           ({"attention_bias": True}, "attention_bias is True"), ({"use_sliding_window": True}, "use_sliding_window"),
           ({"block_size": -1}, "block_length must be at least 1"), ({"hidden_act": "gelu"}, "hidden_act is 'gelu'")],
  "llada2": [({"score_function": "softmax"}, "score_function is 'softmax'; only 'sigmoid'"),
             ({"n_group": 3}, "16 experts cannot be chosen from 2 of 3 equal groups"),
             ({"use_qkv_bias": True}, "use_qkv_bias"), ({"mask_token_id": None}, "mask_token_id .156895. must lie in"),
             ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling is")],
  "illada": [({"attention_bias": True}, "attention_bias"), ({"mlp_bias": True}, "mlp_bias")],
  "lladamoe": [({"moe_router_score_function": "sigmoid"}, "moe_router_score_function is 'sigmoid'"),
               ({"moe_router_enable_expert_bias": True}, "moe_router_enable_expert_bias"),
               ({"moe_layer_freq": [1, 0, 1]}, "moe_layer_freq is .* only the first may be without experts")],
}


@pytest.mark.parametrize("family, change, message", [
  (family, *case) for family, cases in REFUSED.items() for case in cases])
def test_what_the_network_does_not_compute_is_refused_by_name(goldens, tmp_path, family, change, message):
  fields = json.loads((goldens / f"{family}_tiny" / "hf" / "config.json").read_text())
  stated = {"mask_token_id": 510, "eos_token_id": 500}
  (tmp_path / "config.json").write_text(json.dumps(fields | stated | change))
  with pytest.raises(ValueError, match=f"^model.path: .*config.json: .*{message}"):
    load_config(tmp_path)


@pytest.mark.parametrize("model_type, architectures, family", [
  ("llada", ["LLaDAMoEModelLM"], "lladamoe"), (None, ["SDARForCausalLM"], "sdar"), ("SDAR", None, "sdar"),
  ("other", ["ILLaDAForCausalLM"], "illada"),
])
def test_a_family_is_known_by_its_class_too(goldens, tmp_path, model_type, architectures, family):
  fields = json.loads((goldens / f"{family}_tiny" / "hf" / "config.json").read_text())
  fields |= {"model_type": model_type, "architectures": architectures, "mask_token_id": 510}
  (tmp_path / "config.json").write_text(json.dumps(fields))
  assert load_config(tmp_path).family == family


apply = jax.jit(gdsd_jax.Denoiser.apply, static_argnums=0)


def adapted(golden, targets, dropout=0.0):
  """(denoiser, params) with an adapter that is not zero."""
  config = LoraConfig(rank=3, alpha=6.0, dropout=dropout, targets=targets)
  denoiser, params = add_adapter(golden.denoiser, golden.params, config, jax.random.key(0))
  rng = np.random.default_rng(0)
  noisy = lambda leaf: jnp.asarray(leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32))
  return denoiser, {**params, "lora": jax.tree.map(noisy, jax.device_get(params["lora"]))}


@pytest.mark.parametrize("family, targets", [
  slow("llada2", ("q", "k", "v", "o", "gate", "up", "down", "experts")), ("llada2", ("gate",)),
  slow("sdar", ("q", "v", "down")), ("lladamoe", ("o", "experts")),
])
def test_an_adapter_is_written_in_the_familys_modules_and_read_again(goldens, tmp_path, family, targets):
  golden = read(goldens / f"{family}_tiny")
  denoiser, params = adapted(golden, targets)
  save_adapter(tmp_path, denoiser, params, base_model="ORGANISATION/NAME")
  loaded, restored = load_adapter(tmp_path, golden.denoiser, golden.params)
  assert loaded.lora == denoiser.lora
  chex.assert_trees_all_equal(restored, params)


def test_query_key_and_value_are_one_module_with_three_times_the_rank(goldens, tmp_path):
  golden = read(goldens / "llada2_tiny")
  denoiser, params = adapted(golden, ("q", "k", "v"))
  save_adapter(tmp_path, denoiser, params, base_model="x")
  tensors = load_file(tmp_path / "adapter_model.safetensors")
  module = "model.layers.1.attention.query_key_value"
  a, b = (tensors[f"base_model.model.{module}.lora_{factor}.weight"] for factor in "AB")
  fields = json.loads((tmp_path / "adapter_config.json").read_text())
  assert a.shape == (9, 64) and fields["rank_pattern"][module] == 9
  scale = fields["alpha_pattern"][module] / fields["rank_pattern"][module]
  gdsd_jax.save_pretrained(tmp_path / "merged", golden.denoiser, merge(params, denoiser.lora))
  base, merged = (files_of(folder)[f"{module}.weight"] for folder in (goldens / "llada2_tiny" / "hf",
                                                                     tmp_path / "merged"))
  np.testing.assert_allclose(base + scale * b @ a, merged, atol=1e-5)
  # PEFT's own adapters have one A for all three, and its rank.
  for name in list(tensors):
    tensors[name] = tensors[name] + (0.1 if name.endswith("lora_B.weight") else 0)
  save_file(tensors, tmp_path / "adapter_model.safetensors", {"format": "pt"})
  loaded, shared = load_adapter(tmp_path, golden.denoiser, golden.params)
  assert loaded.lora.rank == 9
  gdsd_jax.save_pretrained(tmp_path / "shared", golden.denoiser, merge(shared, loaded.lora))
  merged = files_of(tmp_path / "shared")[f"{module}.weight"]
  np.testing.assert_allclose(base + scale * (b + 0.1) @ a, merged, atol=1e-5)


def test_a_part_of_query_key_and_value_alone_is_no_module(goldens, tmp_path):
  denoiser, params = adapted(read(goldens / "llada2_tiny"), ("q", "v"))
  with pytest.raises(ValueError, match="^model.lora.targets: the files of this model have query, key, value as one"):
    save_adapter(tmp_path, denoiser, params, base_model="x")


@pytest.mark.slow
@pytest.mark.parametrize("family, targets", [
  ("llada2", ("q", "k", "v", "gate", "down", "experts")), ("sdar", ("q", "up")), ("lladamoe", ("o", "experts"))])
def test_a_merged_adapter_computes_the_same(goldens, family, targets):
  golden = read(goldens / f"{family}_tiny")
  denoiser, params = adapted(golden, targets)
  tokens = golden.data["forward/input_ids"]
  merged = dataclasses.replace(denoiser, lora=None)
  logits = apply(denoiser, params, tokens)
  np.testing.assert_allclose(logits, apply(merged, merge(params, denoiser.lora), tokens), atol=2e-4)
  assert np.abs(logits - apply(merged, golden.params, tokens)).max() > 1e-2


def test_an_expert_that_is_missing_or_too_many_is_named(goldens, tmp_path):
  folder = tmp_path / "model"
  folder.mkdir()
  weights, name = files_of(goldens / "lladamoe_tiny" / "hf"), "model.layers.2.mlp.experts.7.up_proj.weight"
  shutil.copy(goldens / "lladamoe_tiny" / "hf" / "config.json", folder / "config.json")
  stated = {"mask_token_id": 510}
  for change in ({name: None}, {name.replace("7", "8"): weights[name]}):
    save_file({n: w for n, w in (weights | change).items() if w is not None}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=f"holds {next(iter(change))}"):
      gdsd_jax.load_pretrained(folder, stated=stated)
