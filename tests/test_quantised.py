"""Quantised bases: their products against those of the numbers they stand for, their memory, files and meshes."""

import dataclasses

import chex
from conftest import slow
from flax.traverse_util import flatten_dict, unflatten_dict
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

import gdsd_jax
from gdsd_jax.models.config import ExpertsConfig
from gdsd_jax.models.lora import LoraConfig, merge
from gdsd_jax.models.quantised import dequantised, KINDS, quantise, QuantizeConfig
from gdsd_jax.objectives.token_scores import Scoring, token_scores
from gdsd_jax.parallel.mesh import is_quantised, make_mesh

LORA = LoraConfig(rank=4, alpha=8.0, dropout=0.0)
EXPERTS = ExpertsConfig(count=4, per_token=2, size=16, shared_size=16, dense_layers=1)
CHANGES = {
  "LLaDA": {}, "Dream": dict(qkv_bias=True, shifted_output=True), "tied": dict(tied_head=True),
  "experts": dict(qk_norm=True, experts=EXPERTS),
}
TOKENS = np.arange(24).reshape(2, 12) % 50


def both(config, quantize, dtype="float32", seed=0, **fields):
  """((denoiser, params) quantised, the same in floats): the second has the numbers that the first's stand for."""
  whole = gdsd_jax.Denoiser(config, dtype, dtype, lora=LORA, **fields)
  rng = np.random.default_rng(seed)
  random = lambda spec: jnp.asarray(rng.normal(size=spec.shape) / 8, spec.dtype)
  params = flatten_dict(jax.tree.map(random, whole.abstract_params()), sep=".")
  quantised = {path: quantise(path, leaf, quantize) if quantize.covers(path) else leaf for path, leaf in params.items()}
  numbers = {path: qwix.dequantize(leaf) if is_quantised(leaf) else leaf for path, leaf in quantised.items()}
  numbers |= {"head": numbers["head"].T} if quantize.head and "head" in numbers else {}
  floats = {path: leaf.reshape(params[path].shape) for path, leaf in numbers.items()}
  tree = lambda flat: unflatten_dict(flat, sep=".")
  return (dataclasses.replace(whole, quantize=quantize), tree(quantised)), (whole, tree(floats))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_numbers_are_those_of_qwix(kind, dtype):
  weight = jax.random.normal(jax.random.key(0), (3, 32, 8)).astype(dtype)
  quantised = quantise("blocks.gate", weight, QuantizeConfig(kind, 16))
  assert quantised.qvalue.dtype == KINDS[kind] and quantised.scale.shape == (3, 2, 8) and quantised.dtype == dtype
  np.testing.assert_array_equal(dequantised(quantised), qwix.dequantize(quantised))


@pytest.mark.parametrize("kind, most", [("int8", 0.5 / 127.5), ("int4", 0.5 / 7.5), ("nf4", 0.16)])
def test_a_number_is_off_by_half_a_step_of_its_block_at_most(kind, most):
  weight = np.random.default_rng(0).normal(size=(2, 4, 24, 32)).astype(np.float32)  # [layers, heads, 24, width]
  found = np.asarray(dequantised(quantise("blocks.output", weight, QuantizeConfig(kind, 32)))).reshape(2, 3, 32, 32)
  blocks = weight.reshape(2, 3, 32, 32)  # of the inputs, across heads
  largest = np.max(np.abs(blocks), axis=2, keepdims=True)
  assert np.max(np.abs(found - blocks) / largest) <= most + 1e-6


@pytest.mark.parametrize("name, kind, dtype", [
  ("LLaDA", "nf4", "float32"), slow("Dream", "int8", "bfloat16"), slow("tied", "int4", "float32"),
  slow("experts", "int8", "float32"), slow("experts", "nf4", "bfloat16"),
])
def test_it_computes_what_the_numbers_compute_and_so_do_gradients(tiny_config, name, kind, dtype):
  config = dataclasses.replace(tiny_config, **CHANGES[name])
  quantised, floats = both(config, QuantizeConfig(kind, 16, head=True, embedding=True), dtype, remat="full")

  def loss(lora, base, denoiser):
    params = {**base, "lora": lora}
    hidden = denoiser.hidden(params, TOKENS)
    scores = token_scores(denoiser.head(params), hidden, TOKENS, Scoring(center_top_k=4, center_gradient=True))
    return jnp.mean(scores.plain + scores.centered), hidden

  loss_and_gradient = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=2)
  of_lora = lambda denoiser, params: loss_and_gradient(params.pop("lora"), params, denoiser)
  actual, expected = of_lora(*quantised), of_lora(*floats)
  tolerance = {"atol": 1e-5} if dtype == "float32" else {"rtol": 0.05, "atol": 0.02}
  chex.assert_trees_all_close(actual, expected, **tolerance)


def test_centres_of_all_the_vocabulary_are_those_of_the_numbers(tiny_config):
  """They take columns and their mean from the head, without logits."""
  quantised, floats = both(tiny_config, QuantizeConfig("nf4", 16, head=True))
  hidden = jax.random.normal(jax.random.key(1), (2, 12, 32))
  scoring = Scoring(center_top_k=64, center_gradient=True, with_plain=False)
  heads = [denoiser.head(params) for denoiser, params in (quantised, floats)]
  scores = [token_scores(head, hidden, TOKENS, scoring).centered for head in heads]
  np.testing.assert_allclose(*scores, atol=1e-5)


