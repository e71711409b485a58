"""Predictions made chunk by chunk of the vocabulary, against whole logits and the distribution they should have."""

from conftest import slow
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gdsd_jax.diffusion.prediction import predict
from gdsd_jax.models import lm_head
from gdsd_jax.models.lm_head import LMHead
from gdsd_jax.parallel.mesh import make_mesh, partition

B, K, D, V, MASK = 4, 6, 16, 1024, 77  # tiles of 64 tokens


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
  monkeypatch.setattr(lm_head, "CHUNK", 192)  # five, and a rest


def random_case(vocabulary=V):
  rng = np.random.default_rng(0)
  return [rng.normal(size=shape).astype(np.float32) for shape in ((D, vocabulary), (B, K, D), (B, K, D))]


def whole_prediction(logits, mask_id):
  tokens = np.argmax(np.where(np.arange(logits.shape[-1]) == mask_id, -np.inf, logits), axis=-1)
  odds = np.exp(logits, dtype=np.float64)
  return tokens, np.take_along_axis(odds, tokens[..., None], -1)[..., 0] / np.sum(odds, axis=-1)


@pytest.mark.parametrize("vocabulary", [V, 1001])  # of an odd one each token is a tile
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_greedy_predictions_are_those_of_whole_logits(vocabulary, guided, tied):
  weight, hidden, unconditional = random_case(vocabulary)
  logits = hidden @ weight
  if guided:
    without = unconditional @ weight
    logits = without + 2.5 * (logits - without)
  mask_id = int(np.argmax(logits[0, 0]))  # the likeliest of a position
  head = LMHead(weight.T if tied else weight, tied)
  guidance = (unconditional, 1.5) if guided else ()
  greedy = jax.jit(predict, static_argnums=(3, 4))
  tokens, probability = greedy(head, hidden, None, mask_id, 0.0, *guidance)
  expected_tokens, expected_probability = whole_prediction(logits, mask_id)
  np.testing.assert_array_equal(tokens, expected_tokens)
  np.testing.assert_allclose(probability, expected_probability, rtol=1e-4)
  assert tokens.dtype == jnp.int32


def test_the_first_of_equal_tokens_is_predicted():
  weight = np.zeros((D, V), np.float32)
  weight[:, [200, 250, 900]] = 1.0
  tokens, _ = jax.jit(predict, static_argnums=(3, 4))(LMHead(weight), np.ones((1, 1, D), np.float32), None, MASK, 0.0)
  assert tokens[0, 0] == 200


@pytest.mark.parametrize("vocabulary, temperature", [
  (512, 0.5), slow(512, 1.0), slow(501, 1.0),
])
def test_sampled_tokens_have_the_distribution_of_the_softmax(vocabulary, temperature):
  """Over 60,000 draws, each token's count within five standard deviations, and chi-square within its own."""
  logits = 2 * jax.random.normal(jax.random.key(1), (vocabulary,))
  draws, rows = 60_000, 2000
  hidden = jnp.broadcast_to(logits, (draws // rows, rows, vocabulary))
  head = LMHead(jnp.eye(vocabulary))
  step = jax.jit(lambda hidden, key: predict(head, hidden[None], key, MASK, temperature)[0])
  tokens = jax.lax.map(lambda x: step(*x), (hidden, jax.random.split(jax.random.key(2), len(hidden))))
  counts = np.bincount(np.ravel(tokens), minlength=vocabulary)
  assert counts[MASK] == 0
  expected = draws * np.asarray(jax.nn.softmax(logits.at[MASK].set(-jnp.inf) / temperature), np.float64)
  often = expected >= 10
  deviations = (counts - expected)[often] / np.sqrt(expected[often])
  assert np.max(np.abs(deviations)) < 5
  assert abs(np.sum(deviations**2) - often.sum()) < 5 * np.sqrt(2 * often.sum())


@pytest.mark.parametrize("sizes", [
  (1, 4, 2), (1, 1, 8), *(slow(sizes) for sizes in ((8, 1, 1), (2, 1, 4))),
])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_mesh_draws_the_same_tokens(sizes, temperature):
  weight, hidden, unconditional = random_case()
  key = jax.random.key(3)
  expected = jax.jit(predict, static_argnums=(3, 4))(
    LMHead(weight), hidden, key, MASK, temperature, unconditional, 0.5
  )
  mesh = make_mesh(*sizes)
  place = lambda x, *axes: jax.device_put(x, jax.sharding.NamedSharding(mesh, partition(axes, x.shape, mesh)))
  hidden, unconditional = (place(x, "batch", None, None) for x in (hidden, unconditional))
  step = jax.jit(
    lambda weight, hidden, other: predict(LMHead(weight, mesh=mesh), hidden, key, MASK, temperature, other, 0.5)
  )
  tokens, probability = step(place(weight, "embed", "vocab"), hidden, unconditional)
  np.testing.assert_array_equal(tokens, expected[0])
  np.testing.assert_allclose(probability, expected[1], rtol=1e-5)
