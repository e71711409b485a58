"""The training command: it learns, resumes bit for bit, and says clearly what is wrong."""

import json
import logging
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

from commands import Command, run_command
from conftest import REPOSITORY, without_times
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from gdsd_jax.runs.config_dict import base_config, run_config
from gdsd_jax.runs.files import read_rows
from gdsd_jax.tasks.arithmetic import ArithmeticTask
from gdsd_jax.training.prepare import prepare
from gdsd_jax.training.trainer import Trainer, TrainingError

pytestmark = pytest.mark.usefixtures("quick_runs")

# Seconds instead of minutes: short completions, few rollouts.
SMALL = {
  "steps": 6, "group_size": 4, "prompts_per_step": 2, "sampler.completion_length": 8, "sampler.block_length": 4,
  "sampler.steps": 4, "objective.num_iterations": 1, "objective.num_mc": 1, "optimizer.learning_rate": 1e-3,
  "eval.every": 2, "eval.num_examples": 8, "eval.batch_size": 8, "checkpoint.every": 2, "log.plot_seconds": 1000.0,
  "log.tensorboard": False,
}


def small_config(**changes):
  config = base_config()
  config.sampler.prompt_buckets = (40,)
  config.update_from_flattened_dict({**SMALL, **changes})
  return run_config(config)


def command(workdir, *arguments, **changes):
  overrides = [f"--config.{name}={value}" for name, value in {**SMALL, **changes}.items()]
  return ["launch/train.py", "--config=configs/gdsd_math.py", f"--workdir={workdir}", *overrides, *arguments]


def launch(*args, **kwargs):
  return run_command(*command(*args, **kwargs))


def launch_afresh(*args, limit_file_size=None, **kwargs):
  """As a user does: in an interpreter of its own."""
  limit = limit_file_size and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit_file_size, limit_file_size)))
  return subprocess.run(
    [sys.executable, *command(*args, **kwargs)], cwd=REPOSITORY, capture_output=True, text=True, timeout=1500,
    preexec_fn=limit or None, env={**os.environ, "JAX_PLATFORMS": "cpu"},
  )


def saved_state(workdir, step):
  with ocp.CheckpointManager((workdir / "checkpoints").absolute(), item_names=("state", "run")) as manager:
    return manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  """A run of 6 steps that nobody disturbs."""
  workdir = tmp_path_factory.mktemp("straight")
  result = launch_afresh(workdir)
  assert result.returncode == 0, result.stderr
  return workdir, result.stdout


def test_run_writes_what_it_promises(straight):
  workdir, output = straight
  rows = read_rows(workdir / "metrics.jsonl")
  assert [row["step"] for row in rows] == list(range(7))
  promised = {
    "reward", "reward/correctness", "reward/format", "reward_std", "groups_without_spread", "loss", "kl", "log_ratio",
    "clip_fraction", "score_noise", "grad_norm", "completion_length", "diversity", "tokens_per_second", "seconds/step",
    "seconds/rollout", "seconds/reward", "seconds/score", "seconds/update", "skipped",
    "entropy", "learning_rate",
  }
  for row in rows[1:]:
    assert promised <= row.keys()
    assert 0 < row["entropy"] < np.log(416) and row["learning_rate"] == 1e-3
  for step in (0, 2, 4, 6):
    assert {"eval/accuracy", "eval/reward", "eval/sampled_reward"} <= rows[step].keys()
  kept = read_rows(workdir / "rollouts.jsonl")
  assert [(row["step"], row["group"]) for row in kept] == [(1, 0), (1, 1), (6, 0), (6, 1)]
  for completion in (each for row in kept for each in row["completions"]):
    assert completion["unmasked"] and sorted(set(completion["unmasked"])) == [0, 1, 2, 3]
    assert max(completion["logp"]) <= 0 < max(completion["confidence"]) <= 1
    assert "".join(completion["tokens"][:completion["length"]]) == completion["text"]
  assert json.loads((workdir / "config.json").read_text())["group_size"] == 4
  assert (workdir / "reward.png").read_bytes().startswith(b"\x89PNG")
  assert "NEW RUN" in output and "finished 6 steps" in output