@pytest.mark.parametrize("remat", [slow("none"), slow("products"), "full"])
def test_floats_of_all_layers_are_never_in_memory(tiny_config, remat):
  """Neither in a pass nor, kept for the way back, in its gradient: 64 layers hold little more than 32."""
  def temporaries(layers, kind):
    config = dataclasses.replace(tiny_config, num_layers=layers, mlp_size=256)
    denoiser = gdsd_jax.Denoiser(config, remat=remat, lora=LORA, quantize=kind and QuantizeConfig(kind, 16))
    abstract = denoiser.abstract_params()
    lora = abstract.pop("lora")
    loss = lambda lora, base, tokens: jnp.sum(jnp.square(denoiser.hidden({**base, "lora": lora}, tokens)))
    lowered = jax.jit(jax.grad(loss)).lower(lora, abstract, jax.ShapeDtypeStruct((1, 2), jnp.int32))
    return lowered.compile().memory_analysis().temp_size_in_bytes

  of_a_layer = 4 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 256)
  grown = {kind: temporaries(64, kind) - temporaries(32, kind) for kind in (None, "int8")}
  assert grown["int8"] < grown[None] + 32 * of_a_layer / 8


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_quantised_as_they_are_read(kind):
  quantize = QuantizeConfig(kind, 32, head=True, embedding=kind != "int4")
  _, params = gdsd_jax.load_pretrained("tiny")
  assert gdsd_jax.QuantizeConfig is QuantizeConfig
  denoiser, found = gdsd_jax.load_pretrained("tiny", quantize=quantize)
  flat = flatten_dict(params, sep=".")
  # Compiled, as reading does: alone, a division may be another instruction.
  of_all = jax.jit(quantise, static_argnames=("path", "config"))
  expected = {path: of_all(path, leaf, quantize) if quantize.covers(path) else leaf for path, leaf in flat.items()}
  chex.assert_trees_all_equal(found, unflatten_dict(expected, sep="."))
  chex.assert_trees_all_equal_shapes_and_dtypes(found, denoiser.abstract_params())


@pytest.mark.parametrize("mesh, kind, block", [
  (dict(data=2, fsdp=2, tensor=2), "nf4", 8), slow(dict(data=1, fsdp=4, tensor=2), "int8", 4),
  slow(dict(data=8), "int4", 32),
])
def test_parts_of_a_mesh_are_those_of_one_device(mesh, kind, block):
  quantize = QuantizeConfig(kind, block, head=True, embedding=True)
  one, params = gdsd_jax.load_pretrained("tiny", quantize=quantize)
  spread, laid_out = gdsd_jax.load_pretrained("tiny", mesh=make_mesh(**mesh), quantize=quantize)
  chex.assert_trees_all_equal(jax.device_get(laid_out), jax.device_get(params))
  down = laid_out["blocks"]["down"]
  chips = mesh.get("fsdp", 1) * mesh.get("tensor", 1)
  for part in (down.qvalue, down.scale):
    assert part.addressable_shards[0].data.size * chips == part.size
  tokens, apply = np.arange(160).reshape(8, 20), jax.jit(gdsd_jax.Denoiser.apply, static_argnums=0)
  np.testing.assert_allclose(apply(spread, laid_out, tokens), apply(one, params, tokens), atol=1e-4)


@pytest.mark.parametrize("quantize, mesh, message", [
  (QuantizeConfig("nf4", 64), None, "model.quantize.block_size: 64 does not divide the 96 inputs of blocks.query"),
  (QuantizeConfig("nf4", 32), dict(data=4, fsdp=2), "32 makes 3 blocks of the inputs of .*, which 2 chips"),
])
def test_blocks_that_do_not_divide_are_refused(quantize, mesh, message):
  with pytest.raises(ValueError, match=message):
    gdsd_jax.load_pretrained("tiny", mesh=mesh and make_mesh(**mesh), quantize=quantize)


@pytest.mark.parametrize("fields, message", [
  (dict(kind="int3"), "model.quantize.kind: 'int3'"), (dict(block_size=0), "model.quantize.block_size"),
])
def test_bad_fields_are_named(fields, message):
  with pytest.raises(ValueError, match=message):
    QuantizeConfig(**fields)


def test_a_tied_head_is_quantised_with_its_embedding(tiny_config):
  with pytest.raises(ValueError, match="model.quantize.head: is the embedding in this model"):
    gdsd_jax.Denoiser(dataclasses.replace(tiny_config, tied_head=True), quantize=QuantizeConfig("int8", 16, head=True))


def test_quantised_weights_are_neither_saved_nor_merged_into(tiny_config, tmp_path):
  (denoiser, params), _ = both(tiny_config, QuantizeConfig("int8", 16))
  with pytest.raises(ValueError, match="an adapter is merged into whole weights"):
    merge(params, LORA)
  del params["lora"]
  with pytest.raises(ValueError, match="the parameters are quantised"):
    gdsd_jax.save_pretrained(tmp_path, denoiser, params)
