"""All blocks of a block-causal model's views in one pass: scores, gradients, weights and the masks that they are of."""

import dataclasses
import functools

from conftest import slow
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_attention import random_case

import gdsd_jax
from gdsd_jax.diffusion.block_forward import block_levels, block_masks, steps_in_blocks
from gdsd_jax.models import attention
from gdsd_jax.models.attention import BlockCausal, plain_attention, tiled_attention, tiled_cudnn_attention
from gdsd_jax.models.attention_kernels import splash_attention
from gdsd_jax.models.copies import completion_blocks
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.objectives.masked_cross_entropy import masked_cross_entropy
from gdsd_jax.objectives.scores import token_weights, view_scores
from gdsd_jax.objectives.token_scores import PLAIN
from gdsd_jax.objectives.views import Views

K, L, P = 4, 8, 10
REAL = np.array((10, 8, 3, 2, 5, 1))  # tokens of each prompt: partial blocks of all sizes
B = len(REAL)
rng = np.random.default_rng(0)
TOKENS, MASKS = rng.integers(0, 50, (B, P + L)), rng.random((B, L)) < 0.5
ATTENDED = np.concatenate([np.arange(P)[None] >= P - REAL[:, None], np.ones((B, L), bool)], axis=1)
BLOCKS = np.stack([(count % K + np.arange(L)) // K for count in REAL])


@pytest.fixture(scope="module")
def blocks(tiny_config):
  """(denoiser, params) of a model whose blocks have 4 tokens."""
  config = dataclasses.replace(tiny_config, block_length=K, positions_skip_padding=True, qk_norm=True)
  denoiser = Denoiser(config)
  return denoiser, jax.jit(denoiser.init)(jax.random.key(0))


def block_by_block(denoiser, params, masks, attended=ATTENDED):
  """Log-probabilities of the tokens, [B, L], each from a pass in which its block is noised and all before are clean.

  What comes behind the block is not there. Rows have no padding on the left.
  """
  rows, owners, places = [], [], []
  for row, count in enumerate(REAL):
    tokens = TOKENS[row, P - count:][attended[row, P - count:]]
    noised = np.where(np.arange(len(tokens)) < count, tokens, np.where(
      np.pad(masks[row], (count, 0))[:len(tokens)], denoiser.config.mask_token_id, tokens))
    for start in range(count // K * K, len(tokens), K):
      known = np.concatenate([tokens[:start], noised[start:start + K]])
      rows.append(np.pad(known, (0, P + L - len(known))))
      owners += [(len(rows) - 1, place, row, place - count) for place in range(max(start, count), len(known))]
      places.append(len(known))
  real = np.arange(P + L)[None] < np.array(places)[:, None]
  logp = jax.nn.log_softmax(denoiser.apply(params, np.stack(rows), real))
  which, place, row, token = np.array(owners).T
  found = logp[which, place, TOKENS[row, P + token]]
  return jnp.zeros((B, L)).at[row, token].set(found)


def in_one_pass(denoiser, params, masks, attended=ATTENDED, coupled=False):
  return view_scores(denoiser, params, TOKENS, Views(jnp.asarray(masks), coupled=coupled), attended, PLAIN).plain


def with_gradient(scores, denoiser, params, masks):
  """(scores, gradient of a sum of them in which each has a weight of its own)."""
  of_tokens = np.random.default_rng(1).normal(size=(B, L))
  summed = lambda params: (jnp.sum(of_tokens * (found := scores(denoiser, params, masks))), found)
  (_, found), gradient = jax.jit(jax.value_and_grad(summed, has_aux=True))(params)
  return found, gradient


def assert_alike(actual, expected):
  np.testing.assert_allclose(actual[0], expected[0], atol=1e-5)
  for a, e in zip(*map(jax.tree.leaves, (actual[1], expected[1])), strict=True):
    np.testing.assert_allclose(a, e, atol=1e-5 * max(np.abs(e).max(), 1))


@pytest.mark.parametrize("masks", [MASKS, slow(np.ones_like(MASKS))], ids=["some", "all"])
def test_one_pass_is_block_by_block(blocks, masks):
  actual, expected = (with_gradient(scores, *blocks, masks) for scores in (in_one_pass, block_by_block))
  assert_alike(actual, expected)


def test_a_coupled_pair_has_each_token_from_the_pass_that_masks_it(blocks):
  denoiser, params = blocks
  first, second, both = (jax.jit(functools.partial(in_one_pass, denoiser, masks=masks, coupled=coupled))(params)
                         for masks, coupled in ((MASKS, False), (~MASKS, False), (MASKS, True)))
  np.testing.assert_allclose(both, np.where(MASKS, first, second), atol=1e-5)


@pytest.mark.slow
def test_what_follows_an_end_of_text_may_be_unseen(blocks):
  denoiser, params = blocks
  ended = ATTENDED & (np.arange(P + L) < P + 5)
  actual, expected = (jax.jit(functools.partial(scores, denoiser, masks=MASKS, attended=ended))(params)
                      for scores in (in_one_pass, block_by_block))
  np.testing.assert_allclose(actual[:, :5], expected[:, :5], atol=1e-5)


@pytest.mark.parametrize("attend, length", [
  (tiled_attention, 8), (tiled_attention, 3), slow(functools.partial(splash_attention, interpret=True), 8)])
def test_a_kernel_sees_of_copies_what_plain_attention_sees(attend, length, monkeypatch):
  monkeypatch.setattr(attention, "TILE", 64)
  start, width = 5 * length, 4 * length
  blocks, total = BlockCausal(length, start=start, width=width), start + 4 * width  # a sequence and three copies
  (query, key, value), _ = random_case(keys=total, queries=total, batch=2)
  mask = np.ones((2, total), bool)
  mask[1, :start // 2] = False  # at the left of a prompt; and behind a completion, in each copy
  for copy in range(1, 5):
    mask[1, start + copy * width - 2:start + copy * width] = False
  loss = lambda attend: lambda *arrays: jnp.sum(jnp.sin(
    attend(*arrays, mask, blocks=blocks)) * mask[:, :, None, None])
  (value_a, actual), (value_e, expected) = (
    jax.jit(jax.value_and_grad(loss(each), (0, 1, 2)))(query, key, value) for each in (attend, plain_attention))
  np.testing.assert_allclose(value_a, value_e, rtol=1e-4)
  jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=5e-5), actual, expected)


def lowered(attend, platform):
  """StableHLO of the gradient of attention among a sequence of 512 tokens and two copies of its second half."""
  shape = lambda heads: jax.ShapeDtypeStruct((2, 1024, heads, 128), jnp.bfloat16)
  blocks = BlockCausal(32, start=256, width=256)
  loss = lambda *arrays: jnp.sum(attend(*arrays, None, blocks=blocks).astype(jnp.float32))
  traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(shape(4), shape(2), shape(2))
  return traced.lower(lowering_platforms=(platform,)).as_text()


def test_the_tpu_has_a_kernel_and_no_array_of_queries_times_keys():
  text = lowered(splash_attention, "tpu")
  assert "tpu_custom_call" in text and "1024x1024" not in text


def test_cudnn_is_told_what_some_queries_see(monkeypatch):
  cudnn = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
  monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)  # as where there is one
  monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)
  monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda _: False, raising=False)
  text = lowered(tiled_cudnn_attention, "cuda")
  assert "fmhaScaleBiasSoftmaxBackward" in text and "1024x1024" not in text
  assert "2x1x256x768" in text  # the keys of the sequence and of the queries' own tile


