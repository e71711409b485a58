"""Sequences split over a context axis of the mesh: scores, gradients and tokens are those of one device."""

import dataclasses
import functools
import re

from conftest import slow
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gdsd_jax.diffusion.blockwise import sample
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.models.attention import BlockCausal, plain_attention, tiled_attention
from gdsd_jax.models.attention_kernels import cudnn_attention, padding, splash_attention
from gdsd_jax.models.config import DenoiserConfig, ExpertsConfig
from gdsd_jax.models.copies import side_by_side
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.models.lora import LoraConfig
from gdsd_jax.objectives.scores import view_scores
from gdsd_jax.objectives.token_scores import Scoring
from gdsd_jax.objectives.views import Views
from gdsd_jax.parallel.mesh import batch_sharding, make_mesh, param_shardings

LLADA = DenoiserConfig(
  vocab_size=24, hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, mlp_size=12, rope_theta=100.0,
  norm_epsilon=1e-6, max_positions=64, mask_token_id=20, eos_token_id=21, pad_token_id=21,
)
BLOCK = dataclasses.replace(LLADA, block_length=4, positions_skip_padding=True, qk_norm=True)
MODELS = {
  "llada": LLADA, "block": BLOCK,
  "dream": dataclasses.replace(LLADA, qkv_bias=True, shifted_output=True, positions_skip_padding=True, family="dream"),
  "experts": dataclasses.replace(BLOCK, experts=ExpertsConfig(count=4, per_token=2, size=6)),
}
B, P, L = 4, 4, 8
TOKENS = np.random.default_rng(0).integers(0, 20, (B, P + L)).astype(np.int32)
REAL = np.arange(P + L)[None] >= np.array([0, 3, 1, 0])[:, None]  # prompts are padded at the left
MASKS = np.random.default_rng(1).random((B, L)) < 0.5


def mesh_of(**sizes):
  sizes = {"data": 1, **sizes}
  return make_mesh(**sizes, devices=jax.devices()[:int(np.prod(list(sizes.values())))])


def made(name, mesh, **options):
  denoiser = Denoiser(MODELS[name], mesh=mesh, **options)
  params = jax.jit(dataclasses.replace(denoiser, mesh=None).init)(jax.random.key(1))
  if denoiser.lora is not None:
    params["lora"] = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape) / 4, params["lora"])
  return denoiser, jax.device_put(params, None if mesh is None else param_shardings(mesh, denoiser))


def over(mesh, *arrays):
  return arrays if mesh is None else jax.device_put(arrays, batch_sharding(mesh))


# Training.


@functools.cache
def loss_and_gradient(name, sizes=(), **options):
  """Of plain and centred scores of a coupled pair, by all parameters."""
  mesh = mesh_of(**dict(sizes)) if sizes else None
  denoiser, params = made(name, mesh, **options)

  @jax.jit
  @jax.value_and_grad
  def loss(params, tokens, real, masks):
    scores = view_scores(denoiser, params, tokens, Views(masks, coupled=True), real, Scoring(4, center_gradient=True))
    return jnp.sum(jnp.sin(scores.plain) + jnp.cos(scores.centered))

  return jax.device_get(loss(params, *over(mesh, TOKENS, REAL, MASKS)))


def assert_equal_to_5_digits(found, expected):
  """Of the largest number of each array of two trees."""
  compare = lambda actual, expected: np.testing.assert_allclose(
    actual, expected, rtol=1e-5, atol=1e-5 * max(np.max(np.abs(expected)), 1e-2))
  jax.tree.map(compare, found, expected)


ADAPTER = {"lora": LoraConfig(rank=2, alpha=2), "remat": "full"}


@pytest.mark.parametrize("name, sizes, options", [
  ("block", {"context": 2}, ADAPTER), slow("block", {"context": 4, "fsdp": 2}, ADAPTER),
  slow("block", {"context": 2, "fsdp": 2, "tensor": 2}, {}),
  ("llada", {"context": 4}, {}), slow("llada", {"context": 2, "fsdp": 2, "tensor": 2}, ADAPTER),
  slow("dream", {"context": 4, "fsdp": 2}, {}), slow("dream", {"context": 2, "fsdp": 2, "tensor": 2}, ADAPTER),
  slow("experts", {"context": 2, "fsdp": 2, "expert": 2}, {}),
], ids=str)
def test_scores_and_gradient_are_those_of_one_device(name, sizes, options):
  (loss, gradient), (of_one, expected) = (
    loss_and_gradient(name, tuple(split.items()), **options) for split in (sizes, {}))
  assert_equal_to_5_digits((loss, gradient), (of_one, expected))


