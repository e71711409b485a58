"""What a step tells beside its loss: hand-worked groups, scores, ratios, and the trajectory beside the ELBO."""

import dataclasses
import functools

from conftest import load_recipe
import jax
import numpy as np
import pytest

from gdsd_jax.objectives.abstract import abstract_rollouts
from gdsd_jax.objectives.diagnostics import mismatch, score_metrics
from gdsd_jax.objectives.gdsd import gdsd_loss
from gdsd_jax.objectives.objective import Objective, ScoredRollouts
from gdsd_jax.objectives.scores import Scores
from gdsd_jax.objectives.views import Rollouts, Views
from gdsd_jax.runs.config_dict import base_config, run_config, typed
from gdsd_jax.runs.saved_config import contradictions
from gdsd_jax.supervised.config import FinetuningConfig
from gdsd_jax.training.diversity import group_diversity


def test_completions_of_a_group_are_compared_through_their_first_end():
  """Four completions of up to 4 tokens; e is an end: 1 2 3 e, the same, 1 5 e, and 1 2 3 4, which was cut."""
  found = group_diversity([[1, 2, 3], [1, 2, 3], [1, 5], [1, 2, 3, 4]], length=4, group_size=4)
  pairs = [1, 1 / 3, 3 / 4, 1 / 3, 3 / 4, 1 / 3]  # of 4, 3, 4, 3, 4 and 3 positions that both have
  assert found == pytest.approx({
    "diversity": 3 / 4, "group_entropy": np.log(2) / 2 + 2 * np.log(4) / 4, "token_agreement": np.mean(pairs),
    "distinct_1": 6 / 15})


def test_what_is_behind_the_end_agrees_with_nothing():
  """Empty completions agree in their ends alone; an end is no token of a longer completion."""
  alike = group_diversity([[], []], length=8, group_size=2)
  assert alike == {"diversity": 0.5, "group_entropy": 0, "token_agreement": 1, "distinct_1": 0.5}
  assert group_diversity([[], [7] * 8], 8, 2)["token_agreement"] == 0


def test_the_diversity_is_a_mean_over_groups():
  found = group_diversity([[1], [1], [1], [2]], length=2, group_size=2)
  assert found == pytest.approx({"diversity": 0.75, "group_entropy": np.log(2) / 2, "token_agreement": 0.75,
                                 "distinct_1": (2 / 4 + 3 / 4) / 2})


def test_gdsd_tells_its_ratios_and_the_residual_of_its_regression():
  scores = lambda *of_rollouts: Scores(np.array(of_rollouts, np.float32)[:, None])
  loss = jax.jit(functools.partial(gdsd_loss, completion_length=4, psi=0.5, epsilon=0.5))
  _, told = loss(scores(0.2, -2), scores(0, 0), scores(0, 0), np.array([1, -1], np.float32))
  residual = np.array([0.2 / 4 - 0.5, np.log(0.5) / 4 + 0.5])  # the second is clipped
  scale = residual / 2
  assert told == pytest.approx({
    "log_ratio": -0.9, "log_ratio_abs": 1.1, "largest_log_ratio": 2.0, "clip_fraction": 0.5, "target_abs": 0.5,
    "residual_abs": np.abs(residual).mean(), "gradient_scale": np.abs(scale).mean(), "gradient_scale_std": scale.std(),
    "gradient_snr": np.abs(scale.mean()) / scale.std(), "kl": (0.02 + 2) / 2 / 4, "largest_kl": 2 / 4}, rel=1e-5)


def metrics_of(plain, views, centered=None):
  rollouts = rollouts_of(np.zeros(plain.shape[0::2], np.float32), 1)
  batch = ScoredRollouts.of(rollouts, views=views, student=Scores(plain, centered), old=None, ref=None)
  return jax.jit(score_metrics)(batch)


def rollouts_of(logp, group_size=2) -> Rollouts:
  rollouts = abstract_rollouts(Objective(), *logp.shape, group_size)
  rollouts = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), rollouts)
  return dataclasses.replace(rollouts, logp=logp)


def test_the_score_of_a_coupled_pair_has_the_weights_of_the_forward_process():
  plain = np.array([[[-1, -2], [-3, -5]]], np.float32)
  views = Views(np.array([[[True, False], [True, True]]]), coupled=True)  # weights 3 and 3; 3/2 and 3/2
  expected = {"score": -(2.25 + 3) / 2, "largest_score": 3.0, "score_noise": 0.375}
  assert metrics_of(plain, views) == pytest.approx(expected)
  told = metrics_of(plain, views, centered=2 * plain)
  assert told == pytest.approx({**{name: 2 * value for name, value in expected.items()}, "score_plain": -2.625})


