"""The LLaDA sampler's behaviour, beside the golden cases."""

import dataclasses

import chex
from conftest import slow
from hypothesis import given, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gdsd_jax.diffusion.blockwise import sample
from gdsd_jax.diffusion.commits import commit_plan, descending_rank
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.models.denoiser import Denoiser

CONFIG = SamplerConfig(completion_length=8, steps=8, block_length=4, temperature=1.0)
PROMPT = np.arange(12).reshape(3, 4) + 1
apply = jax.jit(Denoiser.apply, static_argnums=0)


def run(denoiser, params, config=CONFIG, prompt=PROMPT, prompt_mask=None, seed=0):
  return sample(denoiser, params, prompt, prompt_mask, jax.random.key(seed), config)


def test_what_is_no_number_ranks_before_what_may_not_be_picked():
  np.testing.assert_array_equal(descending_rank(jnp.array([jnp.nan, -jnp.inf, 1.0, -2.0])), [2, 3, 0, 1])


@pytest.mark.parametrize("fields", [{}, {"threshold": 0.9}, {"factor": 1.0, "cache": "dual"}])
def test_a_broken_model_ends_and_leaves_no_masks(tiny_denoiser, tiny_params, fields):
  params = {**tiny_params, "final_norm": jnp.full_like(tiny_params["final_norm"], jnp.nan)}
  tokens = run(tiny_denoiser, params, dataclasses.replace(CONFIG, **fields)).tokens
  assert not jnp.any(tokens == tiny_denoiser.config.mask_token_id)


def test_shapes_and_ranges(tiny_denoiser, tiny_params):
  rollout = run(tiny_denoiser, tiny_params)
  chex.assert_shape([rollout.tokens, rollout.confidence], (3, 8))
  chex.assert_type([rollout.tokens, rollout.confidence], [jnp.int32, jnp.float32])
  assert jnp.all((rollout.confidence > 0) & (rollout.confidence <= 1))


@pytest.mark.parametrize("remasking, temperature", [
  ("low_confidence", 0.0), ("random", 1.0), slow("low_confidence", 1.0), slow("random", 0.0),
])
def test_mask_token_is_never_chosen_even_when_it_is_the_most_likely(tiny_denoiser, tiny_params, remasking, temperature):
  mask_id = tiny_denoiser.config.mask_token_id
  config = dataclasses.replace(CONFIG, remasking=remasking, temperature=temperature)
  prompt = np.arange(4) + np.arange(64)[:, None] % 50
  all_masked = np.concatenate([prompt, np.full((64, 8), mask_id)], axis=1)
  favourite = np.argmax(apply(tiny_denoiser, tiny_params, all_masked)[0, 4])
  head = np.array(tiny_params["head"])
  head[:, mask_id] = 2 * head[:, favourite]
  params = {**tiny_params, "head": head}
  most_likely = np.argmax(apply(tiny_denoiser, params, all_masked)[:, 4:], axis=-1)
  assert np.any(most_likely == mask_id)
  assert not np.any(np.asarray(run(tiny_denoiser, params, config, prompt).tokens) == mask_id)


def test_greedy_does_not_depend_on_the_key(tiny_denoiser, tiny_params):
  config = dataclasses.replace(CONFIG, temperature=0.0)
  chex.assert_trees_all_equal(
    run(tiny_denoiser, tiny_params, config, seed=0), run(tiny_denoiser, tiny_params, config, seed=1)
  )


def test_sampled_completions_depend_on_the_key(tiny_denoiser, tiny_params):
  first, second = (run(tiny_denoiser, tiny_params, seed=seed).tokens for seed in (0, 1))
  assert jnp.any(first != second)


def test_left_padding_changes_nothing(tiny_denoiser, tiny_params):
  config = dataclasses.replace(CONFIG, temperature=0.0)
  padded = np.concatenate([np.full((3, 5), 9), PROMPT], axis=1)
  mask = np.arange(9) >= np.full((3, 1), 5)
  plain = run(tiny_denoiser, tiny_params, config)
  with_padding = run(tiny_denoiser, tiny_params, config, padded, mask)
  chex.assert_trees_all_equal(plain.tokens, with_padding.tokens)
  chex.assert_trees_all_close(plain.confidence, with_padding.confidence, atol=1e-5)


def test_one_step_samples_the_softmax(tiny_denoiser, tiny_params):
  """A single masked token at temperature 1 follows the full softmax without the mask token, to sampling error."""
  config = SamplerConfig(completion_length=1, steps=1, block_length=1, temperature=1.0)
  count = 20_000
  prompt = np.tile(PROMPT[:1], (count, 1))
  tokens = np.asarray(run(tiny_denoiser, tiny_params, config, prompt).tokens[:, 0])
  mask_id = tiny_denoiser.config.mask_token_id
  logits = apply(tiny_denoiser, tiny_params, np.append(PROMPT[:1], [[mask_id]], axis=1))[0, -1]
  expected = np.exp(logits) * (np.arange(len(logits)) != mask_id)
  expected /= np.sum(expected)
  observed = np.bincount(tokens, minlength=len(expected)) / count
  assert np.abs(observed - expected).max() < 5 * np.sqrt(expected.max() / count)


def test_confidence_is_the_full_softmax_of_the_chosen_token(tiny_denoiser, tiny_params):
  config = SamplerConfig(completion_length=4, steps=1, block_length=4, temperature=1.0)
  rollout = run(tiny_denoiser, tiny_params, config)
  masked = np.concatenate([PROMPT, np.full((3, 4), tiny_denoiser.config.mask_token_id)], axis=1)
  odds = np.exp(apply(tiny_denoiser, tiny_params, masked)[:, 4:])
  expected = np.take_along_axis(odds, np.asarray(rollout.tokens)[..., None], axis=-1)[..., 0] / np.sum(odds, axis=-1)
  chex.assert_trees_all_close(rollout.confidence, expected, atol=1e-5)


