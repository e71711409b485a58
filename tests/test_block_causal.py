"""Attention from block to block: what a token sees, on every backend's path, padded, and in a window of a cache."""

import dataclasses
import functools
import types

from conftest import slow
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_attention import random_case

import gdsd_jax
from gdsd_jax.models import attention
from gdsd_jax.models.attention import BlockCausal, plain_attention, tiled_attention, tiled_cudnn_attention
from gdsd_jax.models.attention_kernels import splash_attention
from gdsd_jax.models.denoiser import Denoiser

splash = functools.partial(splash_attention, interpret=True)


@pytest.mark.parametrize("attend, length", [(tiled_attention, 24), slow(splash, 8), slow(splash, 24)])
def test_a_kernel_sees_what_plain_attention_sees(attend, length, monkeypatch):
  monkeypatch.setattr(attention, "TILE", 64)
  (query, key, value), _ = random_case(keys=150, queries=150, batch=2)
  mask = np.arange(150)[None] < np.array([[150], [131]])  # padding comes last
  loss = lambda attend: lambda *arrays: jnp.sum(jnp.sin(
    attend(*arrays, mask, blocks=BlockCausal(length))) * mask[:, :, None, None])
  (value_a, actual), (value_e, expected) = (
    jax.jit(jax.value_and_grad(loss(each), (0, 1, 2)))(query, key, value) for each in (attend, plain_attention))
  np.testing.assert_allclose(value_a, value_e, rtol=1e-4)
  jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=5e-5), actual, expected)


def test_no_array_of_queries_times_keys_is_made_for_the_tpu():
  shape = lambda heads: jax.ShapeDtypeStruct((2, 1024, heads, 128), jnp.bfloat16)
  attend = lambda query, key, value: splash_attention(query, key, value, None, blocks=BlockCausal(32))
  text = jax.jit(attend).trace(shape(4), shape(2), shape(2)).lower(lowering_platforms=("tpu",)).as_text()
  assert "tpu_custom_call" in text and "1024x1024" not in text


@pytest.mark.parametrize("platform, queries, positions, kernel", [
  ("cpu", 512, None, plain_attention), ("tpu", 512, None, splash_attention), ("tpu", 512, 0, tiled_attention),
  ("gpu", 512, None, tiled_cudnn_attention), ("gpu", 512, 0, tiled_cudnn_attention), ("gpu", 32, 0, plain_attention),
  ("tpu", 32, None, plain_attention),
])
def test_where_it_is_computed_by_what(platform, queries, positions, kernel):
  device = types.SimpleNamespace(platform=platform, compute_capability="9.0")
  mesh = types.SimpleNamespace(devices=np.array([device]))
  query = jax.ShapeDtypeStruct((2, queries, 4, 128), jnp.bfloat16)
  assert attention._block_kernel(query, mesh, BlockCausal(4, positions, positions)) is kernel


@pytest.fixture(scope="module")
def blocks(tiny_config):
  """(denoiser, params) of a model whose blocks have 4 tokens."""
  denoiser = Denoiser(dataclasses.replace(tiny_config, block_length=4, positions_skip_padding=True, qk_norm=True))
  return denoiser, jax.jit(denoiser.init)(jax.random.key(0))


TOKENS = np.arange(2 * 14).reshape(2, 14) % 50
MASK = np.arange(14)[None] >= np.array([[0], [3]])
hidden = jax.jit(Denoiser.hidden, static_argnums=0)


def test_a_token_sees_its_block_and_all_before_counted_from_the_first_real_one(blocks):
  plain = hidden(*blocks, TOKENS, MASK)
  for row, first in enumerate((0, 3)):
    for changed in range(first, 14):
      tokens = TOKENS.copy()
      tokens[row, changed] += 1
      moved = np.any(np.asarray(hidden(*blocks, tokens, MASK) != plain)[row, first:], axis=-1)
      block = (changed - first) // 4
      np.testing.assert_array_equal(moved, np.arange(14 - first) >= 4 * block)


def test_a_window_of_the_cache_is_the_whole_pass(blocks):
  denoiser, params = blocks
  whole, cache = jax.jit(Denoiser.hidden_and_cache, static_argnums=0)(denoiser, params, TOKENS, MASK)
  window = jax.jit(Denoiser.window, static_argnums=(0, 4))(denoiser, params, TOKENS, 5, 6, cache, MASK)
  np.testing.assert_allclose(window, whole[:, 5:11], atol=2e-5)


def test_what_would_compute_another_model_is_refused(blocks):
  denoiser, params = blocks
  prompt = jnp.zeros((2, 4), jnp.int32)
  config = gdsd_jax.SamplerConfig(completion_length=8, steps=8, block_length=4)
  with pytest.raises(ValueError, match="^sampler.kind: llada's sampler knows models whose tokens all see each other; "):
    gdsd_jax.sample(denoiser, params, prompt, None, jax.random.key(0), config)


@pytest.mark.parametrize("changes, message", [
  (dict(block_length=4), "block_length needs positions_skip_padding"), (dict(block_length=0), "block_length must be"),
  (dict(block_length="4"), "block_length must be an integer"), (dict(rotary_share=0.4), "rotary_share"),
])
def test_what_cannot_be_is_said(tiny_config, changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(tiny_config, **changes)