def test_blocks_are_those_of_the_sampler(blocks):
  np.testing.assert_array_equal(completion_blocks(blocks[0].config, REAL, L), BLOCKS)


def test_weights_are_those_of_each_block():
  masks = np.stack([MASKS, ~MASKS, np.zeros_like(MASKS)], axis=1)
  weights = token_weights(masks, BLOCKS)
  for row, view, token in np.ndindex(B, 3, L):
    same = BLOCKS[row] == BLOCKS[row, token]
    alike = same & (masks[row, view] == masks[row, view, token])
    assert weights[row, view, token] == pytest.approx((same.sum() + 1) / alike.sum())


def test_scores_of_sequences_are_sums_over_blocks(blocks):
  denoiser, params = blocks
  scores = jax.jit(gdsd_jax.sequence_scores, static_argnums=(0, 4))(
    denoiser, params, TOKENS, MASKS[None], P, ATTENDED[:, :P])
  of_tokens = jax.jit(functools.partial(in_one_pass, denoiser, masks=MASKS, coupled=True))(params)
  expected = 0.5 * np.sum(token_weights(MASKS[:, None], BLOCKS)[:, 0] * of_tokens, axis=-1)
  np.testing.assert_allclose(scores.plain[:, 0], expected, rtol=1e-5)