@pytest.mark.parametrize("fields", [
  dict(cache="dual", threshold=0.5), slow({}), slow(dict(cache="prefix")), slow(dict(cfg_scale=1.0)),
])
def test_official_noise_goes_with_every_sampler_of_llada(tiny_denoiser, tiny_params, fields):
  config = dataclasses.replace(CONFIG, noise="official", **fields)
  first, again, other = (run(tiny_denoiser, tiny_params, config, seed=seed).tokens for seed in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert jnp.any(first != other) and not jnp.any(first == tiny_denoiser.config.mask_token_id)


@pytest.mark.parametrize("fields", [{}, slow(dict(temperature=0.0, cache="dual")), slow(dict(cfg_scale=1.0))])
def test_a_great_penalty_leaves_no_end_of_text(tiny_denoiser, tiny_params, fields):
  """A model that writes nothing else, by the penalty writes what it would with the token's weight at zero."""
  end = tiny_denoiser.config.eos_token_id
  favourite = np.bincount(np.ravel(run(tiny_denoiser, tiny_params).tokens)).argmax()
  flooded = {**tiny_params, "head": tiny_params["head"].at[:, end].set(4 * tiny_params["head"][:, favourite])}
  plain = dataclasses.replace(CONFIG, **fields)
  assert np.mean(run(tiny_denoiser, flooded, plain).tokens == end) > 0.1
  rollout = run(tiny_denoiser, flooded, dataclasses.replace(plain, eos_penalty=100.0))
  assert not np.any(rollout.tokens == end)
  assert np.all(np.asarray(rollout.confidence) > 0)


def test_random_remasking_commits_in_another_order(tiny_denoiser, tiny_params):
  greedy = dataclasses.replace(CONFIG, temperature=0.0)
  confident = run(tiny_denoiser, tiny_params, greedy)
  random = run(tiny_denoiser, tiny_params, dataclasses.replace(greedy, remasking="random"))
  assert jnp.any(confident.confidence != random.confidence)


@given(st.integers(1, 6), st.integers(1, 8), st.integers(1, 40))
def test_every_token_of_a_block_is_committed_once(num_blocks, block_length, steps_per_block):
  config = SamplerConfig(
    completion_length=num_blocks * block_length, block_length=block_length, steps=steps_per_block * num_blocks
  )
  commits = commit_plan(config)
  assert sum(commits) == block_length
  assert max(commits) - min(commits) <= 1
  assert list(commits) == sorted(commits, reverse=True)


@pytest.mark.parametrize("change, field", [
  ({"block_length": 3}, "sampler.block_length"),
  ({"steps": 7}, "sampler.steps"),
  ({"steps": 0}, "sampler.steps"),
  ({"kind": "other"}, "sampler.kind"),
  ({"remasking": "other"}, "sampler.remasking"),
  ({"temperature": -1.0}, "sampler.temperature"),
  ({"temperature": float("nan")}, "sampler.temperature"),
  ({"temperature": None}, "sampler.temperature"),
  ({"completion_length": "8"}, "sampler.completion_length"),
  ({"block_length": 4.0}, "sampler.block_length"),
  ({"noise": "bfloat16"}, "sampler.noise: 'bfloat16' is not one of exact, official"),
  ({"eos_penalty": float("inf")}, "sampler.eos_penalty"),
  ({"eos_penalty": "much"}, "sampler.eos_penalty"),
])
def test_bad_settings_name_the_field(change, field):
  with pytest.raises(ValueError, match=field):
    dataclasses.replace(CONFIG, **change)


def test_prompt_beyond_the_positions_is_refused(tiny_denoiser, tiny_params):
  with pytest.raises(ValueError, match="128 positions"):
    run(tiny_denoiser, tiny_params, prompt=jnp.zeros((1, 125), jnp.int32))


def test_a_mask_of_another_shape_than_the_prompt_is_refused(tiny_denoiser, tiny_params):
  with pytest.raises(ValueError, match=r"prompt_mask \(3, 2\) must have the shape of the prompt, \(3, 4\)"):
    run(tiny_denoiser, tiny_params, prompt_mask=jnp.ones((3, 2), bool))


def test_no_host_round_trip(tiny_denoiser, tiny_params):
  """The whole completion is one compiled program: its HLO has the loops inside and no callback to the host."""
  text = sample.lower(
    tiny_denoiser, tiny_params, PROMPT, None, jax.random.key(0), CONFIG
  ).compile().as_text()
  assert " while(" in text
  assert "callback" not in text and "infeed" not in text and "outfeed" not in text


def test_only_the_block_goes_through_the_head(tiny_denoiser, tiny_params):
  """No array of the compiled program is as large as the logits of the completion, let alone of the sequence."""
  prompt = jnp.zeros((2, 7), jnp.int32)
  text = sample.lower(tiny_denoiser, tiny_params, prompt, None, jax.random.key(0), CONFIG).compile().as_text()
  vocabulary = tiny_denoiser.config.vocab_size
  assert f"f32[2,4,{vocabulary}]" in text or f"f32[8,{vocabulary}]" in text
  for positions in (8, 15):
    assert f"f32[2,{positions},{vocabulary}]" not in text
    assert f"f32[{2 * positions},{vocabulary}]" not in text
