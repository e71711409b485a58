"""Likelihoods of answers against sums over all masks of a small model, and LLaDA's and Dream's evaluation code."""

import dataclasses
import itertools

from conftest import only_devices, slow
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gdsd_jax.diffusion.blockwise import sample
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.evaluation.likelihood import Likelihood, LikelihoodConfig
from gdsd_jax.parallel.mesh import make_mesh

CONTEXT, ANSWER = [5, 9, 33, 2], [7, 11, 40]


@pytest.fixture(scope="module", autouse=True)
def one_device():
  with only_devices(1):
    yield


@pytest.fixture(scope="module")
def sharp_params(tiny_params):
  """Far from uniform, so that a wrong weight or mask shows."""
  return tiny_params | {"head": 40 * tiny_params["head"]}


@pytest.fixture(scope="module")
def log_probabilities(tiny_denoiser, sharp_params):
  """(denoiser, context, answer, set of masked tokens, cfg) -> the log-probability of each token of the answer."""

  @jax.jit
  def whole(tokens):
    return tiny_denoiser.apply(sharp_params, tokens)

  def compute(context, answer, masked, cfg=0.0):
    mask_id = tiny_denoiser.config.mask_token_id
    noised = [mask_id if i in masked else token for i, token in enumerate(answer)]
    logits = whole(jnp.array([context + noised]))[0]
    if cfg:
      without = whole(jnp.array([[mask_id] * len(context) + noised]))[0]
      logits = without + (cfg + 1) * (logits - without)
    found = jax.nn.log_softmax(logits[len(context):])
    return np.array([found[i, token] for i, token in enumerate(answer)], float)

  return compute


def subsets(length):
  return [set(part) for size in range(1, length + 1) for part in itertools.combinations(range(length), size)]


def llada_bound(log_probabilities, context, answer, cfg=0.0):
  """The ELBO exactly: the mean over sizes n of the mean over sets of that size of L / n times their sum."""
  length = len(answer)
  of_size = lambda n: [sum(log_probabilities(context, answer, part, cfg)[list(part)]) for part in subsets(length)
                       if len(part) == n]
  return np.mean([length / n * np.mean(of_size(n)) for n in range(1, length + 1)])


def dream_bound(log_probabilities, context, answer, end, eps=1e-3):
  """The integral over t of the expected sum of log-probabilities over 1 / p, the end of text never masked."""
  length, p = len(answer), (1 - eps) * (np.arange(20_000) + 0.5) / 20_000 + eps
  total = 0.0
  for part in subsets(length):
    weight = np.mean(p ** (len(part) - 1) * (1 - p) ** (length - len(part)))
    total += weight * sum(log_probabilities(context, [*answer, end], part)[list(part)])
  return total


def estimates(denoiser, params, config, pair, repeats):
  return np.array([Likelihood(denoiser, params, None, 8, config, seed).estimate([pair])[0] for seed in range(repeats)])


def assert_unbiased(found, expected):
  error = found.std(ddof=1) / np.sqrt(len(found))
  assert error > 0 and abs(found.mean() - expected) < 3 * error


@pytest.mark.parametrize("mc_num, cfg", [(4, 0.0), slow(1, 0.0), slow(4, 0.5)])
def test_the_estimate_of_llada_is_the_exact_bound_on_average(
  tiny_denoiser, sharp_params, log_probabilities, mc_num, cfg
):
  found = estimates(tiny_denoiser, sharp_params, LikelihoodConfig("llada", mc_num, cfg), (CONTEXT, ANSWER), 80)
  assert_unbiased(found, llada_bound(log_probabilities, CONTEXT, ANSWER, cfg))


def test_the_estimate_of_dream_is_the_exact_bound_on_average(tiny_denoiser, sharp_params, log_probabilities):
  found = estimates(tiny_denoiser, sharp_params, LikelihoodConfig("dream", 8), (CONTEXT, ANSWER), 80)
  assert_unbiased(found, dream_bound(log_probabilities, CONTEXT, ANSWER, tiny_denoiser.config.eos_token_id))


