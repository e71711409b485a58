"""Scores of single tokens, chunk by chunk of the vocabulary, against the formula on whole logits in float64."""

import functools

import chex
from conftest import slow
from hypothesis import given, settings, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gdsd_jax.models import lm_head
from gdsd_jax.models.largest import at_once, by_groups, largest
from gdsd_jax.models.lm_head import LMHead
from gdsd_jax.objectives import token_scores as token_scores_module
from gdsd_jax.objectives.token_scores import Scoring, token_scores
from gdsd_jax.parallel.mesh import make_mesh, partition

B, L, D, V = 4, 6, 16, 1000


def whole_scores(weight, tied, hidden, targets, top_k, center_gradient):
  """(plain, centered) from logits of the whole vocabulary."""
  logits = hidden @ (weight.T if tied else weight)
  target, normalizer = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0], jax.nn.logsumexp(logits, -1)
  plain = target - normalizer
  if top_k is None:
    return plain, jnp.zeros_like(plain)
  center = jnp.mean(jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0], axis=-1)
  return plain, target - center if center_gradient else plain - jax.lax.stop_gradient(center - normalizer)


def chunked_scores(weight, tied, hidden, targets, top_k, center_gradient, mesh=None):
  scoring = Scoring(center_top_k=top_k, center_gradient=center_gradient)
  plain, centered, *_ = token_scores(LMHead(weight, tied, mesh), hidden, targets, scoring)
  return plain, jnp.zeros_like(plain) if centered is None else centered


def random_case(tied=False, vocabulary=V, scale=2.0, dtype=jnp.float32):
  rng = np.random.default_rng(0)
  weight = rng.normal(size=(vocabulary, D) if tied else (D, vocabulary))
  hidden = scale * rng.normal(size=(B, L, D))
  targets = rng.integers(0, vocabulary, (B, L))
  targets[0, :3] = 0, vocabulary - 1, vocabulary // 2
  return jnp.asarray(weight, dtype), jnp.asarray(hidden, dtype), jnp.asarray(targets)


def values_and_gradients(scores, weight, hidden, targets, top_k, center_gradient, tied=False):
  """((loss, (plain, centered)), gradients by weight and hidden states) of a loss in which both scores take part."""

  def loss(weight, hidden):
    plain, centered = scores(weight, tied, hidden, targets, top_k, center_gradient)
    return jnp.sum(jnp.square(plain) + 0.5 * jnp.square(centered)), (plain, centered)

  return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(weight, hidden)


def assert_close(actual, expected, tolerance=1e-5):
  for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    e = np.asarray(e, np.float64)
    chex.assert_equal_shape([a, e])
    assert np.linalg.norm(np.asarray(a, np.float64) - e) <= tolerance * np.linalg.norm(e)


@pytest.fixture(params=[96, slow(4096)])
def chunk(request, monkeypatch):
  """Chunks with a rest, and one that is larger than the vocabulary."""
  monkeypatch.setattr(lm_head, "CHUNK", request.param)


@pytest.mark.parametrize("tied", [False, slow(True)])
@pytest.mark.parametrize("center_gradient", [False, True])
@pytest.mark.parametrize("top_k", [None, slow(1), 8, slow(64), V, slow(5 * V)])
def test_scores_and_all_gradients_are_those_of_whole_logits(chunk, tied, center_gradient, top_k):
  weight, hidden, targets = random_case(tied)
  actual = values_and_gradients(chunked_scores, weight, hidden, targets, top_k, center_gradient, tied)
  assert_close(actual, exact_values_and_gradients(tied, center_gradient, top_k))


def entropy_of(weight, hidden, targets, tied=False, mesh=None, top_k=None):
  scoring = Scoring(center_top_k=top_k, with_entropy=True)
  return jax.jit(lambda *x: token_scores(LMHead(x[0], tied, mesh), *x[1:], scoring).entropy)(weight, hidden, targets)


def whole_entropy(weight, hidden):
  logits = np.asarray(hidden, np.float64) @ np.asarray(weight, np.float64)
  log_p = logits - np.log(np.sum(np.exp(logits - logits.max(-1, keepdims=True)), -1, keepdims=True))
  log_p -= logits.max(-1, keepdims=True)
  return -np.sum(np.exp(log_p) * log_p, axis=-1)


