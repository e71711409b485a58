"""The sampler of block-causal models against a loop over single prompts, cached and not, and over meshes."""

import dataclasses
import math

from conftest import over_mesh, slow
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdsd_jax
from gdsd_jax.models.denoiser import Denoiser

K, L, P = 4, 8, 10
# Tokens of each prompt: partial blocks of all sizes. (With none, all masks tie in the first step.)
REAL = (10, 8, 3, 2, 5, 1, 7, 4)
PROMPT = np.random.default_rng(0).integers(0, 50, (len(REAL), P))
MASK = np.arange(P)[None] >= P - np.array(REAL)[:, None]
BLOCK = gdsd_jax.SamplerConfig(kind="block", completion_length=L, steps=L, block_length=K, temperature=0, cache="exact")
apply = jax.jit(Denoiser.apply, static_argnums=0)


@pytest.fixture(scope="module")
def blocks(tiny_config):
  """(denoiser, params) of a model whose blocks have 4 tokens."""
  config = dataclasses.replace(tiny_config, block_length=K, positions_skip_padding=True, qk_norm=True)
  denoiser = Denoiser(config)
  params = jax.jit(denoiser.init)(jax.random.key(0))
  return denoiser, params | {"head": params["head"] * 5}  # sure of some tokens, and not of others


def sampled(blocks, config, record=("logp",)):
  return gdsd_jax.sample(*blocks, PROMPT, MASK, jax.random.key(1), config, frozenset(record))


