"""Reward functions with the signature that TRL's GRPO trainer calls, on the problems of any task.

A function is called with `prompts`, `completions`, `completion_ids` and every column of the rows by keyword, a value
for each completion, and returns a number for each, or None where it does not apply. It may be async. One without
`**kwargs` gets the arguments that it names. `log_metric(name, value)` adds a number to the metrics of the step, and
`trainer_state` has `global_step` and `max_steps`. Functions of a reference can run in processes of their own.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent import futures
import dataclasses
import functools
import inspect
import logging
import types
from typing import Any

from gdsd_jax import own_code
from gdsd_jax.checks import ONLY_RUNS, require
from gdsd_jax.tasks import base
from gdsd_jax.tasks.workers import Workers

_log = logging.getLogger(__name__)

TASKS_OWN = "task"  # stands for the rewards of the task itself among those of functions
_OURS = ("prompts", "completions", "completion_ids", "trainer_state", "log_metric")


@dataclasses.dataclass(frozen=True)
class RewardFunction:
  """A reward by its name, its weight in the sum, and the function that gives it; None for the task's own rewards."""

  name: str
  function: Callable | None
  weight: float = 1.0
  reference: str | None = None  # FILE.py:NAME, where it came from one

  @functools.cached_property
  def parameters(self) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(self.function).parameters

  def accepted(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the function takes. ValueError where it asks for others."""
    kinds = [p.kind for p in self.parameters.values()]
    needed = [name for name, p in self.parameters.items()
              if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if missing := [name for name in needed if name not in arguments]:
      columns = ", ".join(name for name in arguments if name not in _OURS) or "none"
      raise ValueError(f"{own_code.at(self.function)}{self.name}() asks for {', '.join(map(repr, missing))};"
                       f" the rows have the columns {columns}")
    if inspect.Parameter.VAR_KEYWORD in kinds:
      return dict(arguments)
    return {name: value for name, value in arguments.items() if name in self.parameters}

  def checked(self, values: Any, count: int) -> list[float | None]:
    """What the function returned as `count` floats or Nones. ValueError, with its file and line, where it is not."""
    at = f"{own_code.at(self.function)}{self.name}()"
    listed = hasattr(values, "__len__") and hasattr(values, "__iter__")
    if not listed or isinstance(values, str | bytes | Mapping | Set):
      raise ValueError(f"{at} must return a list of {count} rewards, one for each completion, not {values!r:.80}")
    if len(values) != count:
      raise ValueError(f"{at} returned {len(values)} rewards for {count} completions")
    try:
      return [None if value is None else base.number("each reward", value) for value in values]
    except ValueError as error:
      hint = "; None says that it does not apply" if "nan" in str(error) else ""
      raise ValueError(f"{at}: {error}{hint}") from None


def load_rewards(given: Sequence[str | Callable], weights: Sequence[float] = ()) -> tuple[RewardFunction, ...]:
  """Reward functions of references, such as "my_rewards.py:short", and callables; "task" stands for the task's own.

  weights: one for each, all 1 where there are none. ValueError or OSError, one line that names task.rewards.
  """
  require(not weights or len(weights) == len(given), "task.reward_weights",
          f"must be one for each of the {len(given)} rewards, not {tuple(weights)}")
  rewards = []
  for one, weight in zip(given, weights or [1.0] * len(given)):
    weight = base.number("task.reward_weights", weight)
    if one == TASKS_OWN:
      rewards.append(RewardFunction(TASKS_OWN, None, weight))
      continue
    is_reference = isinstance(one, str)
    function = own_code.load(one, "task.rewards") if is_reference else one
    require(callable(function), "task.rewards", f"{one!r:.80} is no function")
    called = getattr(function, "func", function)  # of a functools.partial
    name = one.rpartition(":")[2] if is_reference else getattr(called, "__name__", type(called).__name__)
    rewards.append(RewardFunction(name, function, weight, one if is_reference else None))
  names = [reward.name for reward in rewards]
  require(len(set(names)) == len(names), "task.rewards", f"two have the same name ({', '.join(names)})")
  return tuple(rewards)


class RewardedTask(base.Task):
  """The problems and prompts of a task, with rewards from functions; its accuracy is still the task's own.

  Args:
    task: whose problems they are.
    rewards: see `load_rewards`.
    chat: whether functions see prompts and completions as lists of messages; None: where the row's `prompt` is one.
    seconds: time limit of a function for one completion; each then runs in processes of its own. None: in this one.
    late: the reward of a completion whose time was up.
  """

  is_own = takes_ids = True

  def __init__(self, task: base.Task, rewards: Sequence[RewardFunction], chat: bool | None = None,
               seconds: float | None = None, late: float = 0.0):
    self.task, self.name, self.rewards, self.chat = task, task.name, tuple(rewards), chat
    self.seconds, self.late, self.has_validation = seconds, late, task.has_validation
    self.trainer_state = types.SimpleNamespace(global_step=0, max_steps=0)
    self._metrics: dict[str, list[float]] = {}
    self._is_silent = False  # whether it has said that no reward applies
    require(seconds is None or seconds > 0, "task.reward_seconds", f"must be positive, not {seconds}")
    require(not late or seconds is not None, "task.reward_late", "needs task.reward_seconds, after which it is earned")
    for reward in self.rewards:
      require(seconds is None or reward.function is None or reward.reference is not None, "task.reward_seconds",
              f"{reward.name} can run in a process of its own only when it is given as FILE.py:NAME")

  def examples(self, split: str) -> Sequence[Mapping[str, Any]]:
    return self.task.examples(split)

  def messages(self, example: Mapping[str, Any]) -> list[dict[str, str]]:
    return self.task.messages(example)

  def evaluation_messages(self, example: Mapping[str, Any]) -> list[dict[str, str]]:
    return self.task.evaluation_messages(example)

  def reference_answer(self, example: Mapping[str, Any]) -> str | None:
    return self.task.reference_answer(example)

  def grade(self, completions, examples, completion_ids=None, asked=None) -> list[base.Grade]:
    """Each function sees all completions at once. `completion_ids` are their tokens, for functions that ask.

    `asked` gives the messages that a completion answers, where these are not those of training (`messages`).
    """
    count = len(completions)
    functions = [reward for reward in self.rewards if reward.function is not None]
    arguments = self._arguments(completions, examples, completion_ids, asked or self.messages)
    values = dict(zip([reward.name for reward in functions], self._call_all(functions, arguments, count)))
    own = self.task.grade(completions, examples) if self.task.has_grader else [None] * count
    grades = []
    for i, grade in enumerate(own):
      rewards = {}
      for reward in self.rewards:
        named = grade.rewards if reward.function is None else {reward.name: values[reward.name][i]}
        twice = ", ".join(sorted(rewards.keys() & named.keys()))
        require(not twice, "task.rewards", f"a function and a reward of the task's own are both named {twice}; rename"
                                           " the function")
        rewards |= {name: None if value is None else reward.weight * value for name, value in named.items()}
      grades.append(base.Grade(rewards) if grade is None else dataclasses.replace(grade, rewards=rewards))
      if not self._is_silent and set(rewards.values()) == {None}:
        self._is_silent = True
        _log.warning("no reward applies to a completion, whose advantage is 0: %r", completions[i][:200])
    return grades

  def _arguments(self, completions, examples, completion_ids, asked) -> dict[str, list]:
    """What all functions are called with: a value for each completion, by name."""
    names = dict.fromkeys(name for example in examples for name in example)
    columns = {name: [example.get(name) for example in examples] for name in names}
    prompts, completions = zip(*[self._as_seen(text, each, asked) for text, each in zip(completions, examples)])
    return columns | {"prompts": list(prompts), "completions": list(completions), "completion_ids": completion_ids}

  def _as_seen(self, completion: str, example: Mapping[str, Any], asked: Callable) -> tuple[Any, Any]:
    """(prompt, completion) as functions see them, texts or lists of messages."""
    prompt = example.get("prompt")
    chat = isinstance(prompt, list) if self.chat is None else self.chat
    if chat:
      return asked(example), [{"role": "assistant", "content": completion}]
    return prompt if isinstance(prompt, str) else asked(example)[-1]["content"], completion

  def _call_all(self, functions: Sequence[RewardFunction], arguments, count: int) -> list[list[float | None]]:
    """The values of each function, checked. ValueError, one line with the user's file and line."""
    if self.seconds is not None:
      return [self._call_in_processes(reward, arguments, count) for reward in functions]
    arguments = arguments | {"trainer_state": self.trainer_state, "log_metric": self._log_metric}
    given, waiting = {}, {}
    for reward in functions:
      accepted = reward.accepted(arguments)
      try:
        given[reward.name] = reward.function(**accepted)
      except own_code.RAISED as error:  # the user's own
        raise ValueError(_explained(own_code.described(error, reward.function), arguments)) from error
      if inspect.isawaitable(given[reward.name]):
        waiting[reward.name] = given[reward.name]
    if waiting:
      # In a thread of its own, since a notebook has a loop already.
      with futures.ThreadPoolExecutor(1) as thread:
        finished = thread.submit(asyncio.run, _gathered(waiting.values())).result()
      given |= dict(zip(waiting, finished))
    for reward in functions:
      if isinstance(error := given[reward.name], Exception):
        raise ValueError(_explained(own_code.described(error, reward.function), arguments)) from error
    return [reward.checked(given[reward.name], count) for reward in functions]

  def _call_in_processes(self, reward: RewardFunction, arguments, count: int) -> list[float | None]:
    """One completion at a time, side by side."""
    accepted = reward.accepted(arguments)
    questions = [{name: values and [values[i]] for name, values in accepted.items()} for i in range(count)]
    try:
      replies = _workers(reward.reference, self.seconds).ask(questions)
    except TypeError as error:
      raise ValueError(f"task.reward_seconds: the columns of the rows cannot be sent to a process: {error}") from None
    for reply in replies:
      if reply is not None and "error" in reply:
        raise ValueError(_explained(reply["error"], arguments))
    return reward.checked([self.late if reply is None else reply["value"] for reply in replies], count)

  def begin_step(self, step: int, steps: int) -> None:
    self.task.begin_step(step, steps)
    self.trainer_state.global_step, self.trainer_state.max_steps = step, steps

  def _log_metric(self, name: str, value: float) -> None:
    require(not name.startswith(ONLY_RUNS), f"metric {name!r}", "must have another name: the run's own begin so")
    self._metrics.setdefault(name, []).append(base.number(f"metric {name!r}", value))

  def metrics(self) -> dict[str, float]:
    """Means of what functions have given to `log_metric` since the last time, by name."""
    metrics, self._metrics = self._metrics, {}
    return {name: sum(values) / len(values) for name, values in metrics.items()}


def _explained(mistake: str, arguments: Mapping[str, Any]) -> str:
  """A function's mistake, and how to have completions as it takes them to be, where that is what it says."""
  if isinstance(arguments["completions"][0], str):
    reads_messages = "TypeError: string indices must be integers" in mistake
    return mistake + "; completions are texts here: task.reward_chat=True makes them lists of messages" * reads_messages
  reads_texts = any(said in mistake for said in ("'list' object has no attribute", "got 'list'"))
  return mistake + "; completions are lists of messages here: task.reward_chat=False makes them texts" * reads_texts


async def _gathered(awaitables) -> list:
  return await asyncio.gather(*awaitables, return_exceptions=True)


@functools.lru_cache(maxsize=16)
def _workers(reference: str, seconds: float) -> Workers:
  return Workers("gdsd_jax.tasks.reward_worker", reference, str(seconds))
