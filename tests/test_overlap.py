"""Sampling beside the host's work: rollouts in parts, iterations begun early, and rollouts sampled one ahead."""

import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

from conftest import without_times
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import gdsd_jax
from gdsd_jax.generation import generator
from gdsd_jax.generation.held_out import evaluate
from gdsd_jax.generation.rollout import RolloutSampler
from gdsd_jax.huggingface.tokenizer import load_tokenizer
from gdsd_jax.parallel.mesh import param_shardings
from gdsd_jax.runs.checkpoints import Checkpoints
from gdsd_jax.runs.config_dict import base_config, run_config
from gdsd_jax.runs.files import read_rows
from gdsd_jax.runs.loop import save
from gdsd_jax.runs.metrics import MetricsWriter, Stopwatch
from gdsd_jax.tasks import get_task
from gdsd_jax.tasks.arithmetic import ArithmeticTask
from gdsd_jax.training.overlap import Overlap
from gdsd_jax.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("quick_runs")

REPOSITORY = Path(__file__).parent.parent
SAMPLER = gdsd_jax.SamplerConfig(completion_length=8, steps=4, block_length=4)
SMALL = {
  "steps": 4, "group_size": 4, "prompts_per_step": 2, "sampler.completion_length": 8, "sampler.block_length": 4,
  "sampler.steps": 4, "objective.num_iterations": 1, "objective.num_mc": 1, "optimizer.learning_rate": 1e-3,
  "eval.every": 100, "eval.num_examples": 8, "eval.batch_size": 8, "checkpoint.every": 2, "log.plot_seconds": 1000.0,
  "log.tensorboard": False, "log.keep_every": 2,
}


def small_config(**changes):
  config = base_config()
  config.sampler.prompt_buckets = (40,)
  config.update_from_flattened_dict({**SMALL, **changes})
  return run_config(config)


# Rollouts in parts.


@pytest.fixture(scope="module")
def model():
  denoiser, params = gdsd_jax.load_pretrained("tiny")
  return denoiser, params, load_tokenizer("tiny", denoiser.config), get_task("arithmetic")


@pytest.fixture(scope="module")
def uneven(model):
  """(sampler, eight examples): long and short prompts in turn, two rollouts of each, and a bucket for either length."""
  denoiser, _, tokenizer, task = model
  examples = task.examples("train")[:100]
  everything = RolloutSampler(denoiser, tokenizer, task, SAMPLER, (40,))
  lengths = everything.prompt_lengths(everything.prompts(examples))
  order = np.argsort(lengths, kind="stable")
  short, long = order[:2], order[-2:]
  chosen = [examples[i] for i in (long[0], short[0], long[1], short[1]) for _ in range(2)]
  buckets = (int(lengths[short].max()), int(lengths.max()))
  return RolloutSampler(denoiser, tokenizer, task, SAMPLER, buckets), chosen


@pytest.fixture
def calls(monkeypatch):
  """(params, prompt, prompt_mask, key) of every call of the compiled sampler, and what it returned."""
  seen, sample = [], generator.sample

  def spy(denoiser, params, prompt, mask, key, config, record):
    kept = jax.tree.map(lambda x: np.array(x), params)  # on the host: the device's may be donated
    result = sample(denoiser, params, prompt, mask, key, config, record)
    seen.append((kept, prompt, mask, key, result))
    return result

  monkeypatch.setattr(generator, "sample", spy)
  return seen


def test_one_part_is_one_call_with_the_key_itself(model, uneven, calls):
  sampler, examples = uneven
  sampled = sampler.sample(model[1], examples, jax.random.key(3))
  [(_, prompt, mask, key, result)] = calls
  np.testing.assert_array_equal(jax.random.key_data(key), jax.random.key_data(jax.random.key(3)))
  for ours, theirs in ((sampled.prompt, prompt), (sampled.prompt_mask, mask), (sampled.rollout.tokens, result.tokens)):
    assert ours is theirs


def test_each_part_is_padded_to_the_bucket_of_its_own_longest_prompt(model, uneven, calls):
  sampler, examples = uneven
  sampler.sample(model[1], examples, jax.random.key(0), microbatches=2)
  assert [prompt.shape for _, prompt, *_ in calls] == [(4, bucket) for bucket in sampler.prompt_buckets]


def test_rollouts_of_one_prompt_are_sampled_together(model, uneven):
  sampler, examples = uneven
  sampled = sampler.sample(model[1], examples, jax.random.key(0), microbatches=2)
  assert [rows.tolist() for rows, _ in sampled.parts] == [[2, 3, 6, 7], [0, 1, 4, 5]]


def test_parts_come_back_in_the_order_of_the_examples(model, uneven, calls):
  sampler, examples = uneven
  whole = sampler.sample(model[1], examples, jax.random.key(0))
  calls.clear()
  sampled = sampler.sample(model[1], examples, jax.random.key(0), microbatches=2)
  np.testing.assert_array_equal(sampled.prompt, whole.prompt)
  np.testing.assert_array_equal(sampled.prompt_mask, whole.prompt_mask)
  for (rows, _), (*_, result) in zip(sampled.parts, calls):
    np.testing.assert_array_equal(sampled.rollout.tokens[rows], result.tokens)
    np.testing.assert_array_equal(sampled.rollout.confidence[rows], result.confidence)