@pytest.mark.parametrize("scale", [0.0, 2.0, 8.0])  # from all tokens alike to one that is nearly certain
def test_the_entropy_is_that_of_whole_logits(monkeypatch, scale):
  monkeypatch.setattr(lm_head, "CHUNK", 96)
  weight, hidden, targets = random_case(scale=scale)
  expected = whole_entropy(weight, hidden)
  np.testing.assert_allclose(entropy_of(weight, hidden, targets), expected, rtol=1e-5, atol=1e-6)
  # It is the distribution's own, whichever token is asked for; with the surest, small ones have all their digits.
  surest = jnp.argmax(hidden @ weight, axis=-1)
  np.testing.assert_allclose(entropy_of(weight, hidden, surest), expected, rtol=1e-4)


@pytest.mark.parametrize("top_k", [8, slow(V)])
def test_a_centre_leaves_the_entropy_as_it_is(top_k):
  weight, hidden, targets = random_case()
  expected = whole_entropy(weight, hidden)
  np.testing.assert_allclose(entropy_of(weight, hidden, targets, top_k=top_k), expected, rtol=1e-5)


def test_the_entropy_over_a_mesh_is_that_of_whole_logits(monkeypatch):
  monkeypatch.setattr(lm_head, "CHUNK", 96)
  weight, hidden, targets = random_case(tied=True)
  mesh = make_mesh(2, 1, 4)
  placed = jax.device_put(weight, jax.sharding.NamedSharding(mesh, partition(("vocab", "embed"), weight.shape, mesh)))
  entropy = entropy_of(placed, hidden, targets, tied=True, mesh=mesh)
  np.testing.assert_allclose(entropy, whole_entropy(weight.T, hidden), rtol=1e-5)


def test_scores_that_need_no_logits_tell_no_entropy():
  weight, hidden, targets = random_case()
  scoring = Scoring(center_top_k=V, center_gradient=True, with_plain=False, with_entropy=True)
  assert token_scores(LMHead(weight), hidden, targets, scoring).entropy is None


@functools.cache
def exact_values_and_gradients(tied, center_gradient, top_k):
  weight, hidden, targets = random_case(tied)
  with jax.enable_x64(True):
    exact = [jnp.asarray(np.asarray(x), jnp.float64) for x in (weight, hidden)]
    return jax.tree.map(np.asarray, values_and_gradients(whole_scores, *exact, targets, top_k, center_gradient, tied))


@pytest.mark.parametrize("sizes", [
  (2, 2, 2), *(slow(sizes) for sizes in ((1, 1, 8), (8, 1, 1), (1, 4, 2), (2, 1, 4))),
])
@pytest.mark.parametrize("top_k, center_gradient", [(None, False), (8, False), (8, True), (V, True), (V, False)])
def test_a_split_vocabulary_gives_what_a_whole_one_gives(monkeypatch, sizes, top_k, center_gradient):
  monkeypatch.setattr(lm_head, "CHUNK", 96)
  weight, hidden, targets = random_case()
  mesh = make_mesh(*sizes)
  place = lambda x, *axes: jax.device_put(x, jax.sharding.NamedSharding(mesh, partition(axes, x.shape, mesh)))
  split = place(weight, "embed", "vocab"), place(hidden, "batch", None, None), place(targets, "batch", None)
  scores = functools.partial(chunked_scores, mesh=mesh)
  actual = values_and_gradients(scores, *split, top_k, center_gradient)
  assert_close(actual, alone(top_k, center_gradient), 2e-6)
  assert actual[1][0].sharding.is_equivalent_to(split[0].sharding, 2)


@functools.cache
def alone(top_k, center_gradient):
  """What one device computes, in chunks of 96."""
  return values_and_gradients(chunked_scores, *random_case(), top_k, center_gradient)


def test_tokens_that_the_policy_is_sure_of_keep_their_digits_in_bfloat16():
  """At 1 − p of 1e-6 the gradient of the log-probability is as small, and must not drown in the rounding of p = 1."""
  weight, hidden, targets = random_case(dtype=jnp.bfloat16)
  columns = jnp.take(weight, targets, axis=1).transpose(1, 2, 0)
  hidden = (2 * columns + 0.1 * hidden).astype(jnp.bfloat16)  # z_y of about 2 D, the others about 0
  with jax.enable_x64(True):
    exact = [jnp.asarray(np.asarray(x, np.float64)) for x in (weight, hidden)]
    expected = jax.tree.map(np.asarray, values_and_gradients(whole_scores, *exact, targets, None, False))
  (_, (plain, _)), (_, of_hidden) = values_and_gradients(chunked_scores, weight, hidden, targets, None, False)
  sure = expected[0][1][0] > -1e-3
  assert np.sum(sure) >= 3
  np.testing.assert_allclose(plain[sure], expected[0][1][0][sure], rtol=1e-2)
  assert_close(np.asarray(of_hidden, np.float64)[sure], expected[1][1][sure], 2e-2)


