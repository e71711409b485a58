"""The MLP of some tokens at a time: the same results and gradients, in memory that does not grow with the batch."""

import dataclasses
import functools

from conftest import slow
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_context import ADAPTER, assert_equal_to_5_digits, loss_and_gradient, MODELS

from gdsd_jax.models.chunks import in_chunks
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.models.lora import LoraConfig
from gdsd_jax.parallel.mesh import make_mesh
from gdsd_jax.runs.model_config import ModelConfig

MESH = {"context": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize("name, sizes, tokens, options", [
  ("llada", {}, 5, {}), slow("dream", {}, 13, {"remat": "full"}), ("experts", {}, 20, ADAPTER),
  slow("block", MESH, 4, ADAPTER), slow("llada", MESH, 5, {}), slow("dream", MESH, 1, ADAPTER),
  slow("experts", {"context": 2, "fsdp": 2, "expert": 2}, 3, {}),
], ids=str)
def test_scores_and_gradient_are_those_of_all_tokens_at_once(name, sizes, tokens, options):
  found = loss_and_gradient(name, tuple(sizes.items()), **options, mlp_tokens=tokens)
  expected = loss_and_gradient(name, **options)
  assert_equal_to_5_digits(found, expected)


def test_chunks_are_not_filled_up_where_a_few_more_are_even():
  sizes, x = [], jnp.ones((1, 656, 1))
  compute = lambda part, _: sizes.append(part.shape[1]) or part
  jax.eval_shape(lambda x: in_chunks(compute, x, 64, None, ("batch", "tokens")), x)
  assert set(sizes) == {41}  # 656 = 16 × 41, in place of 11 × 60 and 4 of nothing


@pytest.mark.parametrize("most, mesh, widths", [
  (None, None, {7}), (28, None, {7}), (27, None, {4}), (12, None, {3}), (4, None, {1}), (1, None, {1}),
  (6, dict(fsdp=4), {4}), (3, dict(data=2), {1}),
])
def test_chunks_have_no_more_tokens_of_a_chip_than_asked_for(most, mesh, widths):
  mesh = mesh and make_mesh(**{"data": 1, **mesh}, devices=jax.devices()[:np.prod(list(mesh.values()))])
  x, seen = jnp.arange(4 * 7 * 2.0).reshape(4, 7, 2), set()

  def compute(part, chunk):
    seen.add(part.shape[1])
    assert (chunk is None) == (part.shape[1] == 7)
    return part * 2

  found = jax.jit(functools.partial(in_chunks, compute, most=most, mesh=mesh, axes=("batch", "tokens")))(x)
  np.testing.assert_array_equal(found, 2 * x)
  assert seen == widths


@pytest.mark.parametrize("remat", ["none", "full"])
def test_its_activations_do_not_grow_with_the_batch(remat):
  config = dataclasses.replace(MODELS["llada"], mlp_size=512, num_layers=1)

  def temporaries(rows, mlp_tokens):
    denoiser = Denoiser(config, remat=remat, lora=ADAPTER["lora"], mlp_tokens=mlp_tokens)
    params = denoiser.abstract_params()
    lora = params.pop("lora")
    loss = lambda lora, base, tokens: jnp.sum(jnp.square(denoiser.hidden({**base, "lora": lora}, tokens)))
    lowered = jax.jit(jax.grad(loss)).lower(lora, params, jax.ShapeDtypeStruct((rows, 8), jnp.int32))
    return lowered.compile().memory_analysis().temp_size_in_bytes

  whole, chunked = (temporaries(64, tokens) - temporaries(32, tokens) for tokens in (None, 64))
  assert whole > 8 * (32 * 8 * 512 * 4) and chunked < whole / 5


def test_dropout_draws_for_each_chunk():
  lora = LoraConfig(rank=2, alpha=2, dropout=0.5, targets=("gate", "up", "down"))
  denoiser = Denoiser(dataclasses.replace(MODELS["llada"], num_layers=1), lora=lora, mlp_tokens=4)
  params = jax.tree.map(lambda spec: jnp.full(spec.shape, 0.25), denoiser.abstract_params())
  params["embedding"] = jax.random.normal(jax.random.key(0), params["embedding"].shape)
  # Attention makes of equal tokens the same at all positions, so that only dropout tells them apart.
  states = lambda key: np.asarray(denoiser.hidden(params, jnp.zeros((1, 12), jnp.int32), dropout_key=key)[0])
  np.testing.assert_allclose(states(None), states(None)[:1].repeat(12, axis=0), rtol=1e-5)
  chunks = states(jax.random.key(1)).reshape(3, 4, -1)
  assert not np.allclose(chunks[0], chunks[1]) and not np.allclose(chunks[1], chunks[2])


@pytest.mark.parametrize("lora", [None, slow(LoraConfig(rank=2, alpha=2))])
def test_gradients_of_chunks_are_summed_in_float32(lora):
  """Of one token over and over, so that those of all chunks add up."""
  config, tokens = dataclasses.replace(MODELS["llada"], num_layers=1, max_positions=256), jnp.full((2, 256), 3)

  def gradient(dtype, mlp_tokens):
    denoiser = Denoiser(config, dtype=dtype, remat="full", lora=lora, mlp_tokens=mlp_tokens)
    params = jax.tree.map(lambda spec: jax.random.normal(jax.random.key(spec.size), spec.shape) / 4,
                          denoiser.abstract_params())
    loss = lambda params: jnp.sum(jnp.sin(denoiser.hidden(params, tokens).astype(jnp.float32)))
    found = jax.jit(jax.grad(loss))(params)
    return np.asarray(found["lora"]["down"]["b"] if lora else found["blocks"]["down"])

  exact = gradient("float32", None)
  error = lambda found: np.linalg.norm(found - exact) / np.linalg.norm(exact)
  whole, chunked = error(gradient("bfloat16", None)), error(gradient("bfloat16", 2))
  assert chunked < 2 * whole < 0.1


def test_chunks_are_refused_where_products_of_all_tokens_are_kept():
  with pytest.raises(ValueError, match="^model.mlp_tokens: 8 must be at least 1, and model.remat not 'products'"):
    Denoiser(MODELS["llada"], remat="products", mlp_tokens=8)


@pytest.mark.parametrize("value", [0, -1, 2.5, "8"])
def test_a_number_of_tokens_that_cannot_be_is_refused(value):
  with pytest.raises(ValueError, match="^model.mlp_tokens: must be an integer of at least 1"):
    ModelConfig(mlp_tokens=value)
