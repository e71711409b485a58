"""What rollouts.jsonl says of a step: its first groups, whole, with what the updates trained on."""

import json
import logging
import types

import jax.numpy as jnp
import numpy as np
import pytest

from gdsd_jax.diffusion.config import Rollout
from gdsd_jax.generation.rollout import GradedCompletions, PendingCompletions
from gdsd_jax.huggingface.tokenizer import load_tokenizer, token_ids
from gdsd_jax.runs.config_dict import base_config, run_config
from gdsd_jax.tasks import get_task
from gdsd_jax.tasks.base import Task
from gdsd_jax.training.kept_rollouts import KeptRollouts
from gdsd_jax.training.report import rollout_metrics
from gdsd_jax.training.updates import known_rewards

L = 12
PROMPTS = [[{"role": "system", "content": "<b>א</b>"}, {"role": "user", "content": "2+3=🙂"}]] + [
  [{"role": "user", "content": f"{n}+1="}] for n in range(2)]
TEXTS = ["<answer>5</answer>", "5 😀 é", "", "7", "8", "9"]


@pytest.fixture(scope="module")
def tokenizer():
  return load_tokenizer("tiny")


class Sums(Task):
  def messages(self, example):
    return example["messages"]


def config_of(**changes):
  config = base_config()
  config.group_size, config.prompts_per_step = 2, 3
  config.sampler.completion_length, config.sampler.steps, config.sampler.block_length = L, L, L
  config.update_from_flattened_dict(changes)
  return run_config(config)


def graded_by(tokenizer, **changes):
  """Completions of three groups of two, as a step has them."""
  ids = [tokens[:L] for tokens in token_ids(tokenizer, TEXTS)]
  tokens = np.array([tokens + [tokenizer.eos_token_id] * (L - len(tokens)) for tokens in ids], np.int32)
  confidence = np.full((6, L), 0.123456, np.float32)
  confidence[0, :2] = [np.nan, 1.0]
  rollout = Rollout(jnp.asarray(tokens), jnp.asarray(confidence), jnp.asarray(np.argsort(tokens, axis=1), jnp.int32))
  examples = [{"messages": messages, "answer": n} for n, messages in enumerate(PROMPTS) for _ in range(2)]
  rewards = {"sum": [1, 0.1, 0, 2, 2, 0], "odd": [np.nan, 0.2, 0, 0, 0, 0]}
  fields = dict(
    sampled=PendingCompletions(examples, None, None, rollout, (), 0.0), sampling_seconds=1.0, completions=TEXTS,
    ids=ids, rewards={name: np.array(values, np.float32) for name, values in rewards.items()},
    accuracy=np.array([1, np.nan, 0, 0, 0, 0]), accuracy_lenient=np.full(6, np.nan), metrics={})
  return GradedCompletions(**fields | changes)


def kept(folder, tokenizer, config, graded, task=None):
  """Rows of a run of one step."""
  generator = types.SimpleNamespace(tokenizer=tokenizer, mesh=None)
  rollouts = KeptRollouts(config, types.SimpleNamespace(generator=generator, task=task or Sums()))
  rollouts.open(folder, -1)
  rollouts.note(1, graded)
  rollouts.write()
  file = folder / "rollouts.jsonl"
  return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_a_row_tells_a_group_whole(tmp_path, tokenizer):
  rows = kept(tmp_path, tokenizer, config_of(), graded_by(tokenizer))
  assert [(row["step"], row["group"], row["reference"], row["prompt"]) for row in rows] == [
    (1, group, str(group), PROMPTS[group]) for group in (0, 1)]  # so many as log.keep_groups
  first, second = rows[0]["completions"]
  ends = ["<|endoftext|>"] * (L - first["length"])
  assert first["text"] == TEXTS[0] and first["tokens"] == ["<answer>", "5", "</answer>", *ends]
  assert "".join(second["tokens"]) == second["text"] + "<|endoftext|>" * (L - second["length"])
  assert first["unmasked"] == np.argsort(token_ids(tokenizer, TEXTS[:1])[0] + [tokenizer.eos_token_id] * 9).tolist()
  assert first["confidence"] == [None, 1.0, *[0.1235] * 10] and first["logp"] is None
  assert [[each[name] for name in ("reward", "rewards", "accuracy", "advantage")] for each in (first, second)] == [
    [1.0, {"sum": 1.0, "odd": None}, 1.0, pytest.approx(0.7)],
    [0.3, {"sum": 0.1, "odd": 0.2}, None, pytest.approx(-0.7)]]  # leave-one-out: 1 - 0.3
  assert [each["advantage"] for each in rows[1]["completions"]] == [-2.0, 2.0]