def test_a_part_does_not_depend_on_the_others(model, uneven):
  sampler, examples = uneven
  others = [examples[row] for row in (4, 5, 2, 3, 4, 5, 6, 7)]  # another long prompt in the place of the first
  one, other = (sampler.sample(model[1], e, jax.random.key(0), microbatches=2).rollout for e in (examples, others))
  short = [2, 3, 6, 7]
  np.testing.assert_array_equal(other.tokens[np.array(short)], one.tokens[np.array(short)])


def test_parts_have_different_random_numbers(model, uneven, calls):
  sampler, examples = uneven
  sampler.sample(model[1], examples, jax.random.key(0), microbatches=2)
  keys = [tuple(jax.random.key_data(key).tolist()) for *_, key, _ in calls]
  assert len(set(keys)) == 2


def test_parts_are_graded_as_the_whole_is(model, uneven):
  sampler, examples = uneven
  sampled = sampler.sample(model[1], examples, jax.random.key(0), microbatches=2)
  in_parts, whole = sampler.grade(sampled), sampler.grade(sampler.restore(examples, sampled.rollout))
  assert in_parts.completions == whole.completions
  np.testing.assert_array_equal(in_parts.lengths, whole.lengths)
  np.testing.assert_array_equal(in_parts.accuracy, whole.accuracy)
  for name, values in whole.rewards.items():
    np.testing.assert_array_equal(in_parts.rewards[name], values)


def test_all_parts_are_under_way_before_the_first_is_graded(model, uneven, monkeypatch):
  sampler, examples = uneven
  events, sample, grade = [], generator.sample, ArithmeticTask.grade
  monkeypatch.setattr(generator, "sample", lambda *args: events.append("sample") or sample(*args))
  monkeypatch.setattr(ArithmeticTask, "grade", lambda *args: events.append(f"grade {len(args[1])}") or grade(*args))
  sampler.grade(sampler.sample(model[1], examples, jax.random.key(0), microbatches=2))
  assert events == ["sample", "sample", "grade 4", "grade 4"]


# Iterations.


def test_each_completion_of_evaluation_and_training_is_graded_once(tmp_path, monkeypatch):
  calls, grade = [], ArithmeticTask.grade_one
  monkeypatch.setattr(ArithmeticTask, "grade_one", lambda *args: calls.append(args) or grade(*args))
  trainer = Trainer(small_config(), tmp_path)
  evaluation = evaluate(trainer.sampler, trainer.state.student_params, trainer.held_out, jax.random.key(0), 8)
  assert {"accuracy", "reward", "sampled_reward"} <= evaluation.keys()
  assert len(calls) == 8 + 8  # greedy and sampled
  calls.clear()
  trainer.iterate(Stopwatch())
  assert len(calls) == 2 * 4


def saved_state(workdir, step):
  with ocp.CheckpointManager((workdir / "checkpoints").absolute(), item_names=("state", "run")) as manager:
    return manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]


def assert_same_run(one, other, step):
  rows = [without_times(read_rows(workdir / "metrics.jsonl")) for workdir in (one, other)]
  assert rows[0] == rows[1]
  kept = [(workdir / "rollouts.jsonl").read_bytes() for workdir in (one, other)]
  assert kept[0] == kept[1] and b'"unmasked": [' in kept[0]
  states = [saved_state(workdir, step) for workdir in (one, other)]
  jax.tree.map(np.testing.assert_array_equal, *states)


def test_the_next_iteration_begins_before_a_step_is_written_down(tmp_path, monkeypatch):
  events, begin, write = [], Overlap.begin, MetricsWriter.write
  monkeypatch.setattr(Overlap, "begin", lambda self, state: events.append("begin") or begin(self, state))
  monkeypatch.setattr(MetricsWriter, "write", lambda self, row: events.append(row["step"]) or write(self, row))
  Trainer(small_config(steps=2), tmp_path).train()
  assert events == [0, "begin", "begin", 1, "begin", 2]  # an iteration that has begun is not begun again


def test_a_checkpoint_is_the_same_whether_the_next_iteration_has_begun_or_not(tmp_path):
  for name in ("begun", "not"):
    checkpoints = Checkpoints(tmp_path / name / "checkpoints", 1)
    trainer = Trainer(small_config(), tmp_path / name)
    trainer.iterate(Stopwatch())
    if name == "begun":
      trainer.begin(Stopwatch())
    save(trainer, checkpoints, None)
    checkpoints.close()
  states = [saved_state(tmp_path / name, 1) for name in ("begun", "not")]
  jax.tree.map(np.testing.assert_array_equal, *states)


