"""Every objective in the one loop, and the groups that a step trains on."""

import dataclasses

import jax
import numpy as np
import pytest

from gdsd_jax.generation.rollout import RewardError
from gdsd_jax.huggingface.tokenizer import decode_completions
from gdsd_jax.objectives.named import OBJECTIVES
from gdsd_jax.runs.config_dict import base_config, run_config
from gdsd_jax.runs.metrics import Stopwatch
from gdsd_jax.tasks.base import Completion, Grade
from gdsd_jax.training.trainer import Trainer

SMALL = {
  "model.path": "tiny", "steps": 2, "group_size": 2, "prompts_per_step": 4, "objective.num_iterations": 2,
  "sampler.completion_length": 8, "sampler.steps": 8, "sampler.block_length": 4, "eval.num_examples": 8,
  "eval.batch_size": 8, "eval.lengths": (16,), "eval.block_length": 8, "log.tensorboard": False,
}
FIELDS = {
  "d2": {"segments": 4}, "trace_rl": {"shrink": 2}, "agrpo": {"num_mc": 3}, "bgpo": {"num_mc": 4},
  "just_grpo": {"num_iterations": 1}, "vrpo": {"num_mc": 2}, "mdpo": {"num_mc": 3},
}


def trainer_of(folder, name="gdsd", **changes):
  config = base_config()
  config.sampler.prompt_buckets = (40,)
  config.update_from_flattened_dict(SMALL)
  config.objective.name = name
  for field, value in FIELDS.get(name, {}).items():
    config.objective[field] = value
  if name == "just_grpo":
    config.sampler.block_length = 1
  for path, value in changes.items():
    section, field = path.split("__")
    config[section][field] = value
  return Trainer(run_config(config), folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains(tmp_path, name):
  trainer = trainer_of(tmp_path, name)
  before = jax.tree.map(np.asarray, trainer.state.params)
  row, _ = trainer.iterate(Stopwatch())
  assert row["skipped"] == 0 and np.isfinite(row["loss"]) and np.isfinite(row["grad_norm"])
  moved = [np.abs(a - b).max() for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(trainer.state.params))]
  assert max(moved) > 0 and all(np.isfinite(moved))


@pytest.mark.slow
def test_the_gap_between_exact_likelihoods_and_the_trajectory_is_none(tmp_path):
  """JustGRPO scores each token in the state that a sampler from left to right drew it in, at its temperature."""
  trainer = trainer_of(tmp_path, "just_grpo", log__trajectory=True, sampler__temperature=0.7)
  row, _ = trainer.iterate(Stopwatch())
  assert row["trajectory_logp"] < -0.01 and abs(row["elbo_gap"]) < 1e-4 and row["elbo_gap_std"] < 1e-4
  assert row["elbo_correlation"] == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [
  {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2, "sampler__microbatches": 2, "optimizer__accumulation": 2},
  {"sampler__cache": "dual"}, {"sampler__kind": "dream", "sampler__other_family": True, "sampler__top_p": 0.9},
  {"objective__name": "gdsd_tlc"},
])
def test_a_step_tells_the_trajectory_of_the_rollouts_that_it_trains_on(tmp_path, changes):
  trainer = trainer_of(tmp_path, **changes, log__trajectory=True)
  row, graded = trainer.iterate(Stopwatch())
  logp = np.asarray(graded.sampled.rollout.logp)
  assert row["trajectory_logp"] == pytest.approx(logp.mean(), rel=1e-5) and np.isfinite(row["elbo_gap_std"])
  assert row["elbo"] == pytest.approx(row.get("score_plain", row["score"]), rel=0.2)


@pytest.mark.slow
def test_rollouts_of_the_iteration_before_keep_their_trajectory(tmp_path):
  trainer = trainer_of(tmp_path, log__trajectory=True)
  trainer.config = dataclasses.replace(trainer.config, async_rollouts=True)
  trainer.overlap.config = trainer.config
  for _ in range(2):
    row, graded = trainer.iterate(Stopwatch())
    assert row["trajectory_logp"] == pytest.approx(np.asarray(graded.sampled.rollout.logp).mean(), rel=1e-5)
  assert trainer.saved()[0].ahead.logp.shape == graded.sampled.rollout.tokens.shape


@pytest.mark.slow
def test_the_numbers_of_a_step_are_the_same_with_its_trajectory(tmp_path):
  rows = [trainer_of(tmp_path / str(on), log__trajectory=on).iterate(Stopwatch())[0] for on in (False, True)]
  for name, value in rows[0].items():
    assert rows[1][name] == value or "second" in name, name
  assert rows[1].keys() - rows[0].keys() == {
    "trajectory_logp", "elbo", "elbo_gap", "elbo_gap_std", "elbo_correlation"}


@pytest.mark.slow
@pytest.mark.parametrize("changes", [
  {"sampler__kind": "dream", "sampler__other_family": True, "sampler__top_p": 0.9},
  {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2, "sampler__microbatches": 2, "optimizer__accumulation": 2},
])
def test_the_first_ratios_of_predictions_are_one(tmp_path, monkeypatch, changes):
  trainer = trainer_of(tmp_path, "mdpo", **changes, objective__num_iterations=1)
  by_length = lambda _, texts, examples: [Grade({"length": len(text)}, 0.0) for text in texts]
  monkeypatch.setattr(type(trainer.sampler.task), "grade", by_length)
  row, graded = trainer.iterate(Stopwatch())
  assert row["log_ratio_abs"] == 0 and row["grad_norm"] > 0 and row["skipped"] == 0
  assert graded.predicted_rewards.shape == (8, trainer.config.sampler.most_steps)
  assert np.ptp(graded.predicted_rewards, axis=1).max() > 0