def test_a_completion_that_no_reward_applies_to_is_left_out_of_its_group(tmp_path, tokenizer):
  some = np.array([1, np.nan, 0, 0, np.nan, np.nan], np.float32)
  graded, config = graded_by(tokenizer, rewards={"sum": some, "odd": some}), config_of()
  rows = kept(tmp_path, tokenizer, config, graded)
  assert [[each[name] for name in ("reward", "advantage")] for row in rows for each in row["completions"]] == [
    [2.0, 0.0], [None, 0.0], [0.0, 0.0], [0.0, 0.0]]
  known = known_rewards(graded.total_reward, config)
  np.testing.assert_array_equal(known, [2, 2, 0, 0, 0, 0])  # as its group's others, or 0
  of_steps = np.stack([graded.total_reward, np.arange(6)], axis=1)
  np.testing.assert_array_equal(known_rewards(of_steps, config), np.stack([known, np.arange(6)], axis=1))
  told = rollout_metrics(graded, 2)
  assert told["reward"] == pytest.approx(2 / 3) and told["reward_std"] == 0
  assert told["groups_without_spread"] == 1 and told["unique_rewards"] == pytest.approx(2 / 6)
  assert told["completions_cut"] == 0
  cut = graded_by(tokenizer, ids=[graded.ids[1][:1] * L, *graded.ids[1:]])
  assert rollout_metrics(cut, 2)["completions_cut"] == pytest.approx(1 / 6)
  none = graded_by(tokenizer, rewards={"sum": np.full(6, np.nan, np.float32)})
  assert np.isnan(rollout_metrics(none, 2)["reward"]) and rollout_metrics(none, 2)["groups_without_spread"] == 1


@pytest.mark.parametrize("changes, advantages", [
  ({"objective.advantages": "minus_mean"}, [-1.0, 1.0]),
  ({"objective.name": "dmpo", "objective.num_mc": None}, [None, None]),  # makes what it needs of the rewards
])
def test_the_advantages_are_those_that_the_updates_take(tmp_path, tokenizer, changes, advantages):
  rows = kept(tmp_path, tokenizer, config_of(**changes), graded_by(tokenizer))
  assert [each["advantage"] for each in rows[1]["completions"]] == advantages


def test_steps_that_a_sampler_of_ones_own_does_not_tell_are_null(tmp_path, tokenizer):
  graded = graded_by(tokenizer)
  rollout = Rollout(graded.sampled.rollout.tokens, graded.sampled.rollout.confidence)
  sampled = PendingCompletions(graded.sampled.examples, None, None, rollout, (), 0.0)
  [row, _] = kept(tmp_path, tokenizer, config_of(), graded_by(tokenizer, sampled=sampled))
  assert row["completions"][0]["unmasked"] is None and row["completions"][0]["confidence"][1] == 1.0


def test_no_file_without_an_interval(tmp_path, tokenizer):
  assert kept(tmp_path, tokenizer, config_of(**{"log.keep_every": 0}), graded_by(tokenizer)) == []
  assert not list(tmp_path.iterdir())


def test_a_reference_that_raises_is_none_and_told_once(tmp_path, tokenizer, caplog, monkeypatch):
  class Broken(Sums):
    def reference_answer(self, example):
      raise KeyError("answer")

  monkeypatch.setattr(logging.getLogger("gdsd_jax"), "propagate", True)
  rows = kept(tmp_path, tokenizer, config_of(), graded_by(tokenizer), Broken())
  assert [row["reference"] for row in rows] == [None, None]
  assert [record.message for record in caplog.records] == ["rollouts.jsonl lacks reference answers: 'answer'"]


@pytest.mark.parametrize("name, options, example, answer", [
  ("arithmetic", {}, {"answer": 19}, "19"),
  ("gsm8k", {}, {"question": "?", "answer": "-3"}, "-3"),
  ("math_xml", {}, {"problem": "?", "answer": "\\frac12"}, "\\frac12"),
  ("countdown", {"variant": "small"}, {"numbers": [3, 5, 7], "target": 9}, "5-3+7"),
  ("countdown", {}, {"numbers": [1, 1, 1], "target": 99}, None),
  ("sudoku", {}, {"puzzle": "0" * 16, "solution": "1234341221434321"}, "1234341221434321"),
  ("prompts", {"answer_column": "a", "answer_after": "####", "train_source": "x"}, {"a": "so #### 7 "}, "7"),
  ("prompts", {"rewards": [len], "train_source": "x"}, {"prompt": "?"}, None),
  ("code", {}, {"messages": [], "tests": []}, None),
])
def test_tasks_tell_their_reference_answers(name, options, example, answer):
  assert get_task(name, **options).reference_answer(example) == answer
