"""A task of the user's own: what it must have, what it may be, and what its mistakes say."""

import contextlib
import re

from etils import epath
import pytest

from gdsd_jax.runs.config_dict import run_config
from gdsd_jax.runs.given import load_config
from gdsd_jax.tasks import base, get_task, train_and_validation, try_out
from gdsd_jax.training.prepare import prepare

GOOD = """
import dataclasses
import gdsd_jax

@dataclasses.dataclass(frozen=True)
class Shorter(gdsd_jax.Task):
  limit: int = 10

  def examples(self, split):
    return [{"question": f"{split} {i}"} for i in range(20)]

  def messages(self, example):
    return [{"role": "user", "content": example["question"]}]

  def score(self, completion, example):
    return {"short": len(completion) <= self.limit}
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
  """Makes the task of a file that differs from GOOD in a line."""
  monkeypatch.chdir(tmp_path)

  def make(old="", new="", **options):
    assert old in GOOD
    (tmp_path / "own.py").write_text(GOOD.replace(old, new))
    return get_task("own.py:Shorter", **options)
  return make


def test_a_class_in_a_file_is_a_task(own):
  task = own(limit=2)
  assert (task.name, task.is_own, task.has_validation) == ("Shorter", True, False)
  example = task.examples("test")[3]
  assert task.messages(example) == [{"role": "user", "content": "test 3"}]
  assert task.grade(["ab", "abc"], [example] * 2) == [base.Grade({"short": 1.0}), base.Grade({"short": 0.0})]
  assert task.score("ab", example) == {"short": 1.0}


def test_accuracy_may_stand_beside_the_score(own):
  task = own("  limit: int = 10\n", "  limit: int = 10\n  def accuracy(self, completion, example): return 0.5\n")
  assert task.grade(["ab"], [{}]) == [base.Grade({"short": 1.0}, 0.5)]


def test_a_function_may_make_the_task(own):
  task = own("@dataclasses.dataclass(frozen=True)\nclass Shorter", "def Shorter(limit=3): return Short(limit)\n"
             "@dataclasses.dataclass(frozen=True)\nclass Short")
  assert task.grade(["abcd"], [{}]) == [base.Grade({"short": 0.0})]


def test_a_tenth_of_the_training_problems_is_kept_for_validation(own):
  train, validation = train_and_validation(own(), 256)
  assert [e["question"] for e in validation] == ["train 18", "train 19"]
  assert [e["question"] for e in train] == [f"train {i}" for i in range(18)]
  train, validation = train_and_validation(get_task("arithmetic"), 3)
  assert len(train) == 9000 and len(validation) == 400


@pytest.mark.parametrize("old, new, message", [
  ("class Shorter(gdsd_jax.Task)", "class Shorter", "line 5: own.py:Shorter gives Shorter(limit=10), which"),
  ("  limit: int", "  limit: int = 1 / 0 #", "own.py, line 7: ZeroDivisionError: division by zero"),
  ("  def examples(self, split)", "  def problems(self, split)", "NotImplementedError: Shorter must have `examples`"),
  ('return [{"question"', 'return [0 and {"question"', "line 9: Shorter.examples must give examples that are"),
  ('    return [{"question"', '    return {} and [{"question"', "own.py, line 9: Shorter.examples must give a list of"),
  ('return [{"role"', 'return "question" or [{"role"', "own.py, line 12: Shorter.messages must give chat messages"),
  ('example["question"]', 'example["problem"]', "own.py, line 13: KeyError: 'problem'"),
  ("  def score(self", "  def marks(self", "own.py, line 5: NotImplementedError: Shorter must have `score`"),
  ('{"short": len(completion) <= self.limit}', "1.0", "line 15: ValueError: rewards: must be a dict of names"),
  ('{"short": len(completion) <= self.limit}', "None", "line 15: ValueError: rewards: must be a dict of"),
  ('{"short": len(completion) <= self.limit}', '"good"', "line 15: ValueError: rewards: must be a dict of"),
  ('{"short": len(completion) <= self.limit}', "{}", "line 15: ValueError: rewards: must be a dict of"),
  ("len(completion) <= self.limit", 'float("nan")', "line 15: ValueError: reward 'short': must be a finite number"),
  ("len(completion) <= self.limit", '"1"', "line 15: ValueError: reward 'short': must be a number, not '1'"),
  ("len(completion) <= self.limit", "None", "own.py, line 15: Shorter.score must give rewards that are numbers"),
  ('{"short":', '{completion:', "line 15: Shorter.score gave the rewards The answer is 1. after No answer.:"),
  ("len(completion) <= self.limit", "1 / (len(completion) - 10)", "own.py, line 16: ZeroDivisionError"),
])
def test_mistakes_are_one_line_with_file_and_line(own, old, new, message):
  with pytest.raises(ValueError, match=re.escape(message)) as caught:
    task = own(old, new)
    try_out(task, task.examples("train"))
  assert len(str(caught.value).splitlines()) == 1


def test_a_task_without_problems_is_told(own):
  with pytest.raises(ValueError, match="^task.train_source: Shorter has too few problems .0 for training, 0 for val"):
    train_and_validation(own('return [{"question"', 'return [] and [{"question"'), 256)


def test_what_is_tried_out_says_whether_it_ended_as_completions_do(own):
  task = own("len(completion) <= self.limit", "completion.ended")
  try_out(task, task.examples("train"))


@pytest.mark.parametrize("accuracy", ["", "  def accuracy(self, completion, example): return 0.5\n"])
def test_groups_are_left_out_by_accuracy_where_the_task_has_one(own, tmp_path, accuracy):
  """Which is told before anything is compiled."""
  own("  limit: int = 10\n", "  limit: int = 10\n" + accuracy)
  config = run_config(load_config("gdsd_math:tiny", {"task.name": "own.py:Shorter", "objective.largest_accuracy": 0.9}))
  with contextlib.nullcontext() if accuracy else pytest.raises(
      ValueError, match="^objective.least_accuracy: needs a task that knows right from wrong, which Shorter does not$"):
    prepare(config, epath.Path(tmp_path / "run"), allow_changed_inputs=False)


def test_options_that_it_does_not_take_are_told(own):
  with pytest.raises(ValueError, match="own.py:Shorter takes other options: got an unexpected keyword argument 'lmit'; "
                                       "known are limit$"):
    own(lmit=3)


def test_an_option_of_another_kind_than_it_is_declared_is_named(own):
  with pytest.raises(ValueError, match="^task.limit: must be a whole number, not 'ten'$"):
    own(limit="ten")
  said = own("  limit: int = 10", "  from typing import Annotated\n  limit: Annotated[int, ['tokens']] = 10", limit=2)
  assert said.grade(["abc"], [{}]) == [base.Grade({"short": 0.0})]  # such a declaration names none of the kinds


def test_a_task_that_is_made_already_is_taken_and_checked():
  class Half(base.Task):
    def score(self, completion, example):
      return {completion: 1.0}

  task = get_task(Half())
  assert task.name == "Half"
  task.grade(["a"], [{}])
  with pytest.raises(ValueError, match=r"test_own_task.py, line \d+: .*score gave the rewards b after a"):
    task.grade(["b"], [{}])