def test_the_cross_entropy_is_that_of_each_block_after_clean_ones(blocks):
  denoiser, params = blocks
  maskable = np.broadcast_to(np.arange(P + L) >= P, TOKENS.shape)
  arguments = denoiser, params, jax.random.key(3), TOKENS, maskable, ATTENDED
  loss, _ = jax.jit(masked_cross_entropy, static_argnums=(0, 6))(*arguments, P)
  rate_key, mask_key = jax.random.split(arguments[2])
  rate = 1e-3 + (1 - 1e-3) * ((jax.random.uniform(rate_key) + np.arange(B) / B) % 1)[:, None]
  masks = np.asarray(jax.random.uniform(mask_key, TOKENS.shape) < rate)[:, P:]
  logp = jax.jit(functools.partial(block_by_block, denoiser, masks=masks))(params)
  np.testing.assert_allclose(loss, np.sum(-logp * masks / rate) / (B * L), rtol=1e-5)


def test_levels_of_a_block_are_spread_evenly_over_all_that_it_may_have():
  blocks, group = np.tile(BLOCKS, (5, 1)), 6
  levels = np.asarray(jax.jit(jax.vmap(lambda key: block_levels(key, blocks, group)))(
    jax.random.split(jax.random.key(0), 400)))
  for row, token in ((0, 0), (0, 7), (1, 3), (2, 0), (2, 7)):
    size = np.sum(blocks[row] == blocks[row, token])
    frequency = np.bincount(levels[:, row, token], minlength=size + 1) / len(levels)
    np.testing.assert_allclose(frequency, 1 / (size + 1), atol=0.09)
  starts = np.array([np.searchsorted(row, row) for row in blocks])
  np.testing.assert_array_equal(levels, np.take_along_axis(levels, np.broadcast_to(starts, levels.shape), axis=2))
  drawn = np.asarray(block_levels(jax.random.key(1), np.tile(np.arange(L) // K, (30, 1)), group))[:, ::K]
  assert set(np.bincount(drawn.ravel())) == {60 // (K + 1)}  # of the 60 blocks


@pytest.mark.parametrize("remasking", ["low_confidence", "random", "sequential"])
def test_masks_are_states_of_every_block(remasking):
  confidence = np.random.default_rng(2).random((B, L), np.float32)
  masks = np.asarray(block_masks(jax.random.key(0), confidence, BLOCKS, 3, remasking))
  assert masks.shape == (B, 3, L) and 0 < masks.mean() < 1
  for row, view, block in np.ndindex(B, 3, 3):
    tokens = np.flatnonzero(BLOCKS[row] == block)
    masked = masks[row, view, tokens]
    if remasking == "sequential":
      assert np.all(np.diff(masked.astype(int)) >= 0)
    if remasking == "low_confidence" and masked.any() and not masked.all():
      assert confidence[row, tokens][masked].max() < confidence[row, tokens][~masked].min()


def test_steps_are_counted_in_each_block():
  sampler = gdsd_jax.SamplerConfig(kind="block", completion_length=8, block_length=4, steps=4)
  steps = np.array([[0, 1, 0, 1, 2, 3, 5, 6]])  # 6 is of no step: it was filled in after an end of text
  np.testing.assert_array_equal(steps_in_blocks(steps, sampler), [[0, 1, 0, 1, 0, 1, 1, 2]])
  assert sampler.view_steps == 2