def test_predictions_of_all_steps_are_graded_each_once(tmp_path, monkeypatch):
  trainer = trainer_of(tmp_path, "mdpo", sampler__microbatches=2, mesh__tensor=2)
  task, graded = trainer.sampler.task, []
  grade = task.grade

  def counted(_, texts, examples):
    graded.extend(zip(map(id, examples), texts, [text.ended for text in texts]))
    return grade(texts, examples)

  monkeypatch.setattr(type(task), "grade", counted)
  _, _, sampled = trainer.overlap.take(trainer.state)
  found = trainer.sampler.grade(sampled)
  completions, predictions = graded[:8], graded[8:]
  assert found.predicted_rewards.shape == (8, 8) and 0 < len(predictions) < 64
  assert len(set(predictions) - set(completions)) == len(predictions)
  tokens = np.asarray(sampled.rollout.predictions.tokens)
  for row, step in ((0, 0), (3, 4), (7, 7)):
    [text] = decode_completions(trainer.sampler.generator.tokenizer, tokens[row, step][None])
    [expected] = grade([Completion(text, ended(trainer, tokens[row, step]))], [sampled.examples[row]])
    assert found.predicted_rewards[row, step] == pytest.approx(sum(expected.rewards.values()))
  of_odd = lambda _, texts, examples: [Grade({"odd": 1.0 if len(text) % 2 else None}) for text in texts]
  monkeypatch.setattr(type(task), "grade", of_odd)
  predicted = trainer.sampler.grade(sampled).predicted_rewards
  assert 0 < np.isnan(predicted).sum() < 64 and np.nanmin(predicted) == 1  # where none applies there is no 0


def ended(trainer, tokens):
  return bool(np.isin(tokens, trainer.sampler.generator.stop_ids).any())


def with_accuracy(trainer, monkeypatch, accuracies):
  """Grades tell these accuracies of groups, one draw after the other."""
  grade, draws = trainer.sampler.grade, iter(accuracies)

  def graded(pending):
    found = grade(pending)
    return dataclasses.replace(found, accuracy=np.repeat(next(draws), trainer.config.group_size).astype(float))
  monkeypatch.setattr(trainer.sampler, "grade", graded)


RANGE = {"objective__least_accuracy": 0.2, "objective__largest_accuracy": 0.8, "objective__redraws": 2}


def test_groups_outside_of_the_range_give_way_to_others(tmp_path, monkeypatch):
  trainer = trainer_of(tmp_path, **RANGE, log__trajectory=True)
  with_accuracy(trainer, monkeypatch, [[0.0, 0.5, 1.0, 0.0], [0.5, 1.0, 0.5, 0.0], [0.5, 0.5, 0.0, 0.0]])
  first = trainer.overlap.position
  row, _ = trainer.iterate(Stopwatch())
  assert (row["groups_drawn"], row["groups_kept"]) == (12, 4) and row["skipped"] == 0
  assert np.isfinite(row["trajectory_logp"]) and 0 < row["token_agreement"] < 1
  assert trainer.overlap.position == first + 12


def test_chosen_groups_are_whole_and_in_order(tmp_path, monkeypatch):
  trainer = trainer_of(tmp_path, **RANGE)
  with_accuracy(trainer, monkeypatch, [[0.0, 0.5, 1.0, 0.5], [0.5, 1.0, 0.5, 0.0]])
  _, _, sampled = trainer.overlap.take(trainer.state)
  drawn = [trainer.sampler.grade(sampled)]

  def draw():
    drawn.append(trainer.sampler.grade(trainer.overlap.more(trainer.state, jax.random.key(7))))
    return drawn[-1]

  chosen, _ = trainer.filter(drawn[0], draw)
  rows = [(0, 2), (0, 3), (0, 6), (0, 7), (1, 0), (1, 1), (1, 4), (1, 5)]
  assert chosen.completions == [drawn[i].completions[row] for i, row in rows]
  tokens = [np.asarray(graded.sampled.rollout.tokens) for graded in drawn]
  np.testing.assert_array_equal(chosen.sampled.rollout.tokens, np.stack([tokens[i][row] for i, row in rows]))
  assert [each["question"] if "question" in each else each for each in chosen.sampled.examples] == [
    each["question"] if "question" in each else each for each in (drawn[i].sampled.examples[row] for i, row in rows)]


def test_a_filter_that_finds_nothing_is_one_line(tmp_path, monkeypatch):
  trainer = trainer_of(tmp_path, **RANGE | {"objective__redraws": 1})
  with_accuracy(trainer, monkeypatch, [[0.0, 1.0, 1.0, 0.0]] * 2)
  with pytest.raises(RewardError, match="least_accuracy: none of 8 groups has an accuracy within 0.2 and 0.8;"):
    trainer.iterate(Stopwatch())


@pytest.mark.parametrize("changes, said", [
  ({"objective__least_accuracy": 0.9, "objective__largest_accuracy": 0.1}, "objective.least_accuracy, objective.larg"),
  ({"objective__redraws": 1}, "objective.redraws: is for groups that objective.least_accuracy"),
])
def test_a_range_that_does_not_fit_is_refused(tmp_path, changes, said):
  with pytest.raises(ValueError, match=said):
    trainer_of(tmp_path, **changes)