def one_by_one(blocks, prompt, config):
  """(tokens, steps) of one prompt, without padding, as SDAR's generate.py goes about it: a quota and a threshold."""
  denoiser, params = blocks
  mask_id, total = denoiser.config.mask_token_id, K * math.ceil((len(prompt) + L) / K)
  canvas = np.full(20, mask_id)
  canvas[:len(prompt)] = prompt
  steps, each = np.full(20, -1), config.block_steps
  first = len(prompt) // K
  for block in range(first, total // K):
    inside = (np.arange(20) // K == block) & (np.arange(20) >= len(prompt))
    if config.early_stop and denoiser.config.eos_token_id in canvas[len(prompt):block * K]:
      canvas[inside], steps[inside] = denoiser.config.eos_token_id, config.most_steps
      continue
    for index in range(each):
      masks = np.flatnonzero(inside & (canvas == mask_id))
      if not len(masks):
        break
      logits = np.array(apply(denoiser, params, canvas[None]))[0].astype(np.float64)
      shares = np.exp(logits - logits.max(-1, keepdims=True))
      shares /= shares.sum(-1, keepdims=True)
      shares[:, mask_id] = 0
      sure = shares.max(-1)[masks]
      quota = K // each + (index < K % each)
      order = np.argsort(-sure, kind="stable")
      count = max(min(quota, len(masks)), int(np.sum(sure > (config.threshold or 1))))
      if config.factor is not None:
        ranked = enumerate(sure[order], 1)
        count = max([count, *(n for n, share in ranked if (n + 1) * (1 - share) < config.factor)])
      chosen = masks[order[:count]]
      canvas[chosen] = shares.argmax(-1)[chosen]
      steps[chosen] = (block - first) * each + index
  return canvas[len(prompt):len(prompt) + L], steps[len(prompt):len(prompt) + L]


@pytest.mark.parametrize("changes", [
  dict(), slow(dict(steps=4)), slow(dict(steps=6)), dict(threshold=0.5, steps=4), slow(dict(factor=0.9)),
  slow(dict(early_stop=True)),
], ids=str)
def test_it_is_a_loop_over_single_prompts_with_the_cache_and_without(blocks, changes):
  config = dataclasses.replace(BLOCK, **changes)
  rollout, uncached = sampled(blocks, config), sampled(blocks, dataclasses.replace(config, cache="none"))
  for row, count in enumerate(REAL):
    tokens, steps = one_by_one(blocks, PROMPT[row, P - count:], config)
    np.testing.assert_array_equal(rollout.tokens[row], tokens)
    np.testing.assert_array_equal(rollout.steps[row], steps)
  np.testing.assert_array_equal(rollout.tokens, uncached.tokens)
  np.testing.assert_array_equal(rollout.steps, uncached.steps)
  np.testing.assert_allclose(rollout.confidence, uncached.confidence, atol=1e-5)


@pytest.mark.slow
def test_an_end_of_text_in_the_prompt_ends_nothing_and_one_of_its_own_ends_each_completion(blocks):
  denoiser, params = blocks
  free = sampled(blocks, BLOCK)
  eos = int(free.tokens[0, 1])  # which some complete in their first block
  other = Denoiser(dataclasses.replace(denoiser.config, eos_token_id=eos, pad_token_id=eos))
  prompt = np.where(np.arange(P) == P - 1, eos, PROMPT)
  config = dataclasses.replace(BLOCK, early_stop=True)
  rollout = gdsd_jax.sample(other, params, prompt, MASK, jax.random.key(1), config)
  for row, count in enumerate(REAL):
    tokens, _ = one_by_one((other, params), prompt[row, P - count:], config)
    np.testing.assert_array_equal(rollout.tokens[row], tokens)


@pytest.mark.slow
def test_it_remembers_the_log_probability_with_which_tokens_are_drawn(blocks):
  denoiser, params = blocks
  config = dataclasses.replace(BLOCK, temperature=0.7)
  rollout = sampled(blocks, config, ("logp", "entropy"))
  row, count = 1, REAL[1]
  for step in range(config.most_steps):
    now = np.asarray(rollout.steps[row]) == step
    state = np.where(np.asarray(rollout.steps[row]) >= step, denoiser.config.mask_token_id, rollout.tokens[row])
    logits = apply(denoiser, params, np.concatenate([PROMPT[row, P - count:], state])[None])[0, count:] / 0.7
    logp = jax.nn.log_softmax(logits.at[:, denoiser.config.mask_token_id].set(-jnp.inf))
    expected = np.asarray(logp)[np.arange(L), rollout.tokens[row]]
    np.testing.assert_allclose(rollout.logp[row][now], expected[now], atol=1e-4)
    np.testing.assert_allclose(rollout.confidence[row][now], np.exp(expected[now]), atol=1e-4)
    entropy = -np.nansum(np.where(np.isinf(logp), 0, np.exp(logp) * logp), axis=-1)
    np.testing.assert_allclose(rollout.entropy[row][now], entropy[now], atol=1e-4)


@pytest.mark.parametrize("sizes", [slow((8, 1, 1)), slow((1, 8, 1)), slow((1, 4, 2)), slow((4, 1, 2)), slow((2, 2, 2))])
def test_a_mesh_changes_nothing(blocks, sizes):
  shared = over_mesh(sizes, *blocks)
  for changes in (dict(), dict(threshold=0.5), dict(cache="none"), dict(temperature=1.0)):
    config = dataclasses.replace(BLOCK, **changes)
    alone, over = sampled(blocks, config), sampled(shared, config)
    np.testing.assert_array_equal(alone.tokens, over.tokens)
    np.testing.assert_allclose(alone.confidence, over.confidence, atol=1e-5)


@pytest.mark.parametrize("changes, message", [
  (dict(block_length=8), "sampler.block_length: 8 is not the model's block length; give 4"),
  (dict(cache="dual"), "sampler.cache: must be one of none, exact with the block sampler, not 'dual'"),
  (dict(kind="llada"), "sampler.cache: must be one of none, prefix, dual with the llada sampler, not 'exact'"),
  (dict(cfg_scale=1.0, cache="none"), "sampler.cfg_scale: only the llada sampler has it"),
  (dict(kind="llada", cache="none", remasking="sequential"), "sampler.remasking: only the block sampler"),
  (dict(kind="llada", cache="none"), "sampler.kind: llada's sampler knows models whose tokens all see each other; "),
])
def test_what_does_not_fit_is_said(blocks, changes, message):
  with pytest.raises(ValueError, match=message):
    sampled(blocks, dataclasses.replace(BLOCK, **changes))


def test_a_model_that_sees_everything_has_other_samplers(tiny_denoiser):
  with pytest.raises(ValueError, match="^sampler.kind: 'block' is for models that attend from block to block; "):
    gdsd_jax.sample(tiny_denoiser, tiny_denoiser.abstract_params(), PROMPT, MASK, jax.random.key(0), BLOCK)