def test_the_score_of_another_view_is_a_mean_over_the_tokens_scored_there():
  plain = np.array([[[-1, -2], [-3, -5], [-7, -9]]], np.float32)
  masks = np.array([[[True, True], [False, True], [False, False]]])  # the last scores nothing, and does not count
  assert metrics_of(plain, Views(masks)) == pytest.approx(
    {"score": -(1.5 + 5) / 2, "largest_score": 5.0, "score_noise": 1.75})


def test_the_trajectory_stands_beside_the_elbo_and_both_are_compared_within_groups():
  """Two groups of two; a pair's weights are 3 and 3, so that e is 3/4 of the sum of its scores."""
  plain = np.array([[-1, -3], [-4, -4], [-2, -2], [-12, 0]], np.float32)[:, None]
  views = Views(np.tile(np.array([True, False]), (4, 1, 1)), coupled=True)
  rollouts = rollouts_of(np.array([[-1, -1], [-1, -3], [0, -2], [-4, -4]], np.float32))
  told = mismatch(rollouts, [Scores(plain)], [views, views])  # views that have no scores are not looked at
  e, t = np.array([-3.0, -6.0, -3.0, -9.0]), np.array([-1.0, -2.0, -1.0, -4.0])
  assert told == pytest.approx({
    "trajectory_logp": t.mean(), "elbo": e.mean(), "elbo_gap": (e - t).mean(), "elbo_gap_std": (1 + 1.5) / 2,
    "elbo_correlation": 10.5 / np.sqrt(22.5 * 5)}, rel=1e-5)
  twice = mismatch(rollouts, [Scores(plain + 1), Scores(plain - 1)], [views, views])
  assert twice["elbo"] == pytest.approx(told["elbo"])


def test_the_trajectory_is_that_of_the_tokens_that_are_scored():
  views = Views(np.tile(np.array([True, False]), (2, 1, 1)))
  rollouts = rollouts_of(np.array([[-1, -8], [-1, -9]], np.float32))
  told = mismatch(rollouts, [Scores(np.full((2, 1, 2), -3, np.float32))], [views])
  assert (told["trajectory_logp"], told["elbo"], told["elbo_gap_std"]) == (-1, -3, 0)
  assert np.isnan(told["elbo_correlation"])  # null in metrics.jsonl: nothing varies


@pytest.mark.parametrize("fields, said", [
  ({"sampler.temperature": 0.0}, "log.trajectory: must be False with sampler.temperature=0, at which"),
  ({"sampler.kind": "examples/own_sampler.py:sliding_window", "masks.kind": "uniform"},
   "log.trajectory: must be False with .*sliding_window: only samplers of ours tell"),
  ({"objective.name": "mdpo"}, "log.trajectory: must be False with mdpo, which scores predictions"),
  ({"objective.name": "gdsd_tlc", "objective.beta": 0.0, "objective.center_gradient": True},
   "log.trajectory: must be False with gdsd_tlc at objective.beta=0"),
])
def test_a_trajectory_that_nothing_tells_is_refused(fields, said):
  with pytest.raises(ValueError, match=f"^{said}") as caught:
    recipe({"log.trajectory": True, **fields})
  assert "\n" not in str(caught.value)


def test_a_run_without_rollouts_has_no_trajectory():
  config = load_recipe("sft").get_config()
  config.data.train_source, config.log.trajectory = "chats.jsonl", True
  with pytest.raises(ValueError, match="^log.trajectory: must be False: only RL samples what it learns$"):
    typed(FinetuningConfig, config)


def recipe(fields):
  config = base_config()
  config.update_from_flattened_dict(fields)
  return run_config(config)


def test_rollouts_remember_what_the_log_needs_and_a_run_may_turn_it_on():
  with_cache = recipe({"log.trajectory": True, "sampler.cache": "dual", "objective.name": "d2"})
  assert with_cache.remembered == recipe({}).remembered == {"steps", "logp"}
  assert recipe({"sampler.temperature": 0.0}).remembered == {"steps"}
  assert recipe({}).learnt == recipe({"log.keep_every": 0}).remembered == set()
  saved = recipe({}).as_given
  assert contradictions(saved, recipe({"log.trajectory": True})) == []
  [line] = contradictions({**saved, "async_rollouts": True}, recipe({"log.trajectory": True, "async_rollouts": True}))
  assert line == "log.trajectory: False → True (with async_rollouts the checkpoints hold what rollouts remember)"
