"""launch/sample.py as it runs: in a terminal, piped, with a checkpoint, beside Trainer.sample and an evaluation."""

import contextlib
import json
import os
import pty
import select
import subprocess
import sys
import termios
import time

from commands import run_command
from conftest import REPOSITORY
import numpy as np
import pytest
from recipes import load
from test_evaluate import make_run

from gdsd_jax.chat.answers import Answering
from gdsd_jax.chat.config import sample_config
from gdsd_jax.evaluation.protocol import evaluate_model
from gdsd_jax.runs.chosen_model import ChosenModel
from gdsd_jax.runs.config_dict import run_config
from gdsd_jax.tasks import get_task
from gdsd_jax.training.trainer import Trainer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_runs")]

QUESTION = "Tom has 3 apples and buys 2 more. How many apples does Tom have?"
TINY = "--config=configs/gdsd_math.py"


class Terminal:
  """A command in a terminal of its own."""

  def __init__(self, *arguments):
    self.process, self.screen = pty.fork()
    if self.process == 0:
      os.chdir(REPOSITORY)
      os.execv(sys.executable, [sys.executable, "launch/sample.py", *arguments])
    self.said = self.unread = ""

  def until(self, text: str, seconds: float = 400) -> str:
    """What comes on the screen up to a text."""
    deadline = time.monotonic() + seconds
    while text not in self.unread:
      assert time.monotonic() < deadline, f"{text!r} did not come: {self.said[-2000:]}"
      self._read(1.0)
    before, _, self.unread = self.unread.partition(text)
    return before + text

  def type(self, text: str) -> None:
    os.write(self.screen, text.encode())

  def end(self, seconds: float = 60) -> int:
    """The exit status, and all that was left to say in `said`."""
    deadline = time.monotonic() + seconds
    with contextlib.suppress(OSError):  # nobody has the terminal any more
      while time.monotonic() < deadline:
        self._read(1.0)
    return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])

  def _read(self, seconds: float) -> None:
    if select.select([self.screen], [], [], seconds)[0]:
      text = os.read(self.screen, 65536).decode(errors="replace")
      self.said += text
      self.unread += text


def test_a_chat_in_a_terminal():
  terminal = Terminal(TINY, "--config.sampler.temperature=0.0")
  terminal.until("/help tells")
  terminal.until("> ")
  terminal.type(f"{QUESTION}\n")
  assert "compiled in" in terminal.until("░")  # it comes while it is computed
  terminal.until("step ")
  assert "</answer>" in terminal.until("tokens/s without compiling (") and " s)" in terminal.until("seed 0")
  terminal.until("> ")
  terminal.type("I am <|eot_id|>\n")
  terminal.until("error: a user message holds <|eot_id|>")
  terminal.until("> ")
  terminal.type("word " * 300 + "\n")
  terminal.until("exceed the 256 positions of tiny; /reset begins a new chat")
  terminal.until("> ")
  terminal.type("\x04")
  assert terminal.end() == 0


def test_ctrl_c_ends_the_answer_and_at_the_prompt_the_chat():
  terminal = Terminal(TINY, "--config.sampler.completion_length=192", "--config.sampler.steps=192",
                      "--config.sampler.early_stop=False")
  settings = termios.tcgetattr(terminal.screen)
  for _ in range(2):  # the second is as good as the first
    terminal.until("> ")
    terminal.type(f"{QUESTION}\n")
    terminal.until("step 1")
    terminal.type("\x03")
    terminal.until("stopped with")
    terminal.until("the chat goes on without this turn")
  terminal.until("> ")
  terminal.type("\x03")
  assert terminal.end() == 0
  assert terminal.said.rfind("\x1b[?25h") > terminal.said.rfind("\x1b[?25l")  # the cursor is seen again
  assert termios.tcgetattr(terminal.screen) == settings


def test_ctrl_c_in_a_single_answer_shows_what_there_is():
  terminal = Terminal(TINY, f"--prompt={QUESTION}", "--config.sampler.completion_length=192",
                      "--config.sampler.steps=192", "--config.sampler.early_stop=False")
  terminal.until("step 1")
  terminal.type("\x03")
  terminal.until("stopped with")
  assert terminal.end() == 130


def test_what_is_piped_gets_the_answer_and_a_line(tmp_path):
  command = [sys.executable, "launch/sample.py", "--model=tiny", f"--html={tmp_path}/a.html"]
  result = subprocess.run(command, input=QUESTION + "\n", cwd=REPOSITORY, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr
  answer, numbers = result.stdout.splitlines()
  assert answer.startswith("<reasoning>3+2=") and "tokens/s without compiling (" in numbers
  assert result.stderr == ""
  assert QUESTION in (tmp_path / "a.html").read_text() and "3+2=" in (tmp_path / "a.html").read_text()


@pytest.mark.parametrize("split", ["test", "train"])
def test_a_problem_is_asked_by_its_index_and_graded_as_the_task_does(split):
  result = run_command("launch/sample.py", TINY, "--index=7", f"--split={split}", "--json")
  assert result.returncode == 0, result.stderr
  told, task = json.loads(result.stdout), get_task("arithmetic")
  example = task.examples(split)[7]
  [grade] = task.grade([told["text"]], [example])
  assert told["messages"] == task.messages(example) and told["reference"] == str(example["answer"])
  assert (told["rewards"], told["accuracy"]) == (grade.rewards, grade.accuracy)


def recipe(**changes):
  config = load("gdsd_math")
  config.update_from_flattened_dict({"eval.num_examples": 8, "eval.batch_size": 8, **changes})
  return config


def ask(config, chosen=None, seed=0, question=QUESTION):
  given = {"seed": 0}
  answering = Answering(sample_config(config, given, chosen or ChosenModel()), chosen or ChosenModel())
  sampler = sample_config(config, given, ChosenModel()).sampler
  prompt = answering.prompt([{"role": "user", "content": question}], sampler)
  return answering.answer(prompt, sampler, seed)


def test_the_text_is_that_of_trainer_sample(tmp_path):
  trainer = Trainer(run_config(recipe()), tmp_path / "run")
  for seed in (0, 3):
    answer = ask(recipe(), seed=seed)
    assert [answer.text] == trainer.sample([QUESTION], seed=seed)


def test_the_text_is_that_of_an_evaluation(tmp_path):
  evaluate_model(run_config(recipe()), ChosenModel(), tmp_path, 3)
  rows = [json.loads(line) for line in (tmp_path / "generations.jsonl").read_text().splitlines()]
  for row in rows:
    question = get_task("arithmetic").examples("test")[row["index"]]["question"]
    assert ask(recipe(**{"sampler.temperature": 0.0}), question=question).text == row["completion"]


def test_a_runs_checkpoint_answers(tmp_path):
  """Another one than the model that it began with."""
  run = make_run(tmp_path / "run")
  answers = {}
  for step in ("latest", "best", "3"):
    chosen = ChosenModel(run, step).resolved()
    answers[chosen.step] = ask(recipe(), chosen)
  assert list(answers) == ["4", "2", "3"]
  assert np.any(answers["4"].confidence != answers["2"].confidence)
