"""Exact distributions of completions against the real samplers, and estimates of likelihoods against their theory."""

import dataclasses
import itertools
import json

from commands import run_command
from conftest import only_devices, slow
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from gdsd_jax.diffusion.blockwise import sample
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.diffusion.replay import replay
from gdsd_jax.exact.commits import commits
from gdsd_jax.exact.enumeration import enumerate_completions
from gdsd_jax.exact.estimators import Estimators, quality
from gdsd_jax.exact.problem import Problem
from gdsd_jax.exact.states import Space
from gdsd_jax.exact.study import best_rate, run_study, Study
from gdsd_jax.exact.summary import Interval, markdown, picture, summarize
from gdsd_jax.exact.tables import sampler_table
from gdsd_jax.exact.training import Budget, parse_objective, Trained
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.models.denoiser import Denoiser

L, V = 4, 3
CONFIG = DenoiserConfig(
  vocab_size=V + 1, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8, mlp_size=16,
  rope_theta=1e4, norm_epsilon=1e-5, max_positions=8, mask_token_id=1, eos_token_id=2, pad_token_id=2,
)
PROMPT = np.array([0, 2])
SAMPLERS = {
  "llada": dict(block_length=4),
  "llada_blocks": dict(block_length=2, steps=2, temperature=0.6),
  "llada_two_a_step": dict(block_length=4, steps=2),
  "llada_random": dict(block_length=4, remasking="random"),
  "llada_random_two_a_step": dict(block_length=4, steps=2, remasking="random", temperature=1.5),
  "llada_left_to_right": dict(block_length=1),
  "llada_guided": dict(block_length=2, cfg_scale=0.7),
  "llada_penalty": dict(block_length=4, eos_penalty=1.0),
  "llada_threshold": dict(block_length=4, threshold=0.4, temperature=2.0),
  "llada_factor": dict(block_length=4, factor=0.9),
  "dream": dict(kind="dream"),
  "dream_probability": dict(kind="dream", alg="maskgit_plus", steps=3, temperature=0.7),
  "dream_margin": dict(kind="dream", alg="topk_margin", steps=3, top_p=0.9),
  "dream_origin": dict(kind="dream", alg="origin", steps=3),
  "dream_top_k": dict(kind="dream", alg="maskgit_plus", top_k=3),  # the mask token among them
  "dream_drawn_positions": dict(kind="dream", steps=2, alg="maskgit_plus", alg_temp=0.3),
  "dream_blocks": dict(kind="dream", alg="maskgit_plus", block_length=2, temperature=0.8),
  "dream_threshold": dict(kind="dream", alg="maskgit_plus", threshold=0.4, block_length=4, temperature=2.0),
}


@pytest.fixture(scope="module", autouse=True)
def one_device():
  with only_devices(1):
    yield


@pytest.fixture(scope="module")
def model():
  denoiser = Denoiser(CONFIG)
  return denoiser, jax.jit(denoiser.init)(jax.random.key(0))


def sampler_of(name, **changes):
  return SamplerConfig(**{"completion_length": L, "steps": L, "temperature": 1.0, **SAMPLERS[name], **changes})


def rollouts_of(model, sampler, count=20_000):
  prompt = jnp.broadcast_to(jnp.asarray(PROMPT), (count, len(PROMPT)))
  return prompt, sample(*model, prompt, None, jax.random.key(7), sampler, frozenset({"logp"}))


def p_value(expected, numbers):
  """Of the chi-square test; completions that are expected less than five times are one."""
  count, expected = np.bincount(numbers, minlength=len(expected)), expected * len(numbers)
  if count[expected == 0].any():
    return 0.0
  few = expected < 5
  count, expected = (np.append(x[~few], x[few].sum()) for x in (count, expected))
  count, expected = count[expected > 0], expected[expected > 0]
  return scipy.stats.chisquare(count, expected * count.sum() / expected.sum()).pvalue