def test_each_device_keeps_its_own_tokens_for_the_backward_pass():
  mesh = mesh_of(context=4)
  denoiser, params = made("llada", mesh, remat="full")
  gradient = jax.jit(jax.grad(lambda params, tokens: jnp.sum(denoiser.hidden(params, tokens))))
  text = gradient.lower(params, *over(mesh, TOKENS)).compile().as_text()
  kept = lambda tokens: re.findall(rf"f32\[2,{B},{tokens},16\]", text)  # the inputs of two layers
  assert kept((P + L) // 4) and not kept(P + L)


@pytest.mark.parametrize("parts", [1, 3, 4])
def test_copies_are_filled_up_to_whole_blocks_on_each_device(parts):
  noised = np.full((B, 2, L), 20)
  copies = side_by_side(TOKENS, noised, REAL, block_length=4, parts=parts)
  of_one = side_by_side(TOKENS, noised, REAL, block_length=4)
  columns = of_one.tokens.shape[1]
  assert copies.tokens.shape[1] % (4 * parts) == 0 and copies.tokens.shape[1] - columns < 4 * parts
  np.testing.assert_array_equal(copies.tokens[:, :columns], of_one.tokens)
  assert not np.any(copies.mask[:, columns:])
  np.testing.assert_array_equal(copies.of_completions(copies.tokens), of_one.of_completions(of_one.tokens))


# Attention: each device's own queries to all keys.

KERNELS = {
  "splash": functools.partial(splash_attention, interpret=True),
  "tiled": tiled_attention,
  "cudnn": lambda query, key, value, mask, mesh, blocks, axes: cudnn_attention(
    query, key, value, padding(mask), mesh, axes, implementation="xla"),
}
COPIES = BlockCausal(8, start=32, width=64)  # two copies behind 96 tokens


@pytest.mark.parametrize("kernel, blocks", [
  ("cudnn", None), ("tiled", BlockCausal(8)), slow("tiled", COPIES), slow("splash", None),
  slow("splash", BlockCausal(8)), slow("splash", COPIES),
], ids=str)
def test_kernels_attend_from_the_tokens_of_each_device(kernel, blocks):
  rng, tokens = np.random.default_rng(0), 224
  arrays = [rng.normal(size=(2, tokens, heads, 128)).astype(np.float32) for heads in (4, 2, 2)]
  real = np.arange(tokens)[None] >= np.array([[0], [9]])
  real &= np.arange(tokens)[None] < tokens - 3
  mesh = mesh_of(context=2, tensor=2)
  weight = rng.normal(size=arrays[0].shape).astype(np.float32) * real[:, :, None, None]

  def value_and_gradient(attend, mesh):
    attended = lambda arrays: attend(*arrays, real, mesh, blocks, ("batch", "tokens"))
    return jax.jit(jax.value_and_grad(lambda arrays: jnp.sum(weight * attended(arrays))))(arrays)

  (actual, gradient), (expected, of_plain) = (
    value_and_gradient(KERNELS[kernel], mesh), value_and_gradient(plain_attention, None))
  np.testing.assert_allclose(actual, expected, rtol=1e-4)
  for part, plain in zip(gradient, of_plain):
    np.testing.assert_allclose(part, plain, atol=1e-4)


# Sampling.

SAMPLER = SamplerConfig(completion_length=L, steps=4, block_length=4)
DREAM = dataclasses.replace(SAMPLER, kind="dream", alg="maskgit_plus", remasking=SAMPLER.remasking, block_length=L)
CACHED = dataclasses.replace(SAMPLER, kind="block", cache="exact")


@pytest.mark.parametrize("name, sizes, sampler", [
  ("llada", {"context": 4}, SAMPLER), slow("llada", {"context": 2, "fsdp": 2, "tensor": 2}, SAMPLER),
  slow("llada", {"context": 2, "fsdp": 2}, dataclasses.replace(SAMPLER, cache="dual")),
  slow("llada", {"context": 2, "fsdp": 2}, dataclasses.replace(SAMPLER, cache="prefix")),
  slow("llada", {"context": 4}, dataclasses.replace(SAMPLER, cfg_scale=1.0)),
  slow("dream", {"context": 2, "fsdp": 2, "tensor": 2}, dataclasses.replace(DREAM, top_p=0.9, top_k=6)),
  slow("dream", {"context": 4}, DREAM),
  slow("block", {"context": 2, "fsdp": 2}, CACHED), slow("block", {"context": 4, "tensor": 2}, CACHED),
  slow("block", {"context": 8}, CACHED),  # which does not divide the batch
  slow("block", {"context": 2, "fsdp": 2, "tensor": 2}, dataclasses.replace(CACHED, cache="none")),
  slow("block", {"context": 2, "fsdp": 2}, dataclasses.replace(CACHED, slots=4)),
  slow("llada", {"context": 2, "fsdp": 2}, dataclasses.replace(SAMPLER, slots=2)),
  slow("experts", {"context": 2, "fsdp": 2, "expert": 2}, CACHED),
], ids=str)
def test_tokens_are_those_of_one_device(name, sizes, sampler):

  def rollout(mesh):
    prompt, real = over(mesh, TOKENS[:, :P], REAL[:, :P])
    return sample(*made(name, mesh), prompt, real, jax.random.key(3), sampler, frozenset({"logp"}))

  mesh = mesh_of(**sizes)
  found, expected = rollout(mesh), rollout(None)
  np.testing.assert_array_equal(found.tokens, expected.tokens)
  np.testing.assert_array_equal(found.steps, expected.steps)
  np.testing.assert_allclose(found.logp, expected.logp, atol=1e-5)
  assert found.tokens.sharding.is_equivalent_to(batch_sharding(mesh), 2)  # as hosts read them


def test_a_sequence_that_the_mesh_does_not_divide_is_refused():
  denoiser, params = made("llada", mesh_of(context=8))
  with pytest.raises(ValueError, match="^mesh.context: 8 does not divide sequences of 12 tokens"):
    denoiser.hidden(params, TOKENS)