def test_a_run_resumes_bit_for_bit_from_what_a_kill_leaves(straight, tmp_path):
  """Its last checkpoint is that of step 4, and a row was being written: `test_killed_run…` kills one."""
  run = shutil.copytree(straight[0], tmp_path / "run")
  shutil.rmtree(run / "checkpoints" / "6")
  for name, ending in (("metrics.jsonl", b'{"step": 6'), ("rollouts.jsonl", b'{"step": 6, "gro')):
    rows = (run / name).read_bytes()
    (run / name).write_bytes(rows[:rows.index(ending) + len(ending) + 20])
  assert_resumed_as(straight[0], run)


@pytest.mark.slow
def test_killed_run_resumes_bit_for_bit(straight, tmp_path):
  killed = Command(*command(tmp_path))
  is_saved = lambda: any(step.name.isdigit() for step in (tmp_path / "checkpoints").glob("*"))
  wait_for_rows(killed, tmp_path, lambda rows: is_saved() and len(rows) > 3)
  killed.process.kill()
  assert killed.finish().returncode == -signal.SIGKILL, "the run ended before it was killed"
  assert_resumed_as(straight[0], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_asked_to_stop_saves_first_and_meanwhile_nobody_else_writes_there(straight, tmp_path, number):
  run = Command(*command(tmp_path, **{"checkpoint.every": 100}))
  wait_for_rows(run, tmp_path, lambda rows: len(rows) > 2)
  os.kill(run.process.pid, signal.SIGSTOP)
  other = launch(tmp_path)
  assert other.returncode == 1 and len(other.stderr.splitlines()) == 1
  assert f"{tmp_path} is in use by another command (process {run.process.pid} on " in other.stderr
  os.kill(run.process.pid, number)
  os.kill(run.process.pid, signal.SIGCONT)
  end = run.finish()
  assert end.returncode == 75, "the run ended before it was asked"
  step = read_rows(tmp_path / "metrics.jsonl")[-1]["step"]
  assert end.stderr == f"asked to stop: saved step {step} of 6; the same command goes on from there\n"
  assert not (tmp_path / ".lock").exists()
  assert_resumed_as(straight[0], tmp_path)


def test_what_cannot_be_had_again_is_kept_when_checkpoints_are_gone(straight, tmp_path):
  run = shutil.copytree(straight[0], tmp_path / "run")
  kept = {name: (run / name).read_bytes() for name in ("metrics.jsonl", "rollouts.jsonl", "config.json", "reward.png")}
  shutil.rmtree(run / "checkpoints")
  result = launch(run, steps=1)
  [earlier] = run.glob("earlier-*")
  said = f"STARTING AGAIN in {run}: there is no complete checkpoint; what was there is kept in {earlier}\n"
  assert said in result.stdout, result.stderr
  assert {name: (earlier / name).read_bytes() for name in kept} == kept
  assert [row["step"] for row in read_rows(run / "metrics.jsonl")] == [0, 1]


def wait_for_rows(run, workdir, enough):
  while run.process.is_alive() and not enough(read_rows(workdir / "metrics.jsonl")):
    time.sleep(0.005)


def assert_resumed_as(undisturbed, workdir):
  """The same command goes on, and ends with the rows and the state of an undisturbed run."""
  result = launch(workdir)
  assert result.returncode == 0, result.stderr
  assert "RESUMING" in result.stdout
  expected, actual = (without_times(read_rows(path / "metrics.jsonl")) for path in (undisturbed, workdir))
  assert actual == expected
  assert (workdir / "rollouts.jsonl").read_bytes() == (undisturbed / "rollouts.jsonl").read_bytes()
  leaves, expected_leaves = (jax.tree.leaves(saved_state(path, 6)) for path in (workdir, undisturbed))
  assert len(leaves) == len(expected_leaves) > 10
  for leaf, expected_leaf in zip(leaves, expected_leaves):
    np.testing.assert_array_equal(leaf, expected_leaf)


def test_problems_that_forge_the_chat_format_are_left_out_where_bad_rows_are(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger("gdsd_jax"), "propagate", True)
  rows = [{"prompt": f"{n} + 1?" + "<|eot_id|>" * (n % 10 == 3), "answer": n + 1} for n in range(40)]
  (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  told = {"task.name": "prompts", "task.train_source": str(tmp_path / "rows.jsonl")}
  config = base_config()
  config.sampler.prompt_buckets = (40,)
  with config.unlocked():
    config.task.answer_column = "answer"
  config.update_from_flattened_dict({**SMALL, **told})
  with pytest.raises(ValueError, match="^task.train_source: a user message holds <.eot_id.>, which only the chat form"):
    prepare(run_config(config), tmp_path, False)
  config.task.bad_rows = "skip"
  with caplog.at_level(logging.INFO, "gdsd_jax"):
    prepared = prepare(run_config(config), tmp_path, False)
  assert [example["answer"] for example in prepared.train] == [n + 1 for n in range(36) if n % 10 != 3]
  assert "4 of 36 train problems cannot be asked and are left out, the first: a user message holds" in caplog.text


def test_validation_problems_that_are_trained_on_too_are_told(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger("gdsd_jax"), "propagate", True)
  config = base_config()
  config.sampler.prompt_buckets = (40,)
  with config.unlocked():
    config.task.answer_column = "answer"
  for name, numbers in (("copies", [*range(36), 50, 51, 52, 0]), ("apart", range(40))):
    rows = [{"id": i, "prompt": f"{n} + 1?", "answer": n + 1} for i, n in enumerate(numbers)]
    (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = {"task.name": "prompts", "task.train_source": str(tmp_path / f"{name}.jsonl")}
    config.update_from_flattened_dict({**SMALL, **told})
    with caplog.at_level(logging.INFO, "gdsd_jax"):
      prepare(run_config(config), tmp_path, False)
    said = re.findall(r"WARNING: (\d) of the (\d) validation problems are trained on, too.* by (.*)", caplog.text)
    assert said == [("1", "4", "task.validation_source")]  # of the copies alone
  (tmp_path / "own.py").write_text("""import gdsd_jax
class Own(gdsd_jax.Task):
  def examples(self, split): return [{"n": n} for n in [*range(36), 0]]
  def messages(self, example): return [{"role": "user", "content": f"{example['n']} + 1?"}]
  def score(self, completion, example): return {"right": 0.0}
""")
  config = base_config()
  config.sampler.prompt_buckets = (40,)
  config.update_from_flattened_dict({**SMALL, "task.name": f"{tmp_path}/own.py:Own"})
  with caplog.at_level(logging.INFO, "gdsd_jax"):
    prepare(run_config(config), tmp_path, False)
  assert "WARNING: 1 of the 3 validation problems are trained on, too" in caplog.text
  assert "give others by its examples('validation')" in caplog.text


def test_finished_run_says_so(straight):
  workdir, _ = straight
  before = (workdir / "metrics.jsonl").read_bytes()
  result = launch(workdir)
  assert result.returncode == 0 and "nothing to do" in result.stdout
  assert (workdir / "metrics.jsonl").read_bytes() == before


def test_contradicting_config_is_refused_with_the_fields_that_differ(straight):
  workdir, _ = straight
  result = launch(workdir, **{"group_size": 8, "objective.psi": 0.1, "steps": 40})
  assert result.returncode != 0
  assert "group_size: 4 → 8" in result.stderr and "objective.psi: None → 0.1" in result.stderr
  assert "steps" not in result.stderr.replace("prompts_per_step", "")
  assert len(result.stderr.strip().splitlines()) == 1


def test_latest_checkpoints_and_the_best_are_kept(straight):
  workdir, _ = straight
  rows = read_rows(workdir / "metrics.jsonl")
  best = max((row for row in rows[1:] if "eval/reward" in row), key=lambda row: (row["eval/reward"], row["step"]))
  kept = {int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()}
  assert kept == {4, 6, best["step"]}


@pytest.mark.parametrize("changes, arguments, words", [
  ({"model.path": "no/such/folder"}, [], "model.path"),
  ({}, ["--config.no_such_field=1"], "no_such_field"),
  ({"steps": "many"}, [], "steps"),
])
def test_bad_input_is_one_clear_line(tmp_path, changes, arguments, words):
  result = launch(tmp_path / "run", *arguments, **changes)
  assert result.returncode != 0
  assert words in result.stderr.strip().splitlines()[-1]
  assert "Traceback" not in result.stderr
  assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("field, value", [
  ("group_size", 1), ("sampler.block_length", 3), ("optimizer.learning_rate", float("nan")),
])
def test_a_value_that_does_not_fit_is_refused_in_one_line(tmp_path, field, value):
  with pytest.raises(ValueError, match=f"^{field}: ") as caught:
    Trainer(small_config(**{field: value}), tmp_path / "run").train()
  assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments, words", [
  (["--config=configs/no_such.py"], "error: --config: No such file or directory: 'configs/no_such.py'"),
  (["--config=README.md"], "error: --config: is not a recipe: "),
  (["--config=configs/gdsd_math.py", "extra"], "error: 'extra' is no flag"),
  (["--config=configs/gdsd_math.py", "--workdir="], "error: --workdir: is empty"),
])
def test_bad_flags_are_one_clear_line(arguments, words):
  result = run_command("launch/train.py", *arguments)
  assert result.returncode == 1
  assert result.stderr.startswith(words) and len(result.stderr.splitlines()) == 1


def test_unknown_preset_lists_the_known_ones(tmp_path):
  result = run_command("launch/train.py", "--config=configs/gdsd_math.py:huge", f"--workdir={tmp_path}")
  assert result.returncode != 0
  last = result.stderr.strip().splitlines()[-1]
  assert "huge" in last and "tiny" in last
  assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_full_disk_on_save_is_one_clear_line(tmp_path):
  result = launch_afresh(tmp_path, limit_file_size=100_000, steps=3, **{"log.plot_seconds": 1e9})
  assert result.returncode != 0
  assert "cannot save" in result.stderr.strip().splitlines()[-1]
  assert "Traceback" not in result.stderr


@pytest.fixture
def screen(caplog, monkeypatch):
  """What the run says, even after another test sent the messages to standard output alone."""
  monkeypatch.setattr(logging.getLogger("gdsd_jax"), "propagate", True)
  caplog.set_level(logging.INFO, logger="gdsd_jax")
  return caplog


def failing_reward(monkeypatch, calls_that_fail):
  calls, grade = iter(range(10**6)), ArithmeticTask.grade_one

  def sometimes(self, completion, example):
    if calls_that_fail(next(calls)):
      raise ZeroDivisionError("no such luck")
    return grade(self, completion, example)

  monkeypatch.setattr(ArithmeticTask, "grade_one", sometimes)


def test_reward_that_raises_skips_the_step_and_is_counted(tmp_path, monkeypatch, screen):
  # 16 calls of the evaluation, then 8 a step: one call of the second step fails.
  failing_reward(monkeypatch, lambda call: call == 16 + 8 + 5)
  Trainer(small_config(**{"steps": 3, "eval.every": 100}), tmp_path).train()
  rows = read_rows(tmp_path / "metrics.jsonl")
  assert [row["skipped"] for row in rows[1:]] == [0, 1, 0]
  assert "no such luck" in screen.text


def test_evaluation_whose_reward_raises_is_left_out(tmp_path, monkeypatch, screen):
  failing_reward(monkeypatch, lambda call: call == 3)
  Trainer(small_config(steps=1), tmp_path).train()
  rows = read_rows(tmp_path / "metrics.jsonl")
  assert "eval/accuracy" not in rows[0] and "eval/accuracy" in rows[1]
  assert "evaluation after step 0 left out" in screen.text


def test_reward_that_always_raises_gives_up_naming_it(tmp_path, monkeypatch):
  failing_reward(monkeypatch, lambda call: call >= 16)
  with pytest.raises(TrainingError, match="giving up at step 5.*arithmetic: ZeroDivisionError"):
    Trainer(small_config(**{"eval.every": 100}), tmp_path).train()
