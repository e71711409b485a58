"""Hugging Face folders in and out: every bit back, the published layout, and what a bad folder or disk says."""

import dataclasses
import json
import math
from pathlib import Path
import tracemalloc

import chex
from conftest import files_of_at_most
from huggingface_hub.utils import filter_repo_objects
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from gdsd_jax import load_pretrained, save_pretrained
from gdsd_jax.huggingface.folder import resolve_path
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.parallel.mesh import batch_sharding, make_mesh, param_shardings

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 2048  # of CONFIG's weights, nine files
SECOND_SHARD = "model-00002-of-00009.safetensors"
CONFIG = DenoiserConfig(
  vocab_size=16, hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, mlp_size=12,
  rope_theta=100.0, norm_epsilon=1e-5, max_positions=32, mask_token_id=13, eos_token_id=14, pad_token_id=15,
)
VARIANTS = {
  "plain": {"num_kv_heads": 4}, "grouped_queries": {}, "one_kv_head": {"num_kv_heads": 1},
  "qkv_bias": {"qkv_bias": True}, "tied_head": {"tied_head": True},
}


def random_params(denoiser, seed=0):
  """Parameters without a regular value: neither ones nor zeros, so that no two weights can be mistaken."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda spec: jnp.asarray(rng.normal(size=spec.shape) / 4, spec.dtype), denoiser.abstract_params()
  )


def assert_same_bits(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
    assert (a.dtype, a.shape, np.asarray(a).tobytes()) == (b.dtype, b.shape, np.asarray(b).tobytes())


def hugging_face_weights(config, seed=0):
  """A LLaDA state dict made by hand, linear weights as [out, in]."""
  rng = np.random.default_rng(seed)
  normal = lambda *shape: (rng.normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32)
  D, F, V = config.hidden_size, config.mlp_size, config.vocab_size
  queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
  weights = {"model.transformer.wte.weight": normal(V, D), "model.transformer.ln_f.weight": 1 + normal(D)}
  if not config.tied_head:
    weights["model.transformer.ff_out.weight"] = normal(V, D)
  for layer in range(config.num_layers):
    block = {
      "attn_norm.weight": 1 + normal(D), "ff_norm.weight": 1 + normal(D),
      "q_proj.weight": normal(queries, D), "k_proj.weight": normal(keys, D), "v_proj.weight": normal(keys, D),
      "attn_out.weight": normal(D, queries),
      "ff_proj.weight": normal(F, D), "up_proj.weight": normal(F, D), "ff_out.weight": normal(D, F),
    }
    if config.qkv_bias:
      block |= {"q_proj.bias": normal(queries), "k_proj.bias": normal(keys), "v_proj.bias": normal(keys)}
    weights |= {f"model.transformer.blocks.{layer}.{name}": value for name, value in block.items()}
  return weights


def hugging_face_fields(config):
  """The published config.json of such a model."""
  return {
    "model_type": "llada", "block_type": "llama", "activation_type": "silu", "layer_norm_type": "rms", "rope": True,
    "alibi": False, "include_bias": False, "include_qkv_bias": config.qkv_bias, "weight_tying": config.tied_head,
    "d_model": config.hidden_size, "n_heads": config.num_heads, "n_kv_heads": config.num_kv_heads,
    "n_layers": config.num_layers, "mlp_hidden_size": config.mlp_size, "mlp_ratio": 4,
    "vocab_size": config.vocab_size, "embedding_size": config.vocab_size, "max_sequence_length": config.max_positions,
    "rope_theta": config.rope_theta, "rms_norm_eps": config.norm_epsilon, "mask_token_id": config.mask_token_id,
    "eos_token_id": config.eos_token_id, "pad_token_id": config.pad_token_id,
  }


def write_hugging_face(folder, config, weights):
  folder.mkdir(exist_ok=True)
  save_file(weights, folder / SINGLE)
  (folder / "config.json").write_text(json.dumps(hugging_face_fields(config)))
  return folder


def reference_logits(config, weights, tokens, attention_mask):
  """LLaDA's forward pass from its state dict, in float64 and one layer, head and matrix at a time."""
  w = {name.removeprefix("model.transformer."): value.astype(np.float64) for name, value in weights.items()}
  heads, kv_heads, H = config.num_heads, config.num_kv_heads, config.head_dim
  angles = np.arange(tokens.shape[1])[:, None] / config.rope_theta ** (np.arange(0, H, 2) / H)
  cos, sin = (np.concatenate([f(angles), f(angles)], axis=-1) for f in (np.cos, np.sin))

  def norm(x, scale):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + config.norm_epsilon) * scale

  def linear(x, name):
    return x @ w[name + ".weight"].T + w.get(name + ".bias", 0.0)

  def rotary(x):  # [B, T, H]
    return x * cos + np.concatenate([-x[..., H // 2:], x[..., :H // 2]], axis=-1) * sin

  x = w["wte.weight"][tokens]
  for layer in range(config.num_layers):
    block = f"blocks.{layer}."
    h = norm(x, w[block + "attn_norm.weight"])
    query, key, value = (linear(h, block + name) for name in ("q_proj", "k_proj", "v_proj"))
    attended = []
    for head in range(heads):
      q, kv = slice(head * H, (head + 1) * H), head // (heads // kv_heads)
      k = slice(kv * H, (kv + 1) * H)
      scores = rotary(query[..., q]) @ rotary(key[..., k]).transpose(0, 2, 1) / math.sqrt(H)
      scores = np.where(attention_mask[:, None, :], scores, -np.inf)
      weight = np.exp(scores - scores.max(axis=-1, keepdims=True))
      attended.append(weight / weight.sum(axis=-1, keepdims=True) @ value[..., k])
    x = x + linear(np.concatenate(attended, axis=-1), block + "attn_out")
    h = norm(x, w[block + "ff_norm.weight"])
    gate = linear(h, block + "ff_proj")
    x = x + linear(gate / (1 + np.exp(-gate)) * linear(h, block + "up_proj"), block + "ff_out")
  head = w["wte.weight"] if config.tied_head else w["ff_out.weight"]
  return norm(x, w["ln_f.weight"]) @ head.T


def weights_in(file):
  with safe_open(file, "np") as tensors:
    return {name: tensors.get_tensor(name) for name in tensors.keys()}


def sizes_of(folder):
  """{file name: bytes of its weights}."""
  return {
    file.name: sum(weight.nbytes for weight in weights_in(file).values()) for file in folder.glob("*.safetensors")
  }


def names_in(folder):
  return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def saved(tmp_path):
  """(folder, denoiser, params) of a whole save in one file."""
  denoiser = Denoiser(CONFIG)
  params = random_params(denoiser)
  save_pretrained(tmp_path / "model", denoiser, params)
  return tmp_path / "model", denoiser, params


@pytest.fixture
def sharded(tmp_path):
  """(folder, denoiser, params) of a whole save in many files."""
  denoiser = Denoiser(CONFIG)
  params = random_params(denoiser)
  save_pretrained(tmp_path / "model", denoiser, params, SHARD_BYTES)
  return tmp_path / "model", denoiser, params


# Every bit back.


@pytest.mark.parametrize("max_shard_bytes", [2**30, SHARD_BYTES], ids=["one_file", "shards"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_model_loads_bit_for_bit(tmp_path, variant, dtype, max_shard_bytes):
  denoiser = Denoiser(dataclasses.replace(CONFIG, **VARIANTS[variant]), dtype, dtype)
  params = random_params(denoiser)
  save_pretrained(tmp_path, denoiser, params, max_shard_bytes)
  loaded_denoiser, loaded = load_pretrained(tmp_path, dtype)
  assert loaded_denoiser == denoiser
  assert_same_bits(loaded, params)


@pytest.mark.parametrize("dtype, pattern", [("float32", 0x80000001), ("bfloat16", 0x7F7F)])  # the least, the largest
def test_the_ends_of_a_dtype_keep_their_bits(tmp_path, dtype, pattern):
  denoiser = Denoiser(CONFIG, dtype, dtype)
  params = random_params(denoiser)
  bits = np.full(CONFIG.hidden_size, pattern, np.uint32 if dtype == "float32" else np.uint16)
  params["final_norm"] = jnp.asarray(bits.view(np.float32 if dtype == "float32" else ml_dtypes.bfloat16))
  save_pretrained(tmp_path, denoiser, params)
  assert_same_bits(load_pretrained(tmp_path, dtype)[1], params)


def test_dtype_converts_on_loading(saved):
  folder, _, params = saved
  _, loaded = load_pretrained(folder, "bfloat16")
  assert_same_bits(loaded, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))


def test_what_is_saved_is_recorded_as_its_dtype(tmp_path):
  denoiser = Denoiser(CONFIG, param_dtype="bfloat16")
  save_pretrained(tmp_path, denoiser, random_params(denoiser))
  assert {weight.dtype.name for weight in weights_in(tmp_path / SINGLE).values()} == {"bfloat16"}
  assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_remat_is_passed_on(saved):
  assert load_pretrained(saved[0], remat="products")[0].remat == "products"


def test_a_small_model_is_one_file_without_an_index(saved):
  assert names_in(saved[0]) == ["config.json", SINGLE]


def test_shards_and_index_name_every_weight_once(sharded):
  folder, _, _ = sharded
  held = [(name, file.name) for file in folder.glob("*.safetensors") for name in weights_in(file)]
  weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
  assert sorted(held) == sorted(weight_map.items())
  assert weight_map.keys() == hugging_face_weights(CONFIG).keys()


def test_shards_are_numbered_as_the_hub_numbers_them(sharded):
  files = sorted(sizes_of(sharded[0]))
  assert len(files) > 2
  assert files == [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]


def test_of_a_weight_in_two_shards_the_one_counts_that_the_index_names(sharded):
  folder = sharded[0]
  first, *_, last = sorted(folder.glob("*.safetensors"))
  expected, tensors = load_pretrained(folder)[1], weights_in(first)
  name = next(iter(tensors))
  save_file({**weights_in(last), name: 2 * tensors[name]}, last)
  chex.assert_trees_all_equal(load_pretrained(folder)[1], expected)


def test_no_shard_is_larger_than_asked(sharded):
  assert max(sizes_of(sharded[0]).values()) <= SHARD_BYTES


def test_a_weight_larger_than_a_shard_has_a_file_of_its_own(tmp_path):
  denoiser = Denoiser(CONFIG)
  save_pretrained(tmp_path, denoiser, random_params(denoiser), max_shard_bytes=1)
  assert {len(weights_in(file)) for file in tmp_path.glob("*.safetensors")} == {1}


def test_the_index_holds_the_total_size(sharded):
  folder, _, _ = sharded
  assert json.loads((folder / INDEX).read_text())["metadata"]["total_size"] == sum(sizes_of(folder).values())


@pytest.mark.parametrize("before, after", [(SHARD_BYTES, 2**30), (2**30, SHARD_BYTES), (1, SHARD_BYTES)])
def test_weight_files_of_an_earlier_save_are_removed(tmp_path, before, after):
  denoiser = Denoiser(CONFIG)
  params = random_params(denoiser)
  save_pretrained(tmp_path / "again", denoiser, random_params(denoiser, seed=1), before)
  save_pretrained(tmp_path / "again", denoiser, params, after)
  save_pretrained(tmp_path / "fresh", denoiser, params, after)
  assert names_in(tmp_path / "again") == names_in(tmp_path / "fresh")


def test_other_files_of_the_folder_stay(saved):
  folder, denoiser, params = saved
  (folder / "tokenizer.json").write_text("{}")
  save_pretrained(folder, denoiser, params)
  assert (folder / "tokenizer.json").read_text() == "{}"


def test_the_folder_and_its_parents_are_made(tmp_path):
  denoiser = Denoiser(CONFIG)
  save_pretrained(tmp_path / "a" / "b", denoiser, random_params(denoiser))
  assert (tmp_path / "a" / "b" / "config.json").is_file()


# The published layout.


@pytest.mark.parametrize("variant", ["grouped_queries", "qkv_bias", "tied_head"])
def test_published_weights_compute_what_the_published_model_does(tmp_path, variant):
  config = dataclasses.replace(CONFIG, **VARIANTS[variant])
  weights = hugging_face_weights(config)
  denoiser, params = load_pretrained(write_hugging_face(tmp_path, config, weights))
  tokens = np.random.default_rng(1).integers(0, config.vocab_size, (3, 7))
  mask = np.ones((3, 7), bool)
  mask[0, :3] = mask[2, :1] = False
  logits = denoiser.apply(params, tokens, mask)
  np.testing.assert_allclose(
    logits[mask], reference_logits(config, weights, tokens, mask)[mask], atol=1e-4, rtol=0
  )


@pytest.mark.parametrize("variant", VARIANTS)
def test_saving_writes_the_published_names_and_orientations(tmp_path, variant):
  config = dataclasses.replace(CONFIG, **VARIANTS[variant])
  weights = hugging_face_weights(config)
  denoiser, params = load_pretrained(write_hugging_face(tmp_path / "published", config, weights))
  save_pretrained(tmp_path / "saved", denoiser, params)
  saved = weights_in(tmp_path / "saved" / SINGLE)
  assert saved.keys() == weights.keys()
  for name, weight in weights.items():
    np.testing.assert_array_equal(saved[name], weight, err_msg=name)


def test_saving_writes_the_published_fields(saved):
  fields = json.loads((saved[0] / "config.json").read_text())
  published = hugging_face_fields(CONFIG)
  assert {name: fields.get(name) for name in published} == published


def test_half_precision_files_load_as_float32(tmp_path):
  weights = {name: weight.astype(np.float16) for name, weight in hugging_face_weights(CONFIG).items()}
  _, params = load_pretrained(write_hugging_face(tmp_path, CONFIG, weights))
  np.testing.assert_array_equal(params["embedding"], weights["model.transformer.wte.weight"].astype(np.float32))


def test_weights_that_the_model_does_not_have_are_ignored(tmp_path):
  weights = hugging_face_weights(CONFIG) | {"model.transformer.extra": np.zeros(3, np.float32)}
  load_pretrained(write_hugging_face(tmp_path, CONFIG, weights))


@pytest.mark.parametrize("change, field, value", [
  ({"n_kv_heads": None}, "num_kv_heads", 4),
  ({"n_kv_heads": None, "multi_query_attention": True}, "num_kv_heads", 1),
  ({"mlp_hidden_size": None, "mlp_ratio": 3}, "mlp_size", 48),
  ({"embedding_size": None}, "vocab_size", 16),
  ({"alibi": None}, "family", "llada"),
  ({"pad_token_id": None}, "pad_token_id", 14),
  ({"eos_token_id": [14, 15]}, "eos_token_id", 14),
  ({"weight_tying": None, "tie_word_embeddings": True}, "tied_head", True),
  ({"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, "rope_theta", 7.0),
  ({"rope_scaling": {"type": "linear", "factor": 4}}, "rope_factor", 4.0),
  ({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0}}, "rope_factor", 4.0),
  ({"layer_types": ["full_attention"] * 2}, "num_layers", 2),
])
def test_fields_may_be_off_the_way_the_layout_writes_it(tmp_path, change, field, value):
  from gdsd_jax.huggingface.weights import load_config

  (tmp_path / "config.json").write_text(json.dumps(hugging_face_fields(CONFIG) | change))
  assert getattr(load_config(tmp_path), field) == value


@pytest.mark.parametrize("name", ["pad_token_id", "rope_theta", "rms_norm_eps", "include_qkv_bias", "weight_tying"])
def test_fields_with_a_default_may_be_missing(tmp_path, name):
  from gdsd_jax.huggingface.weights import load_config

  fields = hugging_face_fields(CONFIG)
  del fields[name]
  (tmp_path / "config.json").write_text(json.dumps(fields))
  assert load_config(tmp_path).hidden_size == CONFIG.hidden_size


@pytest.mark.parametrize("top, nested, share", [(None, 0.5, 0.5), (0.5, 0.5, 0.5), (0.5, None, 0.5), (None, None, 1.0)])
def test_rotary_share_is_read_where_transformers_5_writes_it(top, nested, share):
  from gdsd_jax.huggingface.llada2 import LLADA2
  from gdsd_jax.huggingface.published import PUBLISHED

  positions = {"rope_type": "default", "rope_theta": 7.0, "partial_rotary_factor": nested}
  fields = {**PUBLISHED[LLADA2.hub_name], "partial_rotary_factor": top, "rope_parameters": positions}
  config = LLADA2.parse_config(fields)
  assert (config.rotary_share, config.rope_theta) == (share, 7.0)
  with pytest.raises(ValueError, match="contradict each other"):
    LLADA2.parse_config({**fields, "partial_rotary_factor": 0.25, "rope_parameters": {**positions, **{
      "partial_rotary_factor": 0.75}}})


# Bad input: one line, and nothing allocated.


def refusal_of(error, path, **arguments):
  """The message with which loading `path` is refused."""
  with pytest.raises(error) as caught:
    load_pretrained(path, **arguments)
  message = str(caught.value)
  assert "\n" not in message
  return message


def with_fields(**changes):
  """A damage: config.json with fields changed, or removed where the value is `...`."""

  def damage(folder):
    fields = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in fields.items() if v is not ...}))

  return damage


def with_weights(**changes):
  """A damage: weights (dots as double underscores) changed, or removed where the value is `...`."""

  def damage(folder):
    weights = weights_in(folder / SINGLE)
    weights |= {f"model.transformer.{name.replace('__', '.')}": value for name, value in changes.items()}
    save_file({name: weight for name, weight in weights.items() if weight is not ...}, folder / SINGLE)

  return damage


def words_of(value):
  """Names a case by the words it expects."""
  return value if isinstance(value, str) else ""


def with_text(name, text):
  return lambda folder: (folder / name).write_text(text)


def without(name):
  return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize("name", ["missing", "a/b/c", "/missing/model", "a b/c", "-", "https://hub/a/b"])
def test_a_name_that_is_neither_a_folder_nor_a_hubs_is_refused(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert refusal_of(FileNotFoundError, name) == (
    f"model.path: {name!r} is neither a folder nor a hub name (ORGANISATION/NAME)"
  )


def test_a_file_in_place_of_a_folder_is_refused(saved, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert "'model/config.json' is neither a folder nor a hub name" in refusal_of(FileNotFoundError, "model/config.json")


def test_a_hub_name_is_downloaded_without_code_or_pickles(saved, monkeypatch):
  folder, denoiser, _ = saved
  asked = {}
  download = lambda name, **how: asked.update(name=name, **how) or str(folder)
  monkeypatch.setattr("huggingface_hub.snapshot_download", download)
  assert load_pretrained("organisation/some-model_1.0", revision="v1")[0] == denoiser
  assert (asked["name"], asked["revision"]) == ("organisation/some-model_1.0", "v1")
  assert not {"*", "*.py", "*.bin", "*.pt"} & set(asked["allow_patterns"])


def test_of_a_hubs_folders_only_an_adapters_base_model_is_downloaded(saved, monkeypatch):
  asked = {}
  monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **how: asked.update(how) or str(saved[0]))
  resolve_path("organisation/name")
  here = ["config.json", "model-00001-of-00002.safetensors", "base_model/model.safetensors"]
  others = ["checkpoint-500/model.safetensors", "original/consolidated.safetensors", "best/config.json", "a/b/c.json"]
  chosen = filter_repo_objects(
    here + others, allow_patterns=asked["allow_patterns"], ignore_patterns=asked["ignore_patterns"])
  assert list(chosen) == here


@pytest.mark.parametrize("error", [OSError("no network\nat all"), RuntimeError("no network"), KeyError("no network")])
def test_a_hub_that_does_not_answer_is_named_in_one_line(monkeypatch, error):
  def download(*_, **__):
    raise error

  monkeypatch.setattr("huggingface_hub.snapshot_download", download)
  message = refusal_of(FileNotFoundError, "organisation/name")
  assert message.startswith("model.path: 'organisation/name'") and "no network" in message


@pytest.mark.parametrize("dtype", ["float16", "int8", "fp32", "", None])
def test_an_unknown_dtype_is_refused_with_the_known_ones(saved, dtype):
  message = refusal_of(ValueError, saved[0], dtype=dtype)
  assert "dtype" in message and repr(dtype) in message and "float32, bfloat16" in message


@pytest.mark.parametrize("remat", [True, "False", "nothing"])
def test_an_unknown_remat_is_refused_with_the_known_ones(saved, remat):
  message = refusal_of(ValueError, saved[0], remat=remat)
  assert message == f"model.remat: {remat!r} is not one of none, products, full, offload"


@pytest.mark.parametrize("damage, error, words", [
  (without("config.json"), FileNotFoundError, "config.json is missing"),
  (with_text("config.json", "{"), ValueError, "config.json is not JSON"),
  (with_text("config.json", ""), ValueError, "config.json is not JSON"),
  (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), ValueError, "config.json is not JSON"),
  (with_text("config.json", "[]"), ValueError, "config.json"),
  (with_fields(model_type="gpt2"), ValueError, "model_type 'gpt2'; known are"),
  (with_fields(model_type=...), ValueError, "model_type ''; known are"),
  (with_fields(model_type=None), ValueError, "model_type"),
  *[
    (with_fields(**{name: ...}), ValueError, f"lacks the field '{name}'")
    for name in ("d_model", "n_heads", "n_layers", "max_sequence_length", "mask_token_id", "eos_token_id")
  ],
  (with_fields(block_type="sequential"), ValueError, "block_type is 'sequential'; only 'llama' is supported"),
  (with_fields(alibi=True), ValueError, "alibi is True; only False is supported"),
  (with_fields(rope=False), ValueError, "rope is False; only True is supported"),
  (with_fields(rope=None), ValueError, "rope is None; only True is supported"),
  (with_fields(layer_norm_type="default"), ValueError, "layer_norm_type is 'default'; only 'rms' is supported"),
  (with_fields(include_bias=True), ValueError, "include_bias is True; only False is supported"),
  (with_fields(n_heads=3), ValueError, "d_model (16) must be a multiple of n_heads (3)"),
  (with_fields(n_heads=0), ValueError, "n_heads"),
  (with_fields(n_kv_heads=3), ValueError, "must be a multiple of num_kv_heads (3)"),
  (with_fields(n_layers=0), ValueError, "num_layers must be at least 1, not 0"),
  (with_fields(mask_token_id=16), ValueError, "mask_token_id (16) must lie in the vocabulary of 16"),
  (with_fields(mask_token_id=None), ValueError, "mask_token_id"),
  (with_fields(eos_token_id=[13, 14]), ValueError, "eos_token_id"),
  (with_fields(eos_token_id=[]), ValueError, "eos_token_id"),
  (with_fields(eos_token_id=None), ValueError, "eos_token_id"),
  (with_fields(eos_token_id=[14, "15"]), ValueError, "eos_token_id"),
  (with_fields(pad_token_id=16), ValueError, "pad_token_id (16) must lie in the vocabulary of 16"),
  (with_fields(d_model="16"), ValueError, "d_model"),
  (with_fields(n_layers=2.5), ValueError, "layers"),
  (with_fields(rope_theta=0), ValueError, "rope_theta must be a positive number, not 0"),
  (with_fields(rms_norm_eps=math.nan), ValueError, "norm_epsilon must be a positive number, not nan"),
  (with_fields(max_sequence_length=0), ValueError, "max_positions must be at least 1, not 0"),
], ids=words_of)
def test_a_bad_config_is_refused_by_the_file_and_the_field(saved, damage, error, words):
  folder, _, _ = saved
  damage(folder)
  message = refusal_of(error, folder)
  assert message.startswith(f"model.path: {folder / 'config.json'}") and words in message


@pytest.mark.parametrize("damage, error, words", [
  (without(SINGLE), FileNotFoundError, f"has neither {SINGLE} nor {INDEX}"),
  (with_text(SINGLE, ""), ValueError, "is damaged or truncated"),
  (with_text(SINGLE, "no weights at all"), ValueError, "is damaged or truncated"),
  (with_weights(wte__weight=...), ValueError, "holds model.transformer.wte.weight"),
  (with_weights(blocks__1__q_proj__weight=...), ValueError, "holds model.transformer.blocks.1.q_proj.weight"),
  (
    with_weights(blocks__1__k_proj__weight=np.zeros((16, 8), np.float32)), ValueError,
    "has shape (16, 8); config.json asks for (8, 16)",
  ),
  (
    with_weights(ln_f__weight=np.zeros((16, 1), np.float32)), ValueError,
    "has shape (16, 1); config.json asks for (16,)",
  ),
  (with_weights(ln_f__weight=np.zeros(16, np.int8)), ValueError, "model.transformer.ln_f.weight"),
], ids=words_of)
def test_bad_weights_are_refused_by_the_file_and_the_weight(saved, damage, error, words):
  folder, _, _ = saved
  damage(folder)
  message = refusal_of(error, folder)
  assert message.startswith("model.path: ") and str(folder) in message and words in message


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_weight_file_cut_short_is_refused_by_its_name(saved, share):
  file = saved[0] / SINGLE
  content = file.read_bytes()
  file.write_bytes(content[:int(share * len(content))])
  assert refusal_of(ValueError, saved[0]).startswith(f"model.path: weight file {file} is damaged or truncated")


@pytest.mark.parametrize("damage, error, words", [
  (without(SECOND_SHARD), FileNotFoundError, f"{SECOND_SHARD} is missing"),
  (with_text(SECOND_SHARD, "x"), ValueError, f"{SECOND_SHARD} is damaged"),
  (with_text(INDEX, "{"), ValueError, INDEX),
  (with_text(INDEX, "{}"), ValueError, INDEX),
  (with_text(INDEX, "[]"), ValueError, INDEX),
  (with_text(INDEX, '{"weight_map": {}}'), ValueError, "holds model.transformer."),
  (with_text(INDEX, '{"weight_map": {"a": "../a.safetensors"}}'), ValueError, "which is no file of its folder"),
  (with_text(INDEX, '{"weight_map": {"a": "/a.safetensors"}}'), ValueError, "which is no file of its folder"),
], ids=words_of)
def test_bad_shards_are_refused_by_the_file(sharded, damage, error, words):
  folder, _, _ = sharded
  damage(folder)
  message = refusal_of(error, folder)
  assert message.startswith("model.path: ") and str(folder) in message and words in message


@pytest.mark.parametrize("damage", [with_fields(n_heads=3), with_weights(ln_f__weight=...)])
def test_nothing_is_put_on_a_device_before_all_files_are_checked(saved, monkeypatch, damage):
  folder, _, _ = saved
  damage(folder)
  placed = []
  monkeypatch.setattr(jax, "device_put", lambda *arguments: placed.append(arguments))
  refusal_of(ValueError, folder)
  assert placed == []


# Saves that fail.


@pytest.mark.parametrize("change, lost", [
  ({"head_dim": 8}, "llada has no place for this model's head_dim"),
  ({"shifted_output": True, "positions_skip_padding": True}, "shifted_output, positions_skip_padding"),
  ({"family": "dream"}, "dream has no place for this model's qkv_bias, shifted_output, positions_skip_padding"),
])
def test_a_model_that_its_layout_cannot_state_is_not_saved(tmp_path, change, lost):
  denoiser = Denoiser(dataclasses.replace(CONFIG, **change))
  with pytest.raises(ValueError, match=lost):
    save_pretrained(tmp_path / "model", denoiser, random_params(denoiser))
  assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("max_shard_bytes", [2**30, SHARD_BYTES], ids=["one_file", "shards"])
def test_a_full_disk_leaves_the_earlier_save_as_it_was(tmp_path, max_shard_bytes):
  folder, denoiser = tmp_path / "model", Denoiser(CONFIG)
  save_pretrained(folder, denoiser, random_params(denoiser), max_shard_bytes)
  before = {path.name: path.read_bytes() for path in folder.iterdir()}
  # The first of many shards still fits.
  limit = 3000 if SINGLE in before else len(before["model-00001-of-00009.safetensors"])
  with files_of_at_most(limit), pytest.raises(OSError):
    save_pretrained(folder, denoiser, random_params(denoiser, seed=1), max_shard_bytes)
  assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_full_disk_is_told_in_one_line_that_names_the_folder(tmp_path):
  denoiser = Denoiser(CONFIG)
  with files_of_at_most(3000), pytest.raises(OSError) as caught:
    save_pretrained(tmp_path, denoiser, random_params(denoiser))
  message = str(caught.value)
  assert str(tmp_path) in message and "File too large" in message and "\n" not in message


def test_a_folder_that_cannot_be_made_is_told_in_one_line_that_names_it(tmp_path):
  (tmp_path / "file").write_text("not a folder")
  denoiser = Denoiser(CONFIG)
  with pytest.raises(OSError) as caught:
    save_pretrained(tmp_path / "file" / "model", denoiser, random_params(denoiser))
  message = str(caught.value)
  assert str(tmp_path / "file" / "model") in message and "\n" not in message


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_save_leaves_the_earlier_one_as_it_was(sharded, monkeypatch, error):
  folder, denoiser, params = sharded
  before = {path.name: path.read_bytes() for path in folder.iterdir()}
  calls = []

  def interrupted(tensors, file, metadata):
    calls.append(file)
    if len(calls) == 3:
      raise error
    save_file(tensors, file, metadata)

  monkeypatch.setattr("gdsd_jax.huggingface.weights.save_file", interrupted)
  with pytest.raises(error):
    save_pretrained(folder, denoiser, jax.tree.map(jnp.zeros_like, params), SHARD_BYTES)
  assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_a_killed_save_left_behind_is_removed_by_the_next(saved):
  folder, denoiser, params = saved
  (folder / ".model-00001-of-00009.safetensors.incomplete").write_text("half a file")
  save_pretrained(folder, denoiser, params)
  assert names_in(folder) == ["config.json", SINGLE]


def test_a_save_killed_while_it_tidies_up_loads(sharded, monkeypatch):
  """From shards to one file: the index, which loading prefers, must go before the shards that it names."""
  folder, denoiser, params = sharded
  unlinked = []

  def unlink(path, missing_ok=False):
    if unlinked:
      raise KeyboardInterrupt
    unlinked.append(path)
    path.rename(path.parent.parent / path.name)

  with monkeypatch.context() as patch:
    patch.setattr(Path, "unlink", unlink)
    with pytest.raises(KeyboardInterrupt):
      save_pretrained(folder, denoiser, params)
  assert_same_bits(load_pretrained(folder)[1], params)


# Memory.

WIDE = dataclasses.replace(CONFIG, vocab_size=1024, hidden_size=128, num_layers=8, head_dim=32, mlp_size=128)


def peak_bytes(call):
  """Most host memory that `call` held beyond what there was, of NumPy and Python."""
  tracemalloc.start()
  try:
    call()
    return tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()


def test_loading_holds_no_second_copy_of_the_model(tmp_path, monkeypatch):
  denoiser = Denoiser(WIDE)
  params = random_params(denoiser)
  save_pretrained(tmp_path, denoiser, params)
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  # Onto the CPU, JAX may take over an array of NumPy; a copy is what happens with an accelerator.
  monkeypatch.setattr(jax, "device_put", lambda array, _: jnp.array(array, copy=True))
  assert peak_bytes(lambda: load_pretrained(tmp_path)) < size / 2


def test_saving_holds_one_shard_beside_the_model(tmp_path):
  denoiser = Denoiser(WIDE)
  params = random_params(denoiser)
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  assert peak_bytes(lambda: save_pretrained(tmp_path, denoiser, params, max_shard_bytes=size // 8)) < size / 3


# Over a mesh.


@pytest.fixture
def on_mesh(tiny_config, tmp_path):
  """(denoiser, params, params over the mesh, mesh)."""
  denoiser = Denoiser(tiny_config)
  params = random_params(denoiser)
  save_pretrained(tmp_path, denoiser, params)
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  return denoiser, params, load_pretrained(tmp_path, mesh=mesh)[1], mesh


def test_parameters_lie_over_the_mesh_as_the_rules_say(on_mesh):
  denoiser, _, loaded, mesh = on_mesh
  shardings = param_shardings(mesh, denoiser)
  assert jax.tree.map(lambda array: array.sharding, loaded) == shardings


def test_a_mesh_changes_no_bit_of_the_parameters(on_mesh):
  _, params, loaded, _ = on_mesh
  assert_same_bits(loaded, params)


def test_logits_over_a_mesh_are_those_of_one_device(on_mesh):
  denoiser, params, loaded, mesh = on_mesh
  tokens = np.random.default_rng(0).integers(0, denoiser.config.vocab_size, (4, 6))
  over_mesh = jax.jit(denoiser.apply)(loaded, jax.device_put(tokens, batch_sharding(mesh)))
  np.testing.assert_allclose(over_mesh, jax.jit(denoiser.apply)(params, tokens), atol=1e-5, rtol=0)


def test_parameters_over_a_mesh_are_saved_whole(on_mesh, tmp_path):
  denoiser, params, loaded, _ = on_mesh
  save_pretrained(tmp_path / "again", denoiser, loaded)
  assert_same_bits(load_pretrained(tmp_path / "again")[1], params)


def test_a_mesh_that_does_not_divide_the_model_is_refused(saved):
  mesh = make_mesh(data=1, fsdp=1, tensor=8)
  assert "mesh.tensor=8 does not divide" in refusal_of(ValueError, saved[0], mesh=mesh)