def test_the_lead_tells_where_the_target_is_the_prediction():
  weight, hidden, targets = random_case()
  predictions = np.argmax(np.asarray(hidden) @ np.asarray(weight), axis=-1)
  targets = np.array(targets)
  targets[1] = predictions[1]
  lead = jax.jit(lambda *case: token_scores(LMHead(weight), *case).lead)(hidden, targets)
  np.testing.assert_array_equal(lead > 0, targets == predictions)


def test_a_head_is_differentiated_as_it_is():
  weight, hidden, targets = random_case(tied=True)
  score = lambda head: jnp.sum(token_scores(head, hidden, targets).plain)
  gradient = jax.jit(jax.grad(score))(LMHead(weight, tied=True))
  score = lambda weight: jnp.sum(whole_scores(weight, True, hidden, targets, None, False)[0])
  expected = jax.jit(jax.grad(score))(weight)
  assert isinstance(gradient, LMHead) and gradient.tied
  assert_close(gradient.weight, expected)


def test_a_centre_of_no_logits_is_refused():
  with pytest.raises(ValueError, match="center_top_k"):
    Scoring(center_top_k=0)


@given(st.sampled_from([1, 2, 5, 16, 41, 70]), st.integers(0, 10), st.booleans())
@settings(max_examples=60)
def test_the_largest_are_those_of_a_sort(k, seed, ties):
  rows = np.random.default_rng(seed).normal(size=(3, 2560)).astype(np.float32)
  rows = np.round(rows, 1) if ties else rows
  values, columns = jax.jit(largest, static_argnums=1)(rows, k)
  np.testing.assert_array_equal(values, -np.sort(-rows, axis=1)[:, :k])
  np.testing.assert_array_equal(values, np.take_along_axis(rows, np.asarray(columns), axis=1))
  assert all(len(set(row)) == k for row in np.asarray(columns))


@pytest.mark.parametrize("update", [at_once, by_groups])
@pytest.mark.parametrize("k", [5, 41])
def test_the_largest_so_far_are_those_of_a_sort_of_all_chunks(update, k):
  rows = np.random.default_rng(k).normal(size=(3, 2592)).astype(np.float32)
  best = jnp.full((3, k), -jnp.inf), jnp.full((3, k), -1, jnp.int32)
  for first, last in ((0, 16), (16, 1296), (1296, 2592)):  # the first has fewer than k, or fewer groups
    best = jax.jit(update)(best, rows[:, first:last], first)
  np.testing.assert_array_equal(best[1], np.argsort(-rows, axis=1)[:, :k])
  np.testing.assert_array_equal(best[0], np.take_along_axis(rows, np.asarray(best[1]), axis=1))


@pytest.mark.parametrize("gradient", [False, True])
def test_memory_does_not_grow_with_the_vocabulary(gradient):
  """Of one sequence, under a frozen head; the logits of the larger vocabulary alone would be 67 MB."""

  def temporary_bytes(vocabulary):
    scores = lambda hidden, weight, targets: token_scores(LMHead(weight), hidden, targets, Scoring(center_top_k=64))
    score = lambda *case: jnp.sum(jnp.sin(scores(*case).centered))
    function = jax.jit(jax.grad(score) if gradient else score)
    shapes = (1, 128, 64), (64, vocabulary)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    targets = jax.ShapeDtypeStruct((1, 128), jnp.int32)
    return function.lower(*arguments, targets).compile().memory_analysis().temp_size_in_bytes

  assert temporary_bytes(131072) < 1.05 * temporary_bytes(8192)


@pytest.mark.parametrize("tied", [False, True])
def test_a_gradient_by_the_head_goes_on_from_another_in_place(tied):
  weight, hidden, targets = random_case(tied, vocabulary=2**16)
  before = jnp.sin(weight)

  def gradient(before, weight):
    head = lambda weight: LMHead(weight, tied, gradient=before)
    return jax.grad(lambda x: jnp.sum(token_scores(head(x), hidden, targets, Scoring(8, True)).centered))(weight)

  expected = before + jax.jit(gradient)(None, weight)
  compiled = jax.jit(gradient, donate_argnums=0).lower(before, weight).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < weight.nbytes / 2
  assert_close(compiled(before, weight), expected, 1e-6)


