"""What rollouts remember of their own trajectory, and its replay: on the same weights every ratio is 1."""

import dataclasses

import chex
from conftest import over_mesh, slow
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdsd_jax
from gdsd_jax.diffusion import dream
from gdsd_jax.diffusion.replay import replay
from gdsd_jax.diffusion.trajectory import state_before
from gdsd_jax.parallel.mesh import batch_sharding

P, L, B = 5, 8, 4
RECORD = frozenset({"logp", "entropy"})
CASES = {
  "llada": dict(block_length=4, temperature=0.6),
  "llada_hot": dict(block_length=4, temperature=1.0, steps=4),
  "llada_greedy": dict(block_length=4, temperature=0.0),
  "llada_random": dict(block_length=8, temperature=1.0, remasking="random"),
  "llada_guided": dict(block_length=4, temperature=1.0, cfg_scale=1.5),
  "llada_threshold": dict(block_length=4, temperature=1.0, threshold=0.05),
  "llada_penalty": dict(block_length=4, temperature=1.0, eos_penalty=2.0),
  "dream": dict(kind="dream", temperature=1.0),
  "dream_blocks": dict(kind="dream", temperature=1.0, block_length=4),
  "dream_filtered": dict(kind="dream", temperature=0.6, top_p=0.8, top_k=7, alg="maskgit_plus"),
  "dream_origin": dict(kind="dream", temperature=1.0, alg="origin"),
  "dream_threshold": dict(kind="dream", temperature=1.0, alg="maskgit_plus", threshold=0.05, block_length=4),
}
QUICK = ("llada", "llada_greedy", "dream_filtered")


def rollout_of(denoiser, params, name, prompt_mask=None, **changes):
  config = gdsd_jax.SamplerConfig(**{"completion_length": L, "steps": L, **CASES[name], **changes})
  prompt = jax.random.randint(jax.random.key(3), (B, P), 0, 50)
  return config, prompt, gdsd_jax.sample(denoiser, params, prompt, prompt_mask, jax.random.key(1), config, RECORD)


@pytest.mark.parametrize("padded", [True, slow(False)])
@pytest.mark.parametrize("name", [name if name in QUICK else slow(name) for name in CASES])
def test_a_replay_on_the_same_weights_has_ratio_one(tiny_denoiser, tiny_params, name, padded):
  mask = jnp.ones((B, P), bool).at[1, :2].set(False) if padded else None
  config, prompt, rollout = rollout_of(tiny_denoiser, tiny_params, name, mask)
  logp, entropy = replay(tiny_denoiser, tiny_params, prompt, mask, rollout, config)
  np.testing.assert_allclose(logp, rollout.logp, atol=1e-4)
  np.testing.assert_allclose(entropy, rollout.entropy, atol=1e-4)
  assert (np.abs(logp).max() == 0) == (config.temperature == 0)


def test_a_replay_goes_through_the_sampler_s_own_states_in_bfloat16(tiny_denoiser, tiny_params):
  denoiser = dataclasses.replace(tiny_denoiser, dtype="bfloat16")
  config, prompt, rollout = rollout_of(denoiser, tiny_params, "llada")
  logp, _ = replay(denoiser, tiny_params, prompt, None, rollout, config)
  np.testing.assert_allclose(logp, rollout.logp, atol=1e-5)  # in other shapes it would be off by 1e-2


ALONE = ("llada", "dream_filtered")


@pytest.mark.parametrize("changes", [{}, slow({"noise": "official"}), slow({"cache": "dual", "block_length": 4})])
@pytest.mark.parametrize("name", [name if name in ALONE else slow(name) for name in CASES if "greedy" not in name])
def test_the_log_probability_alone_comes_with_the_prediction_and_changes_nothing(
    tiny_denoiser, tiny_params, name, changes):
  if name.startswith("dream") and "noise" in changes or name == "llada_guided" and "cache" in changes:
    pytest.skip("there is no such sampler")
  config, prompt, both = rollout_of(tiny_denoiser, tiny_params, name, **changes)
  alone = gdsd_jax.sample(tiny_denoiser, tiny_params, prompt, None, jax.random.key(1), config, frozenset({"logp"}))
  assert alone.entropy is None
  np.testing.assert_allclose(alone.logp, both.logp, atol=1e-5)
  for field in ("tokens", "confidence", "steps"):
    np.testing.assert_array_equal(getattr(alone, field), getattr(both, field))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llada", "dream_filtered"])
