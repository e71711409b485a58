"""A task of the user's own: all that it answers is checked, and its mistakes are told with their file and line."""

from collections.abc import Mapping, Sequence
import inspect
from typing import Any

from gdsd_jax import own_code
from gdsd_jax.checks import require_kinds
from gdsd_jax.tasks import base


def load_task(reference: str, options: Mapping[str, Any]) -> "OwnTask":
  """The task that a class or function of the user's makes of the options. ValueError or OSError, one line."""
  make = own_code.load(reference, "task.name")
  if not callable(make):
    raise ValueError(f"task.name: {reference} must be a class or a function that makes a task, not {make!r:.80}")
  _check_options(make, reference, options)
  try:
    task = make(**options)
  except own_code.RAISED as error:  # the user's own
    raise ValueError(f"task.name: {own_code.described(error, make)}") from error
  return OwnTask(task, own_code.at(make) + reference)


def _check_options(make: Any, reference: str, options: Mapping[str, Any]) -> None:
  try:
    signature = inspect.signature(make)
  except ValueError:  # a built-in type, which has no signature to look at; calling it tells
    return
  try:
    signature.bind(**options)
  except TypeError as error:
    known = ", ".join(signature.parameters) or "none"
    raise ValueError(f"task: {own_code.at(make)}{reference} takes other options: {error}; known are {known}") from None
  require_kinds("task", {name: each.annotation for name, each in signature.parameters.items()}, options)


class OwnTask(base.Task):
  """Stands for a task of the user's.

  Raises ValueError, one line with the user's file and line, where the task raises anything or answers otherwise than
  `Task` says; where the rewards of a completion have other names than those of the first, too.
  """

  is_own = True

  def __init__(self, task: base.Task, called: str = ""):
    if not isinstance(task, base.Task):
      raise ValueError(f"task.name: {called or own_code.place(task)} gives {task!r:.80}, which is no gdsd_jax.Task")
    self.task, self.name, self.has_validation = task, task.name, task.has_validation
    self._names: list[str] | None = None  # of the rewards

  def examples(self, split: str) -> Sequence[Mapping[str, Any]]:
    examples = self._call("examples", split)
    if not (hasattr(examples, "__len__") and hasattr(examples, "__getitem__")) or isinstance(examples, Mapping | str):
      self._refuse("examples", f"must give a list of examples, not {examples!r:.80}")
    if len(examples) > 0 and not isinstance(examples[0], Mapping):
      self._refuse("examples", f"must give examples that are dicts, not {examples[0]!r:.80}")
    return examples

  def messages(self, example: Mapping[str, Any]) -> list[dict[str, str]]:
    return self._messages_by("messages", example)

  def evaluation_messages(self, example: Mapping[str, Any]) -> list[dict[str, str]]:
    # What is nearest to the user of the two: a class that asks one of our tasks' problems by other messages means it.
    defined = (cls.__dict__.keys() & {"messages", "evaluation_messages"} for cls in type(self.task).__mro__)
    return self._messages_by(min(next(filter(None, defined))), example)

  def _messages_by(self, method: str, example: Mapping[str, Any]) -> list[dict[str, str]]:
    messages = self._call(method, example)
    whole = isinstance(messages, list | tuple) and len(messages) > 0 and all(map(base.is_message, messages))
    if not whole:
      self._refuse(method, f"must give chat messages, each a dict of `role` and `content`, not {messages!r:.80}")
    return messages

  def reference_answer(self, example: Mapping[str, Any]) -> str | None:
    answer = self._call("reference_answer", example)
    return None if answer is None else str(answer)

  def grade(self, completions: Sequence[str], examples: Sequence[Mapping[str, Any]]) -> list[base.Grade]:
    grades = self._call("grade", completions, examples)
    if not isinstance(grades, list | tuple) or not all(isinstance(grade, base.Grade) for grade in grades):
      self._refuse("grade", f"must give a list of gdsd_jax.Grade, not {grades!r:.80}")
    if len(grades) != len(completions):
      self._refuse("grade", f"gave {len(grades)} grades for {len(completions)} completions")
    for grade in grades:
      if None in grade.rewards.values():
        self._refuse("grade", f"must give rewards that are numbers, not {grade.rewards}")
      self._names = self._names or list(grade.rewards)
      if set(grade.rewards) != set(self._names):
        names, first = ", ".join(grade.rewards), ", ".join(self._names)
        self._refuse("grade", f"gave the rewards {names} after {first}: they must have the same names every time")
    return list(grades)

  def begin_step(self, step: int, steps: int) -> None:
    self._call("begin_step", step, steps)

  def _call(self, method: str, *arguments):
    try:
      return getattr(self.task, method)(*arguments)
    except own_code.RAISED as error:  # the user's own
      if method == "examples" and isinstance(error, ValueError | OSError) and not own_code.came_through(error):
        raise  # of a source, which says where
      raise ValueError(own_code.described(error, self._function(method))) from error

  def _refuse(self, method: str, message: str):
    function = self._function(method)
    raise ValueError(f"{own_code.at(function)}{function.__qualname__} {message}")

  def _function(self, method: str):
    """The function of the user's that answers: `grade` may be ours, and call theirs."""
    for name in (method, "grade_one", "score") if method == "grade" else (method,):
      if getattr(type(self.task), name) is not getattr(base.Task, name):
        return getattr(type(self.task), name)
    return type(self.task)