def test_async_rollouts_are_of_the_parameters_one_iteration_before(tmp_path, calls):
  """And sampling loses none of them, though each update donates its parameters while it may be at work."""
  trainer = Trainer(small_config(async_rollouts=True), tmp_path)
  before, trained_on = [], []  # parameters that an iteration begins with, and its rollouts
  for _ in range(4):
    before.append(jax.tree.map(np.array, trainer.state.student_params))
    _, scored = trainer.iterate(Stopwatch())
    trainer.begin(Stopwatch())
    trained_on.append(np.asarray(scored.sampled.rollout.tokens))
  assert not np.array_equal(before[0]["embedding"], before[1]["embedding"])
  for iteration, tokens in enumerate(trained_on):
    params, prompt, mask, key, _ = calls[iteration]
    jax.tree.map(np.testing.assert_array_equal, params, before[max(iteration - 1, 0)])
    params = jax.tree.map(jax.device_put, params, param_shardings(trainer.mesh, trainer.denoiser))
    again = gdsd_jax.sample(trainer.denoiser, params, prompt, mask, key, trainer.sampler.config)
    np.testing.assert_array_equal(again.tokens, tokens)


def test_async_rollouts_see_every_problem_once_in_the_order_of_the_stream(tmp_path, monkeypatch):
  seen, grade = [], RolloutSampler.grade
  monkeypatch.setattr(RolloutSampler, "grade", lambda self, pending: seen.extend(pending.examples[::4])
                      or grade(self, pending))
  problems = []
  for ahead in (False, True):
    trainer = Trainer(small_config(async_rollouts=ahead), tmp_path / str(ahead))
    for _ in range(3):
      trainer.iterate(Stopwatch())
    problems.append([example["question"] for example in seen])
    seen.clear()
  assert problems[0] == problems[1] and len(problems[0]) == 6


def test_async_rollouts_whose_reward_raises_cost_one_step(tmp_path, monkeypatch):
  calls, grade = iter(range(10**6)), ArithmeticTask.grade_one

  def sometimes(self, completion, example):
    if next(calls) == 16 + 8 + 5:  # after those of the evaluation and of the first step
      raise ZeroDivisionError("no such luck")
    return grade(self, completion, example)

  monkeypatch.setattr(ArithmeticTask, "grade_one", sometimes)
  Trainer(small_config(async_rollouts=True), tmp_path).train()
  assert [row["skipped"] for row in read_rows(tmp_path / "metrics.jsonl")[1:]] == [0, 1, 0, 0]


@pytest.mark.slow
def test_an_async_run_goes_on_after_its_last_step_as_if_it_had_never_ended(tmp_path):
  for workdir, ends in ((tmp_path / "straight", [4]), (tmp_path / "twice", [2, 4])):
    for steps in ends:
      Trainer(small_config(async_rollouts=True, steps=steps, **{"eval.every": 1}), workdir).train()
  assert_same_run(tmp_path / "straight", tmp_path / "twice", 4)


@pytest.mark.slow
@pytest.mark.parametrize("keep", [(0, 1), (1, 0)])
def test_an_async_run_goes_on_where_its_rollouts_remember_more_or_less_than_before(tmp_path, keep):
  """As a run of an earlier version does, whose rollouts did not remember their steps, and do not say so."""
  for steps, keep_every in zip((2, 4), keep):
    Trainer(small_config(async_rollouts=True, steps=steps, **{"log.keep_every": keep_every}), tmp_path).train()
    if keep == (0, 1) and steps == 2:
      [file] = (tmp_path / "checkpoints" / "2" / "run").glob("metadata")
      file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "remembered"}))
  assert [row["skipped"] for row in read_rows(tmp_path / "metrics.jsonl")[1:]] == [0, 0, 0, 0]
  kept = {row["step"]: row["completions"][0]["unmasked"] is None for row in read_rows(tmp_path / "rollouts.jsonl")}
  assert kept == ({3: True, 4: False} if keep == (0, 1) else {1: False, 2: False})


@pytest.mark.parametrize("changes", [
  {"async_rollouts": True, "sampler.microbatches": 2, "optimizer.moments_dtype": "bfloat16"},
  {"sampler.microbatches": 2},
  {"sampler.slots": 2, "sampler.threshold": 0.9, "async_rollouts": True, "sampler.microbatches": 2},
])
@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(tmp_path, changes):
  changes = {**SMALL, **changes, "steps": 16, "checkpoint.every": 3}
  overrides = [f"--config.{name}={value}" for name, value in changes.items()]

  def start(workdir):
    return subprocess.Popen(
      [sys.executable, "launch/train.py", "--config=configs/gdsd_math.py", f"--workdir={workdir}", *overrides],
      cwd=REPOSITORY, env={**os.environ, "JAX_PLATFORMS": "cpu"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
      text=True,
    )

  undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
  output = start(undisturbed).communicate(timeout=300)[0]
  assert "finished 16 steps" in output, output
  process, metrics = start(killed), killed / "metrics.jsonl"
  while process.poll() is None and (not metrics.is_file() or len(read_rows(metrics)) <= 11):
    time.sleep(0.005)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"
  output = start(killed).communicate(timeout=300)[0]
  assert "RESUMING" in output, output
  assert_same_run(undisturbed, killed, 16)
