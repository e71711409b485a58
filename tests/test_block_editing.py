"""LLaDA 2.1's editing of set tokens against a loop over single prompts, and what goes with it."""

import dataclasses
import math

from conftest import over_mesh, slow
import jax
import numpy as np
import pytest

import gdsd_jax
from gdsd_jax.models.denoiser import Denoiser

K, L, P = 4, 8, 10
REAL = (10, 8, 3, 5, 1, 7, 4, 2)
PROMPT = np.random.default_rng(0).integers(0, 50, (len(REAL), P))
MASK = np.arange(P)[None] >= P - np.array(REAL)[:, None]
EDITING = gdsd_jax.SamplerConfig(kind="block", completion_length=L, block_length=K, temperature=0, cache="exact",
                                 threshold=0.5, editing_threshold=0.1, max_post_steps=3)
apply = jax.jit(Denoiser.apply, static_argnums=0)


@pytest.fixture(scope="module")
def blocks(tiny_config):
  """(denoiser, params) of a model whose blocks have 4 tokens, sure of some of them."""
  denoiser = Denoiser(dataclasses.replace(tiny_config, block_length=K, positions_skip_padding=True, qk_norm=True))
  params = jax.jit(denoiser.init)(jax.random.key(0))
  return denoiser, params | {"head": params["head"] * 5}


def sampled(blocks, config, record=frozenset()):
  return gdsd_jax.sample(*blocks, PROMPT, MASK, jax.random.key(1), config, record)


def one_by_one(blocks, prompt, config):
  """(tokens, steps, edits) of one prompt, as LLaDA 2.1's code goes about it."""
  denoiser, params = blocks
  mask_id, total = denoiser.config.mask_token_id, K * math.ceil((len(prompt) + L) / K)
  canvas = np.full(20, mask_id)
  canvas[:len(prompt)] = prompt
  steps, edits, first = np.full(20, -1), 0, len(prompt) // K
  for block in range(first, total // K):
    inside = (np.arange(20) // K == block) & (np.arange(20) >= len(prompt))
    post = 0
    for index in range(100):
      masks = inside & (canvas == mask_id)
      post += not masks.any()
      if post > config.max_post_steps:
        break
      logits = np.array(apply(denoiser, params, canvas[None]))[0].astype(np.float64)
      sure = np.exp(logits - logits.max(-1, keepdims=True))
      sure /= sure.sum(-1, keepdims=True)
      sure[:, mask_id] = 0
      best, share = sure.argmax(-1), sure.max(-1)
      chosen = masks & (share > config.threshold)
      if masks.any() and not chosen.any():
        chosen[np.flatnonzero(masks)[np.argmax(share[masks])]] = True
      edited = inside & ~masks & (share > config.editing_threshold) & (best != canvas)
      canvas[chosen | edited] = best[chosen | edited]
      steps[chosen | edited] = (block - first) * config.block_steps + index
      edits += edited.sum()
      if not masks.any() and not edited.any():
        break
  end = len(prompt) + L
  return canvas[len(prompt):end], steps[len(prompt):end], edits


@pytest.mark.parametrize("changes", [dict(), slow(dict(editing_threshold=0.0, max_post_steps=0)),
                                     slow(dict(threshold=0.9, editing_threshold=0.6, max_post_steps=16))], ids=str)
def test_it_is_a_loop_over_single_prompts_with_the_cache_and_without(blocks, changes):
  config, edits = dataclasses.replace(EDITING, **changes), 0
  rollout, uncached = sampled(blocks, config), sampled(blocks, dataclasses.replace(config, cache="none"))
  for row, count in enumerate(REAL):
    tokens, steps, edited = one_by_one(blocks, PROMPT[row, P - count:], config)
    np.testing.assert_array_equal(rollout.tokens[row], tokens)
    np.testing.assert_array_equal(rollout.steps[row], steps)
    edits += edited
  assert edits > 0
  np.testing.assert_array_equal(rollout.tokens, uncached.tokens)
  np.testing.assert_allclose(rollout.confidence, uncached.confidence, atol=1e-5)


@pytest.mark.slow
def test_a_mesh_changes_nothing(blocks):
  np.testing.assert_array_equal(sampled(over_mesh((2, 2, 2), *blocks), EDITING).tokens, sampled(blocks, EDITING).tokens)


@pytest.mark.slow
def test_what_is_remembered_of_an_edited_token_is_its_last_writing(blocks):
  """In a block's last step of a row, what it wrote has the log-probability of the state before, which can be told."""
  denoiser, params = blocks
  config = dataclasses.replace(EDITING, temperature=0.7, max_post_steps=0)
  rollout = sampled(blocks, config, frozenset({"logp"}))
  steps, row, count = np.asarray(rollout.steps), 1, REAL[1]
  tokens = np.asarray(rollout.tokens[row])
  last = steps[row, :K] == steps[row, :K].max()  # all that the first block's last step wrote: nothing changes later
  assert (steps[row, :K] < config.block_steps).all()
  assert np.isfinite(rollout.logp[row]).all() and (np.asarray(rollout.logp[row]) <= 0).all()
  np.testing.assert_allclose(np.exp(rollout.logp[row]), rollout.confidence[row], rtol=1e-5)
  if last.sum() == 1:  # the state was the block as it is, but for one token, which was a mask or another token
    state = np.where(np.arange(L) < K, tokens, denoiser.config.mask_token_id)
    state[np.flatnonzero(last)] = denoiser.config.mask_token_id
    logits = apply(denoiser, params, np.concatenate([PROMPT[row, P - count:], state])[None])[0, count:] / 0.7
    logits = np.array(logits.at[:, denoiser.config.mask_token_id].set(-np.inf))
    expected = jax.nn.log_softmax(logits)[np.flatnonzero(last)[0], tokens[np.flatnonzero(last)[0]]]
    np.testing.assert_allclose(rollout.logp[row, np.flatnonzero(last)[0]], expected, atol=1e-4)


@pytest.mark.parametrize("changes, message", [
  (dict(threshold=None), "^sampler.editing_threshold: needs sampler.threshold"),
  (dict(editing_threshold=1.5), "^sampler.editing_threshold: must lie in"),
  (dict(max_post_steps=-1), "^sampler.max_post_steps: must be an integer and not negative, not -1"),
  (dict(editing_threshold=None), "^sampler.max_post_steps: has no effect without sampler.editing_threshold"),
  (dict(kind="llada", cache="none"), "^sampler.editing_threshold: only the block sampler has it"),
])
def test_what_does_not_fit_is_said(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(EDITING, **changes)