@pytest.mark.parametrize("k", [3, 10])
def test_the_centres_gradient_cancels_what_all_columns_share_in_bfloat16(k):
  rng = np.random.default_rng(0)
  weight = jnp.asarray(rng.normal(size=(64, 200)) + 3, jnp.bfloat16)
  hidden, targets = jnp.asarray(rng.normal(size=(1, 8, 64)), jnp.bfloat16), jnp.asarray(rng.integers(0, 200, (1, 8)))
  scoring = Scoring(center_top_k=k, center_gradient=True)
  score = lambda weight: lambda hidden: jnp.sum(token_scores(LMHead(weight), hidden, targets, scoring).centered)
  gradient, exact = (
    np.asarray(jax.jit(jax.grad(score(weight.astype(dtype))))(hidden.astype(dtype)), np.float64)
    for dtype in (jnp.bfloat16, jnp.float32)
  )
  assert np.linalg.norm(gradient - exact) < 3e-3 * np.linalg.norm(exact)


def test_the_full_centre_alone_needs_no_logits(monkeypatch):
  case = random_case()
  expected = values_and_gradients(whole_scores, *case, V, True)[0][1][1]
  monkeypatch.setattr(token_scores_module, "over_vocabulary", None)
  scoring = Scoring(center_top_k=V, center_gradient=True, with_plain=False)
  score = lambda weight, hidden, targets: jnp.sum(token_scores(LMHead(weight), hidden, targets, scoring).centered)
  value, gradient = jax.jit(jax.value_and_grad(score, (0, 1)))(*case)
  np.testing.assert_allclose(value, jnp.sum(expected), rtol=1e-5)
  weight, _, targets = case
  direction = jnp.take(weight, targets, axis=1).transpose(1, 2, 0) - jnp.mean(weight, axis=1)
  np.testing.assert_allclose(gradient[1], direction, atol=1e-5)


def of_logits(logits, targets, top_k=None, center_gradient=False):
  """Scores of given logits: a head that changes nothing."""
  head = LMHead(jnp.eye(logits.shape[-1], dtype=logits.dtype))
  return token_scores(head, logits, targets, Scoring(center_top_k=top_k, center_gradient=center_gradient))


def random_logits(vocabulary=20):
  rng = np.random.default_rng(0)
  return jnp.asarray(rng.normal(size=(5, vocabulary)), jnp.float32), jnp.asarray(rng.integers(0, vocabulary, 5))


@pytest.mark.parametrize("top_k", [1, 3, 20, 99])
@pytest.mark.parametrize("center_gradient", [True, False])
def test_tlc_is_invariant_to_a_constant_added_to_all_logits(top_k, center_gradient):
  logits, targets = random_logits()

  @jax.jit
  @jax.value_and_grad
  def total(shift):
    return jnp.sum(of_logits(logits + shift, targets, top_k, center_gradient).centered)

  (shifted, _), (plain, gradient) = total(7.5), total(0.0)
  np.testing.assert_allclose(shifted, plain, rtol=1e-5, atol=1e-4)
  np.testing.assert_allclose(gradient, 0, atol=1e-5)


@pytest.mark.parametrize("top_k", [20, 21, 10**6])
def test_tlc_with_all_of_the_vocabulary_is_the_full_centre(top_k):
  logits, targets = random_logits()
  expected = np.take_along_axis(np.asarray(logits), np.asarray(targets)[:, None], 1)[:, 0] - np.mean(logits, axis=-1)
  centered, gradient = centered_and_gradient(logits, targets, top_k, True)
  np.testing.assert_allclose(centered, expected, rtol=1e-5)
  np.testing.assert_allclose(gradient, np.eye(20)[targets] - 1 / 20, atol=1e-6)  # linear in the logits


@given(st.sampled_from([1, 2, 7, 19, 20, 30]), st.integers(0, 100))
@settings(max_examples=60)
def test_stopping_the_centre_gradient_keeps_the_value_and_leaves_the_plain_gradient(top_k, seed):
  logits = jax.random.normal(jax.random.key(seed), (4, 20))
  targets = jax.random.randint(jax.random.key(seed + 1), (4,), 0, 20)
  with_gradient, _ = centered_and_gradient(logits, targets, top_k, True)
  without, stopped = centered_and_gradient(logits, targets, top_k, False)
  np.testing.assert_allclose(with_gradient, without, rtol=1e-4, atol=1e-5)
  plain = jax.nn.one_hot(targets, 20) - jax.nn.softmax(logits)  # the gradient of log p_y
  np.testing.assert_allclose(stopped, plain, atol=1e-6)


@functools.partial(jax.jit, static_argnums=(2, 3))
def centered_and_gradient(logits, targets, top_k, center_gradient):
  """Centred scores, and the gradient of their sum by the logits."""
  score = lambda z: of_logits(z, targets, top_k, center_gradient).centered
  return score(logits), jax.grad(lambda z: score(z).sum())(logits)
