"""Tasks: problems to solve, prompts, answers and rewards. Host code, free of JAX."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import importlib
from typing import Any

from gdsd_jax import own_code
from gdsd_jax.checks import require, require_kinds
from gdsd_jax.tasks.base import Completion, Task

# Task name -> module and class, imported only when asked for: a task may need packages that others do not.
TASKS = {
  "arithmetic": ("gdsd_jax.tasks.arithmetic", "ArithmeticTask"),
  "code": ("gdsd_jax.tasks.code", "CodeTask"),
  "countdown": ("gdsd_jax.tasks.countdown", "CountdownTask"),
  "gsm8k": ("gdsd_jax.tasks.gsm8k", "Gsm8kTask"),
  "gsm8k_xml": ("gdsd_jax.tasks.gsm8k", "Gsm8kXmlTask"),
  "math": ("gdsd_jax.tasks.math_problems", "MathTask"),
  "math_xml": ("gdsd_jax.tasks.math_problems", "MathXmlTask"),
  "prompts": ("gdsd_jax.tasks.prompts", "PromptsTask"),
  "sudoku": ("gdsd_jax.tasks.sudoku", "SudokuTask"),
}


def get_task(
  name: str | Task, *, rewards: Sequence[str | Callable] = (), reward_weights: Sequence[float] = (),
  reward_chat: bool | None = None, reward_seconds: float | None = None, reward_late: float = 0.0, **options,
) -> Task:
  """The task of that name: ours, `get_task("gsm8k", test_source="a.jsonl")`, or the user's, `get_task("my.py:MyTask")`.

  Args:
    name: one of ours, FILE.py:NAME or PACKAGE.MODULE:NAME, or a task that is made already.
    rewards: reward functions in place of the task's own rewards, see `tasks/rewards.py`.
    reward_weights, reward_chat, reward_seconds, reward_late: their weights, and see `RewardedTask`.
    options: fields of the task, or the arguments of the user's.

  Raises ValueError or OSError, one line: an unknown name or option, or the file and line of the user's own mistake.
  """
  task = _named(name, options)
  settings = {"chat": reward_chat, "seconds": reward_seconds, "late": reward_late}
  require_kinds("task", get_task.__annotations__, {f"reward_{name}": value for name, value in settings.items()})
  if not rewards:
    require(not reward_weights, "task.reward_weights", "needs task.rewards, whose weights they are")
    for field, value in settings.items():
      require(not value and value is not False, f"task.reward_{field}", "needs task.rewards, of whose functions it is")
    require(task.has_grader, "task.rewards",
            f"{task.name} has no reward of its own without task.answer_column; give one")
    return task
  from gdsd_jax.tasks.rewards import load_rewards, RewardedTask

  require("task" not in rewards or task.has_grader, "task.rewards",
          f"{task.name} has no reward of its own without task.answer_column")
  return RewardedTask(task, load_rewards(rewards, reward_weights), **settings)


def _named(name: str | Task, options: Mapping[str, Any]) -> Task:
  if not isinstance(name, str) or own_code.is_own(name):
    from gdsd_jax.tasks.own import load_task, OwnTask

    return load_task(name, options) if isinstance(name, str) else OwnTask(name)
  made = task_class(name)
  known = {field.name: field.type for field in dataclasses.fields(made)}
  for option in options:
    require(option in known, f"task.{option}", f"unknown option of task {name!r}, known are {', '.join(known)}")
  require_kinds("task", known, options)
  return made(**options)


def task_class(name: str) -> type[Task]:
  """The class of a task of ours. ValueError for another name."""
  require(name in TASKS, f"task.name={name!r}", f"unknown task, known are {', '.join(sorted(TASKS))}; one of your own"
                                                 " is FILE.py:NAME")
  module, class_name = TASKS[name]
  return getattr(importlib.import_module(module), class_name)


def train_and_validation(task: Task, size: int) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]:
  """The problems to train on, and those that decide which checkpoint is best.

  Without a validation split the latter are the last `size` training problems, at most a tenth, which are left out of
  the former. ValueError where there are too few.
  """
  train = task.examples("train")
  if task.has_validation:
    validation = task.examples("validation")
  else:
    split = max(len(train) - min(size, max(len(train) // 10, 1)), 0)
    validation = [train[i] for i in range(split, len(train))]  # no slices: the user's own may be any kind of sequence
    train = [train[i] for i in range(split)]
  require(len(train) > 0 and len(validation) > 0, "task.train_source",
          f"{task.name} has too few problems ({len(train)} for training, {len(validation)} for validation)")
  return train, validation


def try_out(task: Task, examples: Sequence[Mapping[str, Any]]) -> bool:
  """Asks and grades a first example, where the task or its rewards are the user's, before anything is compiled.

  Returns whether completions are right or wrong, and have no reward alone.
  Raises ValueError, one line with the user's file and line, where they answer otherwise than they must.
  """
  if task.is_own:
    task.messages(examples[0])
    task.reference_answer(examples[0])
    texts = [Completion("No answer."), Completion("The answer is 1.", ended=False)]
    grades = task.grade(texts, [examples[0]] * 2, *([[[0], [0, 1]]] if task.takes_ids else []))
    return all(grade.accuracy is not None for grade in grades)
  return True
