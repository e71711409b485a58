"""The runs of a comparison: recipes of its tasks with what is set for each objective, and nothing of another's."""

import dataclasses
import functools
from typing import Any

from gdsd_jax.comparison.config import ComparisonConfig
from gdsd_jax.objectives.named import ObjectiveFields
from gdsd_jax.runs.config_dict import flatten, run_config
from gdsd_jax.runs.given import load_config
from gdsd_jax.training.sweep_grid import Run

RATE = "optimizer.learning_rate"
# What recipes say of their own objective, and none of a comparison's takes over.
_OF_RECIPE = (*(field.name for field in dataclasses.fields(ObjectiveFields) if field.name != "name"),
              "num_mc", "advantages")


def rate_set(config: ComparisonConfig, task: str, objective: str) -> float | None:
  """The learning rate that is set for an objective on a task; None where it is to be chosen among several."""
  given = config.changes(task, objective).get(RATE)
  return config.learning_rates[0] if given is None and len(config.learning_rates) == 1 else given


def rate_runs(config: ComparisonConfig, task: str, objective: str) -> list[Run]:
  """The runs by which a learning rate is chosen for an objective; none where one is set, or another's is taken."""
  if rate_set(config, task, objective) is not None or config.rate_of(objective) != objective:
    return []
  return [make_run(config, "rates", task, objective, rate, seed)
          for seed in config.sweep_seeds for rate in sorted(config.learning_rates)]


def make_run(config: ComparisonConfig, stage: str, task: str, objective: str, rate: float, seed: int) -> Run:
  """A run, named STAGE/TASK,OBJECTIVE,rate=…,seed=…. Raises ValueError, one line, where what is set does not fit."""
  recipe = config.tasks[task].recipe
  before = _fields_of(recipe)
  unset = {f"objective.{name}": None for name in _OF_RECIPE}
  changes = unset | config.changes(task, objective) | {RATE: rate, "seed": seed}
  changed = {path: value for path, value in changes.items() if path not in before or before[path] != value}
  try:
    made = run_config(load_config(recipe, {path: _frozen(value) for path, value in changed.items()}))
  except ValueError as error:
    raise ValueError(f"objective {objective} on task {task}: {error}") from None
  name = f"{stage}/{task},{objective},rate={rate},seed={seed}"
  setting = {"stage": stage, "task": task, "objective": objective, "learning_rate": rate, "seed": seed}
  flags = [f"--config={recipe}", *(f"--config.{path}={_frozen(value)}" for path, value in changed.items())]
  return Run(name, setting, flags, made)


@functools.cache
def _fields_of(recipe: str) -> dict[str, Any]:
  return flatten(load_config(recipe).to_dict())


def _frozen(value: Any) -> Any:
  return tuple(value) if isinstance(value, list) else value