def test_the_log_probability_alone_is_the_same_on_a_mesh(tiny_denoiser, tiny_params, name):
  denoiser, params = over_mesh((2, 2, 2), tiny_denoiser, tiny_params)
  config, prompt, alone = rollout_of(tiny_denoiser, tiny_params, name)
  split = gdsd_jax.sample(denoiser, params, prompt, None, jax.random.key(1), config, frozenset({"logp"}))
  np.testing.assert_array_equal(split.tokens, alone.tokens)
  np.testing.assert_allclose(split.logp, alone.logp, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llada", "dream_filtered", "llada_threshold"])
def test_a_replay_on_a_mesh_has_ratio_one(tiny_denoiser, tiny_params, name):
  denoiser, params = over_mesh((2, 2, 2), tiny_denoiser, tiny_params)
  mask = jax.device_put(jnp.ones((B, P), bool).at[1, :2].set(False), batch_sharding(denoiser.mesh))
  config, prompt, rollout = rollout_of(denoiser, params, name, mask)
  logp, _ = replay(denoiser, params, prompt, mask, rollout, config)
  np.testing.assert_allclose(logp, rollout.logp, atol=1e-4)
  _, _, alone = rollout_of(tiny_denoiser, tiny_params, name, mask)
  np.testing.assert_array_equal(alone.tokens, rollout.tokens)
  np.testing.assert_allclose(alone.logp, rollout.logp, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llada", "dream"])
def test_a_replay_in_bfloat16_is_near(tiny_denoiser, tiny_params, name):
  denoiser = gdsd_jax.Denoiser(tiny_denoiser.config, "bfloat16")
  config, prompt, rollout = rollout_of(denoiser, tiny_params, name)
  logp, _ = replay(denoiser, tiny_params, prompt, None, rollout, config)
  np.testing.assert_allclose(logp, rollout.logp, atol=2e-2)


def test_what_is_remembered_is_the_distribution_that_was_drawn_from(tiny_denoiser, tiny_params):
  """Against float64 from the states: temperature, the mask token left out."""
  config, prompt, rollout = rollout_of(tiny_denoiser, tiny_params, "llada", temperature=0.7)
  mask_id, apply = tiny_denoiser.config.mask_token_id, jax.jit(tiny_denoiser.apply)
  assert sorted(np.unique(rollout.steps)) == list(range(L))
  for step in range(L):
    state = state_before(rollout, step, mask_id)
    assert int((state == mask_id).sum()) == B * (L - step)
    logits = np.asarray(apply(tiny_params, jnp.concatenate([prompt, state], axis=1))[:, P:], np.float64) / 0.7
    logits[..., mask_id] = -np.inf
    log_probability = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    at, position = np.nonzero(np.asarray(rollout.steps) == step)
    expected = log_probability[at, position, np.asarray(rollout.tokens)[at, position]]
    np.testing.assert_allclose(np.asarray(rollout.logp)[at, position], expected, atol=1e-5)
    finite = np.where(np.isfinite(log_probability), log_probability, 0)
    entropy = -(np.exp(log_probability) * finite).sum(-1)[at, position]
    np.testing.assert_allclose(np.asarray(rollout.entropy)[at, position], entropy, atol=1e-5)


def test_kept_tokens_are_those_that_could_be_drawn(tiny_denoiser, tiny_params):
  config = gdsd_jax.SamplerConfig(completion_length=L, steps=L, kind="dream", temperature=0.8, top_p=0.6, top_k=9)
  prompt = jax.random.randint(jax.random.key(3), (B, P), 0, 50)
  rollout = gdsd_jax.sample(tiny_denoiser, tiny_params, prompt, None, jax.random.key(1), config, RECORD | {"kept"})
  kept, tokens = np.asarray(rollout.kept), np.asarray(rollout.tokens)
  assert kept.shape == (B, L, 9) and (kept >= 0).any(-1).all() and (kept == -1).any()
  assert (kept == tokens[..., None]).any(-1).all()
  assert not (kept == tiny_denoiser.config.mask_token_id).any()


@pytest.mark.parametrize("name", [
  "llada", "dream_filtered", *map(slow, ("llada_guided", "llada_random", "dream", "dream_blocks", "dream_origin")),
])
def test_predictions_of_a_step_are_of_its_state(tiny_denoiser, tiny_params, name):
  """What was unmasked stays, the others are predicted with their probability; what a step commits is among them."""
  mask_id, apply = tiny_denoiser.config.mask_token_id, jax.jit(tiny_denoiser.apply)
  config, prompt, without = rollout_of(tiny_denoiser, tiny_params, name)
  record = RECORD | {"predictions"}
  rollout = gdsd_jax.sample(tiny_denoiser, tiny_params, prompt, None, jax.random.key(1), config, record)
  chex.assert_trees_all_close(rollout.replace(predictions=None), without, rtol=1e-5)  # nothing is drawn otherwise
  tokens, confidence = np.asarray(rollout.predictions.tokens), np.asarray(rollout.predictions.confidence)
  assert tokens.shape == confidence.shape == (B, config.most_steps, L)
  for step in range(config.most_steps):
    state = np.asarray(state_before(rollout, step, mask_id))
    masked, came = state == mask_id, np.asarray(rollout.steps) == step
    np.testing.assert_array_equal(tokens[:, step][~masked], state[~masked])
    np.testing.assert_array_equal(tokens[:, step][came], np.asarray(rollout.tokens)[came])
    assert not (tokens[:, step] == mask_id).any() and not confidence[:, step][~masked].any()
    logits = apply(tiny_params, jnp.concatenate([prompt, state], axis=1))[:, P:]
    if config.cfg_scale:
      uncond = apply(tiny_params, jnp.concatenate([jnp.full_like(prompt, mask_id), state], axis=1))[:, P:]
      logits = uncond + (config.cfg_scale + 1) * (logits - uncond)
    if config.kind == "dream":
      logits = dream.filter_logits(logits / config.temperature, config.top_p, config.top_k)
    probability = np.take_along_axis(np.asarray(jax.nn.softmax(logits)), tokens[:, step][..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(confidence[:, step][masked], probability[masked], rtol=1e-4, atol=1e-6)


def test_predictions_are_not_remembered_by_steps_that_see_a_part(tiny_denoiser, tiny_params):
  config = gdsd_jax.SamplerConfig(completion_length=L, steps=L, block_length=4, cache="dual")
  with pytest.raises(ValueError, match="sampler.cache, threshold, factor, early_stop, slots: must be unset"):
    gdsd_jax.sample(tiny_denoiser, tiny_params, jnp.zeros((B, P), jnp.int32), None, jax.random.key(0), config,
                    frozenset({"predictions"}))


@pytest.mark.parametrize("cache", ["dual", "prefix"])
def test_a_sampler_with_a_cache_is_not_replayed(tiny_denoiser, tiny_params, cache):
  config = gdsd_jax.SamplerConfig(completion_length=L, steps=L, block_length=4, cache=cache)
  rollout = gdsd_jax.Rollout(jnp.zeros((B, L), jnp.int32), jnp.zeros((B, L)), jnp.zeros((B, L), jnp.int32))
  with pytest.raises(ValueError, match="sampler.cache"):
    replay(tiny_denoiser, tiny_params, jnp.zeros((B, P), jnp.int32), None, rollout, config)
