"""Rollouts of the block sampler gone through again: on the same weights every ratio is 1, cached and not."""

import dataclasses

from conftest import over_mesh, slow
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdsd_jax
from gdsd_jax.models.denoiser import Denoiser

K, L, P = 4, 8, 10
REAL = (10, 8, 3, 5)  # tokens of each prompt: with a partial block and without
PROMPT = np.random.default_rng(0).integers(0, 50, (len(REAL), P))
MASK = np.arange(P)[None] >= P - np.array(REAL)[:, None]
RECORD = frozenset({"logp", "entropy"})
BLOCK = gdsd_jax.SamplerConfig(kind="block", completion_length=L, steps=L, block_length=K, cache="exact")
CASES = {
  "filtered": dict(temperature=0.6, top_p=0.9, top_k=12),
  "cool": dict(temperature=0.6),
  "hot": dict(steps=4),
  "no_cache": dict(cache="none"),
  "no_cache_filtered": dict(cache="none", top_p=0.8),
  "few": dict(top_k=5, threshold=0.3),
  "threshold": dict(threshold=0.1, steps=4),
  "factor": dict(factor=1.0, temperature=0.6),
  "random": dict(remasking="random"),
  "sequential": dict(remasking="sequential", cache="none"),
  "penalty": dict(eos_penalty=2.0),
  "early": dict(early_stop=True, top_k=3),
  "greedy": dict(temperature=0.0),
}


@pytest.fixture(scope="module")
def blocks(tiny_config):
  """(denoiser, params) of a model whose blocks have 4 tokens, sure of some of them."""
  denoiser = Denoiser(dataclasses.replace(tiny_config, block_length=K, positions_skip_padding=True, qk_norm=True))
  params = jax.jit(denoiser.init)(jax.random.key(0))
  return denoiser, params | {"head": params["head"] * 3}


def sampled(blocks, config, record=RECORD):
  return gdsd_jax.sample(*blocks, PROMPT, MASK, jax.random.key(1), config, record)


@pytest.mark.parametrize("name", [name if name == "filtered" else slow(name) for name in CASES])
def test_a_replay_on_the_same_weights_has_ratio_one(blocks, name):
  config = dataclasses.replace(BLOCK, **CASES[name])
  rollout = sampled(blocks, config)
  logp, entropy = gdsd_jax.replay(*blocks, PROMPT, MASK, rollout, config)
  np.testing.assert_allclose(logp, rollout.logp, atol=1e-4)
  np.testing.assert_allclose(entropy, rollout.entropy, atol=1e-4)
  assert (np.abs(logp).max() == 0) == (config.temperature == 0)
  assert not (np.asarray(rollout.tokens) == blocks[0].config.mask_token_id).any()


@pytest.mark.slow
def test_a_replay_on_a_mesh_has_ratio_one(blocks):
  shared = over_mesh((2, 2, 2), *blocks)
  config = dataclasses.replace(BLOCK, temperature=0.6, top_p=0.9)
  rollout = sampled(shared, config)
  logp, _ = gdsd_jax.replay(*shared, PROMPT, MASK, rollout, config)
  np.testing.assert_allclose(logp, rollout.logp, atol=1e-4)
  np.testing.assert_array_equal(rollout.tokens, sampled(blocks, config).tokens)


@pytest.mark.slow
def test_other_weights_have_other_ratios(blocks):
  denoiser, params = blocks
  rollout = sampled(blocks, BLOCK)
  logp, _ = gdsd_jax.replay(denoiser, params | {"head": params["head"] * 0.5}, PROMPT, MASK, rollout, BLOCK)
  assert np.abs(np.asarray(logp) - rollout.logp).max() > 0.1


@pytest.mark.slow
def test_tokens_are_drawn_from_the_nucleus_of_the_most_probable(blocks):
  """Every token of a first step lies among the k largest, and in the nucleus of these, not in that of all tokens."""
  denoiser, params = blocks
  config = dataclasses.replace(BLOCK, steps=2, temperature=1.0, top_k=6, top_p=0.9)  # a block in a step
  state = np.where(np.arange(P + L) < P, np.pad(PROMPT[1], (0, L)), denoiser.config.mask_token_id)[None, 2:]
  logits = np.array(denoiser.apply(params, state))[0, 8:8 + K]
  logits[:, denoiser.config.mask_token_id] = -np.inf
  order = np.argsort(-logits, axis=-1)[:, :6]
  best = np.take_along_axis(logits, order, axis=-1)
  shares = np.exp(best) / np.exp(best).sum(-1, keepdims=True)
  inside = np.cumsum(shares, axis=-1) - shares < 0.9
  seen = [set() for _ in range(K)]
  for seed in range(20):
    rollout = gdsd_jax.sample(denoiser, params, PROMPT[1:2], MASK[1:2], jax.random.key(seed), config, RECORD | {"kept"})
    now = np.asarray(rollout.steps[0]) == 0
    for place in np.flatnonzero(now):
      seen[place].add(int(rollout.tokens[0, place]))
      kept = np.asarray(rollout.kept[0, place])
      assert set(kept[kept >= 0]) == set(order[place][inside[place]])
      assert int(rollout.tokens[0, place]) in kept
  assert max(map(len, seen)) > 1


@pytest.mark.parametrize("changes, rollout, message", [
  (dict(threshold=0.9, editing_threshold=0.5), {}, "^sampler.editing_threshold: must be None: a rollout"),
  (dict(), dict(beyond=None), "^rollout.beyond: is None"),
  (dict(), dict(steps=None), "^rollout.steps: is None"),
  (dict(kind="llada", cache="none"), {}, "^sampler.kind: llada's sampler knows models whose tokens all see each other"),
])
def test_what_cannot_be_replayed_is_said(blocks, changes, rollout, message):
  zeros = jnp.zeros((len(REAL), L), jnp.int32)
  known = gdsd_jax.Rollout(zeros, jnp.zeros((len(REAL), L)), zeros).replace(**rollout)
  with pytest.raises(ValueError, match=message):
    gdsd_jax.replay(*blocks, PROMPT, MASK, known, dataclasses.replace(BLOCK, **changes))
