"""Invariants of the consistent forward process."""

import chex
from hypothesis import given, settings, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gdsd_jax.diffusion.forward import consistent_masks, masks_from_counts, rollout_masks, stratified_counts

SHAPES = st.tuples(st.integers(1, 7), st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**31 - 1))


@given(SHAPES)
@settings(max_examples=40)
def test_counts_are_stratified(shape):
  batch, blocks, block_length, seed = shape
  length = blocks * block_length
  counts = np.asarray(stratified_counts(jax.random.key(seed), batch, length))
  first = int(jax.random.randint(jax.random.key(seed), (), 0, length + 1))
  # The formula in float64; jnp.round and np.round both round half to even.
  expected = np.round(first + np.arange(batch) * (length + 1) / batch).astype(int) % (length + 1)
  assert np.all(counts >= 0) and np.all(counts <= length)
  np.testing.assert_array_equal(counts, expected)


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**31 - 1))
@settings(max_examples=15)
def test_groups_are_dealt_the_same_counts_so_that_their_own_are_spread(groups, group_size, length, seed):
  key, batch = jax.random.key(seed), groups * group_size
  counts = np.asarray(stratified_counts(key, batch, length, group_size))
  np.testing.assert_array_equal(np.sort(counts), np.sort(stratified_counts(key, batch, length)))
  # As a cycle of L + 1 numbers, the gaps of a group are all (L + 1) / G, to rounding at both ends.
  ordered = np.sort(counts.reshape(groups, group_size), axis=1)
  gaps = np.diff(ordered, axis=1, append=ordered[:, :1] + length + 1)
  assert np.abs(gaps - (length + 1) / group_size).max() <= 1


def test_the_mean_count_of_a_group_is_that_of_all():
  """In a step of the published recipe: 20 groups of 16, L 256. In their order, groups' means deviate by 71 counts."""
  spread = lambda group_size: np.mean([
    np.std(np.reshape(stratified_counts(jax.random.key(seed), 320, 256, group_size), (20, 16)).mean(axis=1))
    for seed in range(5)
  ])
  assert spread(1) > 60 and spread(16) < 5


def test_counts_are_uniform_over_all_keys():
  # Three sequences: no count falls between two integers, where rounding to even would prefer one.
  draw = jax.jit(jax.vmap(lambda key: stratified_counts(key, 3, 9)))
  counts = draw(jax.random.split(jax.random.key(0), 20_000))
  frequency = np.bincount(np.asarray(counts).ravel(), minlength=10) / counts.size
  assert frequency.shape == (10,)
  np.testing.assert_allclose(frequency, 0.1, atol=0.01)


compiled = jax.jit(masks_from_counts, static_argnums=(3, 4))


@given(SHAPES, st.sampled_from(["low_confidence", "random"]))
@settings(max_examples=15)
def test_masks_look_like_states_of_the_sampler(shape, remasking):
  """Exactly n masked tokens; the last n // K blocks whole, n mod K in the block before, earlier ones clean."""
  batch, blocks, block_length, seed = shape
  length = blocks * block_length
  rng = np.random.default_rng(seed)
  confidence, counts = rng.random((batch, length), np.float32), rng.integers(0, length + 1, batch)
  masks = np.asarray(compiled(jax.random.key(seed), counts, confidence, block_length, remasking))
  np.testing.assert_array_equal(masks.sum(axis=1), counts)
  for mask, count in zip(masks, counts):
    whole, partial = divmod(int(count), block_length)
    per_block = mask.reshape(blocks, block_length).sum(axis=1)
    expected = [0] * blocks
    for block in range(whole):
      expected[blocks - 1 - block] = block_length
    if partial:
      expected[blocks - 1 - whole] = partial
    np.testing.assert_array_equal(per_block, expected)


class CompiledOrNot(chex.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_partial_block_masks_the_least_confident(self):
    confidence = jnp.array([[0.9, 0.1, 0.5, 0.3, 0.2, 0.8, 0.7, 0.6]])
    masks = self.variant(lambda key, *values: masks_from_counts(key, *values, 4, "low_confidence"))
    mask = masks(jax.random.key(0), jnp.array([6]), confidence)
    np.testing.assert_array_equal(mask[0], [False, True, False, True, True, True, True, True])


def test_random_masks_are_uniform_in_the_partial_block():
  keys = jax.random.split(jax.random.key(0), 4000)
  confidence = np.arange(8.0, dtype=np.float32)[None]
  masks = jax.jit(jax.vmap(lambda key: masks_from_counts(key, np.array([5]), confidence, 4, "random")))(keys)
  np.testing.assert_allclose(np.mean(np.asarray(masks), axis=(0, 1))[:4], 0.25, atol=0.03)


CONFIDENCE = np.random.default_rng(0).random((6, 32), np.float32)
draw_masks = jax.jit(consistent_masks, static_argnums=(2, 3))


def test_samples_have_their_own_counts_and_shape():
  masks = draw_masks(jax.random.key(3), CONFIDENCE, 8, 8)
  chex.assert_shape(masks, (8, 6, 32))
  chex.assert_type(masks, bool)
  assert len({tuple(row) for row in np.sum(np.asarray(masks), axis=-1)}) > 1


def test_inside_rollouts_come_first():
  draw_inside = jax.jit(rollout_masks, static_argnums=(2, 3))
  public, inside = (draw(jax.random.key(3), CONFIDENCE, 8, 8) for draw in (draw_masks, draw_inside))
  chex.assert_trees_all_equal(inside, public.transpose(1, 0, 2))


def test_whole_completion_is_one_block():
  whole, one_block = (draw_masks(jax.random.key(1), CONFIDENCE, 8, K) for K in (None, 32))
  chex.assert_trees_all_equal(whole, one_block)


@pytest.mark.parametrize("change, words", [
  ({"block_length": 5}, "divide"), ({"remasking": "x"}, "low_confidence"),
  ({"group_size": 3}, "group_size: 3 must divide the batch of 2 rollouts"),
])
def test_bad_settings_are_refused(change, words):
  with pytest.raises(ValueError, match=words):
    consistent_masks(jax.random.key(0), jnp.ones((2, 12)), 2, **change)