@pytest.mark.parametrize("seed", range(5))
def test_the_numbers_of_masked_tokens_are_spread_evenly(tiny_denoiser, seed):
  """With as many states as tokens each number comes once; with twice as many, twice."""
  likelihood = Likelihood(tiny_denoiser, None, None, 8, LikelihoodConfig("llada", 6), seed)
  for length in (3, 6):
    counts = sorted(int(masked.sum()) for masked, _ in likelihood._states(CONTEXT, [1] * length))
    assert counts == sorted(list(range(1, length + 1)) * (6 // length))


def test_from_left_to_right_is_the_chain_of_next_tokens(tiny_denoiser, sharp_params, log_probabilities):
  answer = [*ANSWER, tiny_denoiser.config.eos_token_id]
  chain = sum(log_probabilities(CONTEXT, answer, set(range(i, 4)))[i] for i in range(4))
  likelihood = Likelihood(tiny_denoiser, sharp_params, None, 8, LikelihoodConfig("dream_ar"), 0)
  assert likelihood.estimate([(CONTEXT, ANSWER)]) == pytest.approx([chain], rel=1e-5)
  assert likelihood.states([(CONTEXT, ANSWER), (CONTEXT, [])]) == 4


def test_a_single_token_has_no_noise(tiny_denoiser, sharp_params, log_probabilities):
  """MMLU's answers are one letter each: one state is enough."""
  found = estimates(tiny_denoiser, sharp_params, LikelihoodConfig("llada", 1), (CONTEXT, [7]), 2)
  assert found == pytest.approx(log_probabilities(CONTEXT, [7], {0})[0], rel=1e-5)


@pytest.mark.parametrize("kind", ["llada", slow("dream"), slow("dream_ar")])
def test_an_estimate_depends_on_its_own_pair_alone(tiny_denoiser, sharp_params, kind):
  pairs = [(CONTEXT, ANSWER), ([1], [2, 3]), (CONTEXT, []), ([8] * 40, [4] * 20), ([], [4, 5, 6])]
  make = lambda batch_size: Likelihood(tiny_denoiser, sharp_params, None, batch_size, LikelihoodConfig(kind, 6), 3)
  together = make(4).estimate(pairs)
  assert together[2] == 0
  assert together == pytest.approx(make(16).estimate(pairs[::-1])[::-1], rel=1e-5)
  assert together[3:4] == pytest.approx(make(4).estimate(pairs[3:4]), rel=1e-6)


@pytest.mark.slow
def test_likelihoods_are_the_same_on_a_mesh(tiny_denoiser, sharp_params):
  mesh = make_mesh(2, 2, 1, jax.local_devices()[:4])
  pairs, config = [(CONTEXT, ANSWER), ([1], [2, 3])], LikelihoodConfig("llada", 5)
  alone = Likelihood(tiny_denoiser, sharp_params, None, 4, config, 0)
  split = Likelihood(dataclasses.replace(tiny_denoiser, mesh=mesh), sharp_params, mesh, 4, config, 0)
  assert split.estimate(pairs) == pytest.approx(alone.estimate(pairs), rel=1e-5)
  assert split.greedy(pairs) == alone.greedy(pairs)


@pytest.mark.parametrize("cfg", [0.0, slow(1.5)])
def test_the_greedy_answer_is_the_samplers(tiny_denoiser, sharp_params, cfg):
  """One token a step, the surest first, as in `suffix_greedy_prediction` of LLaDA's evaluation."""
  settings = SamplerConfig(completion_length=6, steps=6, block_length=6, temperature=0.0, cfg_scale=cfg)
  prompt = jnp.array([CONTEXT])
  rollout = sample(tiny_denoiser, sharp_params, prompt, jnp.ones_like(prompt, bool), jax.random.key(0), settings)
  answer = rollout.tokens[0].tolist()
  wrong = [*answer[:-1], (answer[-1] + 1) % 60]
  likelihood = Likelihood(tiny_denoiser, sharp_params, None, 4, LikelihoodConfig("llada", cfg=cfg), 0)
  assert likelihood.greedy([(CONTEXT, answer), (CONTEXT, wrong), (CONTEXT, [])]) == [True, False, True]


@pytest.mark.parametrize("settings, words", [
  (dict(kind="gpt"), "likelihood: 'gpt' is not one of llada, dream, dream_ar"),
  (dict(mc_num=0), "mc_num: must be at least 1"), (dict(cfg=-1.0), "cfg: must be at least 0"),
  (dict(kind="dream", cfg=0.5), "cfg: only likelihood=llada has it"),
  (dict(sampling_eps=0.0), "sampling_eps: must lie between 0 and 1"),
])
def test_settings_that_cannot_be_are_named(settings, words):
  with pytest.raises(ValueError, match=f"^{words}"):
    LikelihoodConfig(**settings)