@pytest.mark.parametrize("name", [name if name == "llada" else slow(name) for name in SAMPLERS])
def test_real_samples_have_the_enumerated_distribution(model, name):
  """And so have the log-probabilities that rollouts remember."""
  sampler = sampler_of(name)
  found = enumerate_completions(*model, PROMPT, sampler)
  assert found.probability.sum() == pytest.approx(1, abs=1e-6) and np.isfinite(found.probability).all()
  assert (found.probability > 0.01).sum() > 3  # not one completion alone
  _, rollout = rollouts_of(model, sampler)
  numbers = Space.of(CONFIG, L).number(rollout.tokens)
  assert p_value(found.probability, numbers) > 1e-3
  assert p_value(np.roll(found.probability, 1), numbers) < 1e-9
  logp = np.asarray(rollout.logp, np.float64).sum(axis=1)
  deviations = (logp - found.trajectory_mean[numbers]) / np.maximum(found.trajectory_std[numbers], 1e-4)
  assert abs(deviations.mean()) < 5 / np.sqrt(len(numbers)) or np.abs(deviations).max() < 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llada", "dream"])
def test_a_greedy_sampler_has_one_completion(model, name):
  sampler = sampler_of(name, temperature=0.0)
  found = enumerate_completions(*model, PROMPT, sampler)
  _, rollout = rollouts_of(model, sampler, 4)
  assert found.probability[Space.of(CONFIG, L).number(rollout.tokens)].tolist() == [1.0] * 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llada_left_to_right", "dream", "dream_margin"])
