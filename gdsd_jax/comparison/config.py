"""What a comparison is told: objectives × tasks × seeds, typed and checked; configs/compare.py explains the fields."""

from collections.abc import Collection, Mapping
import dataclasses
import math
from numbers import Real
import re
from typing import Any

from ml_collections import ConfigDict

from gdsd_jax.checks import did_you_mean_field, require, require_at_least, require_one_of, require_seed
from gdsd_jax.runs.config_dict import flatten

JUDGES = ("sampled_reward", "reward", "accuracy")
_LABEL = re.compile(r"[\w-]+")


@dataclasses.dataclass(frozen=True)
class TaskSettings:
  """A task of a comparison; a part of section `tasks`, whose name is the task's label."""

  recipe: str  # such as gdsd_math:tiny
  shared: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # set for all runs of this task
  objectives: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # set for one objective here, by its label


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
  """A comparison; ValueError, one line naming the field, where it does not fit."""

  tasks: Mapping[str, TaskSettings]  # label -> its recipe, and what is set for its runs (shared, objectives.LABEL)
  # Label -> what is set in its runs alone, objective.name among it; rate_of names the objective whose rate it takes.
  objectives: Mapping[str, Any]
  shared: Mapping[str, Any]  # what is set in all runs, in place of what the recipes say
  learning_rates: tuple[float, ...]  # tried for each objective and task, unless one is set for it
  sweep_seeds: tuple[int, ...]  # of the runs that choose a rate
  seeds: tuple[int, ...]  # of the runs that are reported
  judged_by: str = "sampled_reward"  # of the last evaluation: what rates are chosen by
  window: int = 10  # steps that a smoothed curve is a mean of
  # Objectives whose probability of improvement over each other one the tables tell; none for all.
  over_others: tuple[str, ...] = ()
  report: str = "comparison"  # name of the report's files: several comparisons in one folder share their runs

  def __post_init__(self):
    for section in ("tasks", "objectives"):
      require(getattr(self, section), section, "names none")
      for label in getattr(self, section):
        require(_LABEL.fullmatch(label), f"{section}.{label}", "must be letters, digits, _ and -, to name folders")
    for label, given in self.objectives.items():
      require(isinstance(given, Mapping), f"objectives.{label}", f"must be a section of settings, not {given!r}")
      other = given.get("rate_of")
      require(other is None or other in self.objectives and "rate_of" not in self.objectives[other],
              f"objectives.{label}.rate_of", f"{other!r} must be one of the objectives, with a rate of its own")
    for task, objective in self.pairs:
      require("seed" not in self.changes(task, objective), f"seed of {objective} on {task}", "is said by seeds")
    for label, task in self.tasks.items():
      self._require_objectives(f"tasks.{label}.objectives", task.objectives)
    self._require_objectives("over_others", self.over_others)
    require(_LABEL.fullmatch(self.report), "report", f"{self.report!r} must be letters, digits, _ and -")
    require_one_of("judged_by", self.judged_by, JUDGES)
    require_at_least(self, "", window=1)
    self._check_lists()

  def _require_objectives(self, field: str, named: Collection[str]) -> None:
    unknown = [label for label in named if label not in self.objectives]
    require(not unknown, field, f"{', '.join(unknown)} is none of the objectives, {', '.join(self.objectives)}")

  def _check_lists(self) -> None:
    for field in ("learning_rates", "seeds", "sweep_seeds"):
      values = getattr(self, field)
      require(isinstance(values, (tuple, list)), field, f"must be a list, such as (1, 2), not {values!r}")
      require(len(set(values)) == len(values), field, f"has a value twice: {values}")
      for value in values:
        if field == "learning_rates":
          fits = isinstance(value, Real) and 0 < value < math.inf
          require(fits, field, f"must be positive numbers, not {value!r}")
        else:
          require_seed(field, value)
    require(self.learning_rates, "learning_rates", "names none")
    require(self.seeds, "seeds", "names none")
    require(self.sweep_seeds or len(self.learning_rates) == 1, "sweep_seeds",
            "must name some, by whose runs one of learning_rates is chosen")
    both = set(self.seeds) & set(self.sweep_seeds)
    require(not both, "sweep_seeds", f"must be others than seeds, which are reported; {sorted(both)} are in both")

  @property
  def pairs(self) -> list[tuple[str, str]]:
    """(task, objective) of all."""
    return [(task, objective) for task in self.tasks for objective in self.objectives]

  def changes(self, task: str, objective: str) -> dict[str, Any]:
    """Path -> value of what a comparison sets in the recipe of a task, for an objective; the last word counts."""
    of_task = self.tasks[task]
    own = {name: value for name, value in self.objectives[objective].items() if name != "rate_of"}
    found = {}
    for fields in (self.shared, of_task.shared, own, of_task.objectives.get(objective, {})):
      found |= flatten(fields)
    return found

  def rate_of(self, objective: str) -> str:
    """The objective whose learning rate an objective takes, in most cases its own."""
    return self.objectives[objective].get("rate_of", objective)


def comparison_config(config: ConfigDict) -> ComparisonConfig:
  """The fields of a recipe such as configs/compare.py. Raises ValueError, one line naming the field."""
  fields = config.to_dict()
  require(fields.pop("kind", None) == "comparison", "--config", "is not of a comparison; see configs/compare.py")
  known = [field.name for field in dataclasses.fields(ComparisonConfig)]
  for name in fields:
    require(name in known, f"--config.{name}", f"the config has no field {name!r}{did_you_mean_field(name, known)}")
  for field in dataclasses.fields(ComparisonConfig):
    require(field.name in fields or field.default is not dataclasses.MISSING, f"--config.{field.name}",
            "the recipe lacks this field, which has no default")
  tasks = {label: _task(label, given) for label, given in fields.pop("tasks").items()}
  return ComparisonConfig(**fields, tasks=tasks)


def _task(label: str, given: Mapping[str, Any]) -> TaskSettings:
  known = [field.name for field in dataclasses.fields(TaskSettings)]
  require(isinstance(given, Mapping), f"--config.tasks.{label}", f"must be a section with a recipe, not {given!r}")
  for name in given:
    require(name in known, f"--config.tasks.{label}.{name}", f"is none of a task's fields, {', '.join(known)}")
  require("recipe" in given, f"--config.tasks.{label}.recipe", "names no recipe, such as gdsd_math:tiny")
  return TaskSettings(**given)
