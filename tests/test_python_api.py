"""The package from a program: a trainer with own rewards and callbacks, prompts and completions as text."""

import json
import os
import shlex
import shutil
import subprocess
import sys

from conftest import REPOSITORY
from documented import documented, undocumented
import jax
import numpy as np
import pytest

import gdsd_jax
from gdsd_jax.runs.files import read_rows
from gdsd_jax.runs.interruption import Interrupted
from gdsd_jax.tasks.arithmetic import ArithmeticTask

pytestmark = pytest.mark.usefixtures("quick_runs")


def short(completions, **kwargs):
  return [-len(completion) / 100 for completion in completions]


def small_config(**changes):
  return gdsd_jax.load_config("gdsd_math:tiny", {
    "steps": 2, "group_size": 2, "prompts_per_step": 2, "sampler.completion_length": 8, "sampler.steps": 8,
    "objective.num_iterations": 1, "objective.num_mc": 1, "eval.every": 2, "eval.num_examples": 4, "eval.batch_size": 4,
    "eval.lengths": (8,), "log.tensorboard": False, "log.trajectory": True, **changes})


class Notes(gdsd_jax.Callback):
  def __init__(self):
    self.seen = []

  def after_rollouts(self, trainer, step, completions):
    self.seen.append(("rollouts", step, len(completions.completions)))

  def after_updates(self, trainer, step, metrics):
    metrics["mine"] = 3.0
    self.seen.append(("updates", step))

  def after_evaluation(self, trainer, step, metrics):
    self.seen.append(("evaluation", step))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  notes, folder = Notes(), tmp_path_factory.mktemp("run")
  trainer = gdsd_jax.Trainer(small_config(), folder, rewards=[short], reward_weights=[2.0], callbacks=[notes])
  trainer.train()
  return trainer, folder, notes


def test_a_run_with_an_own_reward_tells_its_callbacks(trained):
  trainer, folder, notes = trained
  assert notes.seen == [("evaluation", 0), ("rollouts", 1, 4), ("updates", 1), ("rollouts", 2, 4), ("updates", 2),
                        ("evaluation", 2)]
  rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  assert [row["step"] for row in rows] == [0, 1, 2]
  assert all(row["reward"] == pytest.approx(row["reward/short"]) and row["reward"] < 0 for row in rows[1:])
  assert [row.get("mine") for row in rows] == [None, 3.0, 3.0]
  saved = json.loads((folder / "config.json").read_text())["task"]
  assert (saved["rewards"], saved["reward_weights"]) == (["test_python_api:short"], [2.0])


def test_every_number_of_a_step_is_documented_and_every_documented_one_is_there(trained):
  rows = read_rows(trained[1] / "metrics.jsonl")
  told = {name for name, of in documented().items() if {"all", "gdsd", "log.trajectory"} & set(of)}
  for row in rows:
    assert undocumented(row, "short") <= {"mine"}
    if row["step"]:
      assert {name.replace("NAME", "short") for name in told} <= row.keys()
      assert row["trajectory_logp"] < 0 and row["elbo_gap"] == pytest.approx(row["elbo"] - row["trajectory_logp"], 1e-3)


def test_what_was_learnt_is_evaluated_sampled_and_saved(trained, tmp_path):
  trainer, _, _ = trained
  found = trainer.evaluate()
  assert {"accuracy", "reward", "reward/short", "sampled_reward"} <= found.keys()
  chat = [{"role": "user", "content": "Tom has 1 apple and buys 2 more. How many apples does Tom have?"}]
  for none in ("a text", []):
    with pytest.raises(ValueError, match="^prompts: must be a list of texts or chats, at least one, not "):
      trainer.sample(none)
  texts = trainer.sample([chat, chat[0]["content"]], temperature=0.0)
  assert texts[0] == texts[1] and isinstance(texts[0], str)
  trainer.save_pretrained(tmp_path / "out")
  denoiser, params = gdsd_jax.load_pretrained(tmp_path / "out")
  jax.tree.map(lambda a, b: (a == b).all() or pytest.fail("other weights"), params, trainer.state.params)
  assert gdsd_jax.load_tokenizer(tmp_path / "out").chat_template
  gdsd_jax.save_pretrained(tmp_path / "again", denoiser, params)  # which takes the tokenizer along, from where it was
  assert gdsd_jax.load_tokenizer(tmp_path / "again").get_vocab() == gdsd_jax.load_tokenizer("tiny").get_vocab()


def test_the_same_program_resumes_and_another_reward_is_refused(trained):
  _, folder, _ = trained
  again = gdsd_jax.Trainer(small_config(), folder, rewards=[short], reward_weights=[2.0])
  again.train()  # nothing to do
  assert int(again.state.step) == 2
  with pytest.raises(ValueError, match="task.rewards: .*test_python_api:short.* → None"):
    gdsd_jax.Trainer(small_config(), folder)


def test_a_run_whose_data_changed_goes_on_only_when_told_to(trained, monkeypatch):
  _, folder, _ = trained
  before, given = (folder / "config.json").read_bytes(), {"rewards": [short], "reward_weights": [2.0]}
  examples = ArithmeticTask.examples
  monkeypatch.setattr(ArithmeticTask, "examples", lambda self, split: examples(self, split)[:400])
  with pytest.raises(ValueError, match="^--workdir: .* holds a run with other training data; restore"):
    gdsd_jax.Trainer(small_config(), folder, **given)
  assert (folder / "config.json").read_bytes() == before
  trainer = gdsd_jax.Trainer(small_config(), folder, allow_changed_inputs=True, **given)
  assert trainer.provenance["earlier"] == [json.loads(before)["provenance"]]


