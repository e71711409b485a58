"""Predictions made chunk by chunk of the vocabulary, against whole logits and the distribution they should have."""

from conftest import slow
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gdsd_jax.diffusion.noise import official_gumbel
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


@pytest.mark.parametrize("mask_id", [0, 64, V - 1])
def test_a_broken_model_predicts_no_mask(mask_id):
  weight, hidden, _ = random_case()
  predicted = jax.jit(predict, static_argnums=(3, 4))(LMHead(np.nan * weight), hidden, jax.random.key(0), mask_id, 1.0)
  assert not np.any(predicted[0] == mask_id)


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


# The noise of the published runs


def official_draws(logits, rows, temperature, seed=0):
  """The published code's draws, int[rows]: everything in bfloat16."""
  torch = pytest.importorskip("torch")
  torch.manual_seed(seed)
  logits = torch.tensor(np.asarray(logits)).to(torch.bfloat16).expand(rows, -1)
  noise = (-torch.log(torch.rand_like(logits, dtype=torch.bfloat16))) ** temperature
  return torch.argmax(logits.exp() / noise, dim=-1).numpy()


def draws(logits, rows, temperature, noise, seed=2):
  hidden = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (1, rows, len(logits)))
  head, key = LMHead(jnp.eye(len(logits))), jax.random.key(seed)
  return np.ravel(jax.jit(lambda x: predict(head, x, key, len(logits) - 1, temperature, noise=noise)[0])(hidden))


def with_a_tail(others, top=0.6):
  """Logits of a top token, of others that share the rest evenly, and of ones that are never drawn, to fill a tile."""
  never = [1e-12] * (511 - others % 512)
  return np.log([top, *[(1 - top) / others] * others, *never])


def test_bfloat16_noise_is_that_of_torch():
  """All 65,536 uniform numbers with sixteen bits, rounded: each value is as frequent as torch draws it."""
  torch = pytest.importorskip("torch")
  gumbel = np.asarray(jax.jit(official_gumbel)(jnp.arange(2**16)))
  assert np.max(gumbel) == pytest.approx(-np.log(-np.log(255 / 256)), rel=1e-4) == pytest.approx(5.543, abs=1e-3)
  torch.manual_seed(0)
  uniform = torch.rand(2**19, dtype=torch.bfloat16).float().numpy()
  for value in (0, *np.arange(131, 256, 4) / 256, *np.arange(130, 256, 9) / 512, *np.arange(130, 256, 9) / 4096):
    at = gumbel < -1e29 if value == 0 else np.isclose(gumbel, -np.log(-np.log(value)), atol=1e-5)
    expected = np.mean(at) * len(uniform)
    assert abs(np.sum(uniform == value) - expected) < 5 * np.sqrt(expected)


@pytest.mark.parametrize("noise, left", [("exact", 0.4), ("official", 0.2136)])
def test_the_published_noise_leaves_a_top_token_half_as_often(noise, left):
  """With 0.6 on the top token and 180 others. Computed from the distribution of the noise: 0.2136, see noise.py."""
  rows = 10_000
  share = np.mean(draws(with_a_tail(180), rows, 1.0, noise) != 0)
  assert abs(share - left) < 4 * np.sqrt(left * (1 - left) / rows)


@pytest.mark.parametrize("temperature", [slow(1.0), 0.7])
def test_the_published_code_leaves_it_as_often(temperature):
  rows, logits = 10_000, with_a_tail(60) * temperature
  official, ours = official_draws(logits[:61], rows, temperature), draws(logits, rows, temperature, "official")
  share = np.mean(official != 0)
  # Its exponentials and quotients are rounded to eight bits, too, which moves a share by a hundredth.
  assert abs(np.mean(ours != 0) - share) < 4 * np.sqrt(2 * share * (1 - share) / rows) + 0.012


def test_what_is_too_improbable_is_never_drawn():
  official, exact = (draws(with_a_tail(2000), 400, 1.0, noise) for noise in ("official", "exact"))
  assert np.mean(official != 0) < 0.02  # only where the top token's own noise is zero or nearly so
  assert np.mean(exact != 0) > 0.3


# The penalty on end of text


@pytest.mark.parametrize("guided", [False, True])
def test_a_penalty_is_that_of_whole_logits(guided):
  weight, hidden, unconditional = random_case()
  ends, penalty = (5, 900), 20.0
  weight[:, 900] *= 3
  logits = hidden.astype(np.float64) @ weight
  if guided:
    without = unconditional.astype(np.float64) @ weight
    logits = without + 2.5 * (logits - without)
  unpenalized, _ = whole_prediction(logits, MASK)
  logits[..., list(ends)] -= penalty
  expected_tokens, expected_probability = whole_prediction(logits, MASK)
  greedy = jax.jit(lambda *arrays: predict(
    LMHead(weight), arrays[0], None, MASK, 0.0, *((arrays[1], 1.5) if guided else ()), penalized=ends, penalty=penalty
  ))
  tokens, probability = greedy(hidden, unconditional)
  np.testing.assert_array_equal(tokens, expected_tokens)
  np.testing.assert_allclose(probability, expected_probability, rtol=1e-4)
  assert np.sum(unpenalized == 900) > np.sum(expected_tokens == 900)


def test_without_a_penalty_nothing_is_computed_for_it():
  weight, hidden, _ = random_case()
  text = lambda *penalty: jax.jit(lambda x: predict(LMHead(weight), x, None, MASK, 0.0, None, 0.0, "exact", *penalty)
                                  ).lower(hidden).as_text()
  assert text() == text((5, 900), 0.0) != text((5, 900), 1.0)


# Meshes


@pytest.mark.parametrize("sizes, temperature, noise", [
  ((1, 4, 2), 0.0, "exact"), ((1, 4, 2), 1.0, "official"), ((1, 1, 8), 1.0, "exact"),
  slow((1, 1, 8), 0.0, "exact"), slow((1, 4, 2), 1.0, "exact"), slow((1, 1, 8), 1.0, "official"),
  slow((8, 1, 1), 0.0, "exact"), slow((8, 1, 1), 1.0, "exact"), slow((8, 1, 1), 1.0, "official"),
  slow((2, 1, 4), 0.0, "exact"), slow((2, 1, 4), 1.0, "exact"), slow((2, 1, 4), 1.0, "official"),
])
def test_a_mesh_draws_the_same_tokens(sizes, temperature, noise):
  weight, hidden, unconditional = random_case()
  key = jax.random.key(3)
  rest = (0.5, noise, (3, 900), 2.0)
  expected = jax.jit(lambda head, *arrays: predict(head, arrays[0], key, MASK, temperature, arrays[1], *rest))(
    LMHead(weight), hidden, unconditional
  )
  mesh = make_mesh(*sizes)
  place = lambda x, *axes: jax.device_put(x, jax.sharding.NamedSharding(mesh, partition(axes, x.shape, mesh)))
  hidden, unconditional = (place(x, "batch", None, None) for x in (hidden, unconditional))
  step = jax.jit(
    lambda weight, hidden, other: predict(LMHead(weight, mesh=mesh), hidden, key, MASK, temperature, other, *rest)
  )
  tokens, probability = step(place(weight, "embed", "vocab"), hidden, unconditional)
  np.testing.assert_array_equal(tokens, expected[0])
  np.testing.assert_allclose(probability, expected[1], rtol=1e-5)
