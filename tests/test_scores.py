"""Scores and losses: what TLC changes, what it is invariant to, and the pieces against plain formulas."""

import functools
import itertools

import chex
from conftest import slow
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gdsd_jax.diffusion.forward import consistent_masks
from gdsd_jax.objectives.espo import espo_loss
from gdsd_jax.objectives.gdsd import gdsd_loss
from gdsd_jax.objectives.masked_cross_entropy import masked_cross_entropy
from gdsd_jax.objectives.scores import pair_scores, Scores, sequence_scores, token_weights

B, P, L, M = 3, 4, 8, 2
# Every value of each setting: (weighted, center_top_k, center_gradient).
QUICK = [(True, None, False), (True, 1, False), (True, 5, True), (True, 64, False), (False, 1000, True)]


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  tokens, confidence = rng.integers(0, 60, (B, P + L)), rng.random((B, L), np.float32)
  return tokens, jax.jit(consistent_masks, static_argnums=(2, 3))(jax.random.key(1), confidence, M, 4)


@functools.partial(jax.jit, static_argnames=("denoiser", "weighted", "center_top_k", "center_gradient"))
def score(denoiser, params, batch, **settings):
  return sequence_scores(denoiser, params, *batch, prompt_length=P, **settings)


@pytest.fixture(scope="module")
def pair_logits(tiny_denoiser, tiny_params, batch):
  """float64 logits [M, 2, B, L, V] of both passes of every pair, from the full forward pass."""
  tokens, masks = batch
  apply, masks = jax.jit(tiny_denoiser.apply), np.asarray(masks)
  passes = [
    [np.where(masked, tiny_denoiser.config.mask_token_id, tokens[:, P:]) for masked in (mask, ~mask)] for mask in masks
  ]
  return np.array([
    [apply(tiny_params, np.concatenate([tokens[:, :P], completion], axis=1))[:, P:] for completion in pair]
    for pair in passes
  ], np.float64)


def naive_scores(pair_logits, tokens, masks, weighted, top_k):
  """S = ½ Σ over both passes and all masked tokens of w_i s_i, written out in float64."""
  result = np.zeros((B, M))
  for m, mask in enumerate(np.asarray(masks)):
    for masked, logits in zip((mask, ~mask), pair_logits[m]):
      for b, i in zip(*np.nonzero(masked)):
        z, y = logits[b, i], int(tokens[b, P + i])
        center = z.max() + np.log(np.sum(np.exp(z - z.max()))) if top_k is None else np.sort(z)[::-1][:top_k].mean()
        result[b, m] += 0.5 * (z[y] - center) * ((L + 1) / masked[b].sum() if weighted else 1)
  return result