def test_a_callback_can_stop_the_run_which_goes_on_later(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)

  class Stop(gdsd_jax.Callback):
    def after_updates(self, trainer, step, metrics):
      trainer.stop()

  with pytest.raises(Interrupted, match="saved step 1 of 2"):
    gdsd_jax.Trainer(small_config(), callbacks=[Stop()]).train()
  assert (tmp_path / "runs" / "arithmetic" / "checkpoints" / "1").is_dir()
  trainer = gdsd_jax.Trainer(small_config(), tmp_path / "runs" / "arithmetic")
  trainer.train()
  assert int(trainer.state.step) == 2


@pytest.mark.parametrize("changes, arguments, message", [
  ({"stepz": 1}, {}, "stepz"),
  ({"steps": "many"}, {}, "steps: must be a whole number, not 'many'"),
  ({"sampler.temperature": "hot"}, {}, "sampler.temperature: must be a number, not 'hot'"),
  ({"task.levl": 1}, {}, "task.levl: unknown option of task 'arithmetic'"),
  ({}, {"rewards": len}, "^rewards: must be a list of functions or names, such as .short., not <built-in function l"),
  ({}, {"callbacks": gdsd_jax.Callback()}, "^callbacks: must be a list of gdsd_jax.Callback, not <"),
  ({}, {"callbacks": [len]}, "^callbacks: must be a list of gdsd_jax.Callback, not .<built-in function len>"),
  ({"objective": {"psi": 0.1}}, {}, "^objective: is a section; its fields are set one by one"),
  ({}, {"reward_weights": [1.0]}, "reward_weights: need rewards, whose weights they are"),
  ({"task.data_dir": "a"}, {"task": gdsd_jax.get_task("arithmetic")}, "task.data_dir: is set, but the task"),
])
def test_what_does_not_fit_is_one_line(tmp_path, changes, arguments, message):
  with pytest.raises(ValueError, match=message):
    gdsd_jax.Trainer(small_config(**changes), tmp_path, **arguments)


def test_prompts_and_completions_as_text():
  tokenizer = gdsd_jax.load_tokenizer("tiny")
  denoiser, params = gdsd_jax.load_pretrained("tiny")
  prompt = gdsd_jax.chat_prompt(tokenizer, [{"role": "user", "content": "Ana has 2 coins and buys 3 more."}])
  tokens, mask = gdsd_jax.encode_prompts(tokenizer, [prompt, prompt])
  assert tokens.shape == mask.shape and mask.all()
  config = gdsd_jax.SamplerConfig(completion_length=8, steps=8, block_length=8)
  rollout = gdsd_jax.sample(denoiser, params, tokens, mask, jax.random.key(0), config)
  assert all("<|" not in text for text in gdsd_jax.decode_completions(tokenizer, rollout.tokens))


# examples/own_task.py: a task and its rewards in one file


EXAMPLE = REPOSITORY / "examples" / "own_task.py"


def test_the_example_of_an_own_task_runs(tmp_path):
  config = small_config(**{
    "steps": 1, "task.name": f"{EXAMPLE}:Shopping", "task.rewards": ("task", f"{EXAMPLE}:steady")})
  trainer = gdsd_jax.Trainer(config, tmp_path)
  trainer.train()
  before, row = read_rows(tmp_path / "metrics.jsonl")
  assert 0 <= row["reward/right"] <= 1 and {"reward/answered", "reward/steady"} < row.keys()
  assert row["reward"] >= row["reward/right"] and 0 <= before["eval/accuracy"] <= 1
  task = trainer.sampler.task
  example = {"question": "Sam has 10 books and buys 9 more.", "answer": "19"}
  texts = [f"<reasoning>10+9={result}</reasoning><answer>19</answer>" for result in (19, 18)] + ["19"]
  assert [(grade.rewards, grade.accuracy) for grade in task.grade(texts, [example] * 3)] == [
    ({"right": 1.0, "answered": 0.2, "steady": 0.2}, 1.0), ({"right": 1.0, "answered": 0.2, "steady": 0.0}, 1.0),
    ({"right": 0.0, "answered": 0.0, "steady": None}, 0.0)]


@pytest.mark.slow
def test_a_copy_of_the_example_raises_its_own_rewards(tmp_path):
  """Both commands of it, in a folder outside the repository."""
  (tmp_path / "examples").mkdir()
  shutil.copy(EXAMPLE, tmp_path / "examples")
  text = EXAMPLE.read_text().replace("\\\n", "")
  script, command = (shlex.split(line) for line in text.splitlines() if line.startswith(("  python ", "  gdsd-train ")))
  told = run(tmp_path, [sys.executable, *script[1:]])
  assert told.splitlines()[-1].startswith("Eva has 11 books") and "<answer>" in told.splitlines()[-1]
  rows = read_rows(tmp_path / "runs" / "own_task" / "metrics.jsonl")
  rewards = [row["reward"] for row in rows[1:]]
  assert len(rewards) == 25 and np.mean(rewards[-10:]) > np.mean(rewards[:5]) + 0.1
  assert rows[-1]["eval/reward"] > rows[0]["eval/reward"]
  run(tmp_path, [sys.executable, str(REPOSITORY / "launch" / "train.py"), *command[1:]])
  again = read_rows(tmp_path / "runs" / "shopping" / "metrics.jsonl")
  assert [row["reward"] for row in again[1:]] == rewards  # it is the same run


def run(folder, command):
  environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "XLA_FLAGS": ""}  # compiled as a user's is, faster
  result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
  assert result.returncode == 0, result.stderr
  return result.stdout