def test_a_trajectory_that_the_completion_decides_tells_its_likelihood(model, name):
  """From left to right, or by a confidence that is no matter of the tokens drawn, there is one way to a completion."""
  sampler = sampler_of(name, steps=L)
  found = enumerate_completions(*model, PROMPT, sampler)
  prompt, rollout = rollouts_of(model, sampler, 500)
  exact = found.log_probability[Space.of(CONFIG, L).number(rollout.tokens)]
  logp, _ = replay(*model, prompt, None, rollout, sampler)
  np.testing.assert_allclose(np.asarray(logp).sum(axis=1), exact, atol=1e-4)
  possible = found.probability > 0
  np.testing.assert_allclose(found.trajectory_mean[possible], found.log_probability[possible], atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llada_random", "dream_origin"])
def test_trajectories_in_a_random_order_are_importance_samples(model, name):
  """P(trajectory) = P(order) exp(logp), and the order is drawn apart: so E[exp(−logp)] is the number of completions."""
  sampler = sampler_of(name, temperature=4.0)  # so that no completion is too rare to be drawn
  prompt, rollout = rollouts_of(model, sampler)
  logp, _ = replay(*model, prompt, None, rollout, sampler)
  weights = np.exp(-np.asarray(logp, np.float64).sum(axis=1))
  error = weights.std() / np.sqrt(len(weights))
  assert error < 0.03 * V**L and abs(weights.mean() - V**L) < 4 * error


@pytest.mark.slow
def test_the_surest_tokens_first_make_a_trajectory_no_likelihood(model):
  """The draws that were not committed decide, too, what is: exp(logp) is no probability of a trajectory."""
  found = enumerate_completions(*model, PROMPT, sampler_of("llada"))
  gap = found.probability @ (found.trajectory_mean - found.log_probability)
  assert abs(gap) > 0.01


def test_positions_are_drawn_in_turn():
  """Two of three positions with weights 1, 2, 5, against the sum over orders; the last position is not masked."""
  weights, masked = np.array([1.0, 2.0, 5.0, 9.0]), np.array([[True, True, True, False]])
  sampler = SamplerConfig(kind="dream", completion_length=4, steps=2, alg_temp=0.5)
  confidence = (0.5 * np.log(weights)[None]).astype(np.float32)
  rows, chosen, probability = commits(confidence, masked, 2, sampler)
  expected = {}
  for first, second in itertools.permutations(range(3), 2):
    drawn = weights[first] / 8 * weights[second] / (8 - weights[first])
    expected[frozenset((first, second))] = expected.get(frozenset((first, second)), 0) + drawn
  found = {frozenset(np.flatnonzero(each)): p for each, p in zip(chosen, probability)}
  assert found.keys() == expected.keys() and rows.tolist() == [0, 0, 0]
  for positions, value in expected.items():
    assert found[positions] == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("changes, words", [
  (dict(cache="dual", block_length=4), "sampler.cache: must be none"),
  (dict(noise="official", block_length=4), "sampler.noise: must be exact"),
  (dict(early_stop=True, block_length=4), "sampler.early_stop: must be False"),
  (dict(completion_length=16, steps=16, block_length=16), "sampler.completion_length: 16 positions of 3 tokens"),
  (dict(completion_length=7, steps=7, block_length=7), r"sampler.completion_length: prompt \(2\) and comp"),
])
def test_samplers_that_cannot_be_enumerated_are_refused(changes, words):
  with pytest.raises(ValueError, match=f"^{words}"):
    sampler = SamplerConfig(**{"completion_length": L, "steps": L, **changes})
    enumerate_completions(Denoiser(CONFIG), None, PROMPT, sampler)


def test_what_a_sampler_leaves_out_is_told_and_not_made_up_for(monkeypatch):
  space = Space.of(CONFIG, L)
  share = np.full((*space.states.shape, V), np.log(0.9 / V), np.float32)
  monkeypatch.setattr("gdsd_jax.exact.tables._sampler_table", lambda *_: (share, share))
  with pytest.raises(ValueError, match="^sampler: its probabilities"):
    sampler_table(Denoiser(CONFIG), None, PROMPT, space, sampler_of("llada"))


def test_results_whose_rates_were_chosen_among_others_are_refused(tmp_path):
  before = Study(SMALL, only=("estimators",), rates=(1e-3,))
  (tmp_path / "found.jsonl").write_text(json.dumps({"kind": "settings", "settings": before.settings}) + "\n")
  for study in (dataclasses.replace(before, rates=(1e-3, 1e-2)), dataclasses.replace(before, tuning_seeds=2)):
    with pytest.raises(ValueError, match="^--out: .* has results of other settings"):
      run_study(study, tmp_path)


def test_a_folder_that_cannot_be_made_is_told_by_its_flag(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(OSError, match="^--out: cannot write to"):
    run_study(Study(SMALL, only=("estimators",)), tmp_path / "file" / "out")


def test_rewards_are_shares_of_right_tokens_and_of_neighbours_in_order():
  problem = Problem(length=4, block_length=2, denoising_steps=4, coupling=0.25)
  rewards = lambda *tokens: problem.rewards[:, problem.space.number(np.array(tokens))]
  np.testing.assert_allclose(rewards(1, 2, 0, 1), [0.25, 1.0, 0.25])
  np.testing.assert_allclose(rewards(0, 0, 0, 0), [0.75 / 2, 0.75 / 4, 0.75 / 4])
  assert problem.rewards.shape == (3, 81) and (problem.rewards == 1).sum() == 3


@pytest.mark.parametrize("fields, words", [
  (dict(coupling=1.5), "--coupling: must lie between 0 and 1"), (dict(tokens=1), "--tokens: must be at least 2"),
  (dict(block_length=4), "--block_length: 4 must divide"), (dict(denoising_steps=3), "--denoising_steps: 3 must"),
  (dict(length=12, block_length=12, denoising_steps=12), "--length: 12 positions of 3 tokens or a mask have"),
  (dict(temperature=0.0), "--temperature: must be positive"),
])
def test_problems_that_do_not_fit_name_the_flag(fields, words):
  with pytest.raises(ValueError, match=f"^{words}"):
    Problem(**fields)


@pytest.mark.parametrize("fields, words", [
  (dict(objectives=("gdsq",)), "--objectives: 'gdsq' is not one of .*; did you mean 'gdsd'"),
  (dict(objectives=("gdsd:psi",)), "--objectives: 'gdsd:psi' must be NAME or"),
  (dict(objectives=("mdpo",)), "--objectives: 'mdpo' is not one of"), (dict(only=()), "--only: must name some of"),
  (dict(seeds=1), "--seeds: must be at least 2"), (dict(rates=(0.0,)), "--rates: must be numbers between 0 and 1"),
  (dict(budget=Budget(group_size=3)), "--group_size: must be even for vrpo"),
  (dict(budget=Budget(steps=0)), "--steps: must be at least 1"),
])
def test_studies_that_do_not_fit_name_the_flag(fields, words):
  with pytest.raises(ValueError, match=f"^{words}"):
    Study(**fields)


SMALL = Problem(length=4, block_length=2, denoising_steps=4, pretraining=100)


@pytest.mark.slow
def test_estimates_are_what_theory_says():
  """In a random order, one token a step, the ELBO lies below the exact value; pairs and single masks agree on average.

  Their mean is that of the trajectory's log-probability over orders drawn apart from the completion, so that it lies
  below the trajectory's own, which is over the orders that led there.
  """
  sampler = SamplerConfig(completion_length=4, steps=4, block_length=4, remasking="random")
  params, prompt = SMALL.pretrained(0), SMALL.prompts[1]
  completions = enumerate_completions(SMALL.denoiser, params, prompt, sampler)
  exact = completions.log_probability
  found = Estimators(SMALL.denoiser, params, prompt, sampler, completions)(jax.random.key(0))
  assert (found["elbo"].mean <= exact + 1e-6).all() and (found["trajectory"].mean >= found["elbo"].mean - 1e-3).all()
  np.testing.assert_allclose(found["coupled_elbo"].mean, found["elbo"].mean, atol=1e-4)
  seen = found["coupled_elbo_states"].weights > 0.02
  states = found["coupled_elbo_states"]
  np.testing.assert_array_less(np.abs(states.mean - found["elbo"].mean)[seen], 5 * np.sqrt(states.error[seen]))
  judged = quality(found["elbo"], exact)
  assert judged.bias < 0 and judged.noise > 0 and judged.bias_error == 0 and judged.correlation > 0.9
  itself = found["elbo"]._replace(mean=exact - 0.3)
  assert quality(itself, exact).bias == pytest.approx(-0.3) and quality(itself, exact).spread < 1e-6


def test_an_objective_may_have_fields_of_its_own():
  assert parse_objective("spg:eubo_beta=2.0:negative=elbo") == ("spg", {"eubo_beta": 2.0, "negative": "elbo"})
  assert Trained(SMALL, "gdsd:psi=0.4", Budget()).config.objective.psi == 0.4
  with pytest.raises(ValueError, match="objective.psii"):
    Trained(SMALL, "gdsd:psii=0.4", Budget())


def test_intervals_are_students():
  assert Interval.of([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, 4.302653 * np.std([1, 2, 4], ddof=1) / np.sqrt(3)))
  assert str(Interval.of([0.5])) == "0.500"


def test_the_rate_is_the_one_with_the_largest_reward_on_average():
  rows = [{"kind": "run", "objective": "gdsd", "seed": seed, "rate": rate, "after": {"reward": reward}}
          for seed, rate, reward in [(0, 1e-3, 0.5), (1, 1e-3, 0.6), (0, 1e-4, 0.1), (1, 1e-4, 0.9), (1, 1e-2, 0.52)]]
  assert best_rate([{"kind": "settings"}, *rows], "gdsd") == 1e-3


@pytest.mark.slow
def test_a_study_goes_on_where_it_was(tmp_path):
  study = Study(SMALL, Budget(steps=2, group_size=4, num_iterations=1), ("gdsd", "just_grpo"), seeds=2, rates=(1e-3,))
  rows = run_study(study, tmp_path)
  kept = (tmp_path / "found.jsonl").read_text()
  (tmp_path / "found.jsonl").write_text("".join(kept.splitlines(keepends=True)[:-2]))
  again = run_study(study, tmp_path)
  assert again == rows and (tmp_path / "found.jsonl").read_text() == kept
  summary = summarize(rows)
  assert summary["fixed_point"]["difference"] < 1e-4
  for found in summary["objectives"].values():
    assert 0 < found["before"].mean < 1 and found["kl"].mean > 0 and found["seeds"] == 2
  for found in summary["estimators"].values():
    assert found["largest_distance_of_total_from_1"] < 1e-6
  json.dumps(summary)
  assert "`just_grpo`" in markdown(summary) and picture(summary).startswith(b"\x89PNG")
  with pytest.raises(ValueError, match="^--out: .* has results of other settings"):
    run_study(dataclasses.replace(study, budget=Budget(steps=3, group_size=4, num_iterations=1)), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("flag, words", [
  ("--rates=fast", "--rates: must be numbers"), ("--objectives=spg --block_length=6", "objective.num_mc: 2 must be"),
  ("--objectives=gdsd:psi=big", "objective.psi: must be a number, not 'big'"),
])
def test_the_command_tells_what_does_not_fit_in_one_line(tmp_path, flag, words):
  result = run_command("launch/exact.py", f"--out={tmp_path / 'exact'}", *flag.split())
  assert result.returncode == 1 and result.stderr.startswith(f"error: {words}") and result.stderr.count("\n") == 1
  assert not (tmp_path / "exact").exists()