@pytest.mark.parametrize("weighted, top_k, center_gradient", [
  case if case in QUICK else slow(*case)
  for case in itertools.product((True, False), (None, 1, 5, 64, 1000), (True, False))
])
def test_scores_are_the_formula(tiny_denoiser, tiny_params, batch, pair_logits, weighted, top_k, center_gradient):
  scores = score(
    tiny_denoiser, tiny_params, batch, weighted=weighted, center_top_k=top_k, center_gradient=center_gradient
  )
  chex.assert_shape(jax.tree.leaves(scores), (B, M))
  np.testing.assert_allclose(scores.plain, naive_scores(pair_logits, *batch, weighted, None), rtol=1e-5)
  if top_k is None:
    assert scores.centered is None
  else:
    expected = naive_scores(pair_logits, *batch, weighted, top_k)
    np.testing.assert_allclose(scores.centered, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("center_gradient", [True, False])
def test_tlc_changes_the_scores(tiny_denoiser, tiny_params, batch, center_gradient):
  """The first official release subtracted the centre before a softmax, which changes nothing; this must."""
  scores = score(tiny_denoiser, tiny_params, batch, center_top_k=8, center_gradient=center_gradient)
  assert np.min(np.abs(np.subtract(scores.centered, scores.plain))) > 1.0


@pytest.mark.slow
def test_tlc_changes_the_gradient(tiny_denoiser, tiny_params, batch):
  def gradient(center_top_k):
    def total(params):
      scores = score(tiny_denoiser, params, batch, center_top_k=center_top_k, center_gradient=True)
      return jnp.sum(scores.plain if center_top_k is None else scores.centered)
    return np.asarray(jax.jit(jax.grad(total))(tiny_params)["head"])

  plain, centered = gradient(None), gradient(8)
  assert np.linalg.norm(plain - centered) > 0.1 * np.linalg.norm(plain)


def test_weights_of_a_pair():
  mask = jnp.array([[True, False, False, False], [True, True, True, True], [False] * 4])
  expected = [[5, 5 / 3, 5 / 3, 5 / 3], [5 / 4] * 4, [5 / 4] * 4]
  np.testing.assert_allclose(token_weights(mask), expected, rtol=1e-6)


@pytest.mark.parametrize("weighted", [True, False])
def test_a_pair_scores_the_mean_of_its_two_masks_alone(weighted):
  rng = np.random.default_rng(0)
  masks = rng.permuted(np.arange(L) < np.arange(L + 1)[:, None, None], axis=-1)  # of every count
  scores = Scores(rng.standard_normal(masks.shape, np.float32))
  alone = lambda masks: pair_scores(scores, masks, weighted, coupled=False).plain
  np.testing.assert_allclose(pair_scores(scores, masks, weighted).plain, (alone(masks) + alone(~masks)) / 2, atol=1e-5)
  n = masks.sum(-1)
  expected = np.where(masks, scores.plain, 0).sum(-1) * ((L + 1) / np.maximum(n, 1) if weighted else 1)
  np.testing.assert_allclose(alone(masks), expected, rtol=1e-5)


def test_left_padding_does_not_change_scores(tiny_denoiser, tiny_params, batch):
  tokens, masks = batch
  padded = np.concatenate([np.full((B, 3), 9), tokens], axis=1)
  prompt_mask = np.arange(3 + P) >= np.full((B, 1), 3)
  plain = score(tiny_denoiser, tiny_params, batch).plain
  scores = jax.jit(sequence_scores, static_argnums=(0, 4))
  with_padding = scores(tiny_denoiser, tiny_params, padded, masks, P + 3, prompt_mask).plain
  np.testing.assert_allclose(plain, with_padding, rtol=1e-4)


def test_clip_stops_the_gradient_outside_the_trust_region():
  old = Scores(jnp.zeros((2, 1)))
  advantages = jnp.array([1.0, 1.0])
  loss = lambda plain: gdsd_loss(
    Scores(plain), old, None, advantages, completion_length=4, psi=1.0, epsilon=0.1, beta=0.0
  )[0]
  gradient = jax.jit(jax.grad(loss))(np.array([[0.05], [0.5]], np.float32))
  assert gradient[0, 0] != 0 and gradient[1, 0] == 0


def test_gradient_of_the_first_update_is_the_policy_gradient():
  """With student = old, d loss / d S = −2 ψ A / (B L)."""
  plain = np.array([[-3.0, -4.0], [-5.0, -6.0]], np.float32)
  advantages = np.array([0.5, -0.25], np.float32)
  loss = lambda s: gdsd_loss(Scores(s), Scores(plain), None, advantages, 8, psi=0.04, beta=0.0)[0]
  expected = np.broadcast_to(-2 * 0.04 * advantages[:, None] / (2 * 8), (2, 2))
  np.testing.assert_allclose(jax.jit(jax.grad(loss))(plain), expected, rtol=1e-6)


def test_kl_uses_plain_scores_under_tlc():
  of = lambda plain, centered: Scores(np.array([[plain]]), np.array([[centered]]))
  kl = jax.jit(lambda scores, ref: gdsd_loss(scores, scores, ref, np.zeros(1), completion_length=2, beta=1.0)[1]["kl"])
  np.testing.assert_allclose(kl(of(1.0, 7.0), of(3.0, 100.0)), 0.5 * 4 / 2)


@pytest.mark.parametrize("masks, prompt_length", [((M, B, L - 1), P), ((M, B, L), P + 1)])
def test_lengths_that_do_not_add_up_are_refused(tiny_denoiser, masks, prompt_length):
  with pytest.raises(ValueError, match="prompt_length"):
    sequence_scores(tiny_denoiser, {}, jnp.zeros((B, P + L), int), jnp.ones(masks, bool), prompt_length)


@pytest.mark.parametrize("loss", [gdsd_loss, espo_loss])
def test_kl_without_a_reference_is_refused(loss):
  scores = Scores(jnp.zeros((1, 1)))
  with pytest.raises(ValueError, match="ref"):
    loss(scores, scores, None, jnp.zeros(1), completion_length=2, beta=0.1)


def test_masked_cross_entropy_is_an_upper_bound_estimate(tiny_denoiser, tiny_params):
  """Over many masks, a completion of one token costs exactly its cross-entropy: E[1/t · 1(masked)] = 1."""
  tokens = np.tile([[5, 9, 33]], (4096, 1))
  maskable = np.broadcast_to(np.arange(3) == 2, tokens.shape)
  cross_entropy = jax.jit(masked_cross_entropy, static_argnums=0)
  loss, _ = cross_entropy(tiny_denoiser, tiny_params, jax.random.key(0), tokens, maskable)
  masked = np.array([[5, 9, tiny_denoiser.config.mask_token_id]])
  logits = np.asarray(jax.jit(tiny_denoiser.apply)(tiny_params, masked), np.float64)[0, -1]
  expected = np.log(np.sum(np.exp(logits))) - logits[33]
  np.testing.assert_allclose(loss, expected, rtol=0.1)
