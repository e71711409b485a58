"""Configs as programs give them: a recipe by its name, and tasks and rewards as objects."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from gdsd_jax.checks import did_you_mean_field, KINDS, require
from gdsd_jax.runs.config import RunConfig, TaskConfig
from gdsd_jax.runs.config_dict import flatten, run_config
from gdsd_jax.runs.recipe_files import recipe_file
from gdsd_jax.tasks import Task

_MAY_BE_OWN = ("task", "objective", "sampler")  # sections whose fields may be those of one's own code, which says them


def load_config(recipe: str, changes: Mapping[str, Any] | None = None) -> ConfigDict:
  """The fields of a recipe, such as "gdsd_math:tiny" or "my_recipe.py", for a program to set.

  `changes` maps paths to values, {"optimizer.learning_rate": 3e-5}, as flags do. ValueError or OSError, one line, where
  there is no such recipe or field.
  """
  config = config_flags.ConfigFileFlagParser("config").parse(recipe_file(recipe))
  set_fields(config, changes or {})
  return config


def set_fields(config: ConfigDict, changes: Mapping[str, Any]) -> None:
  """Sets fields of a recipe by their paths. ValueError, one line, where it has no such field, or of another type."""
  for path, value in changes.items():
    require(not isinstance(config.get(path), ConfigDict), path, "is a section; its fields are set one by one, such as"
            " 'objective.name'")
    try:
      section, _, name = path.partition(".")
      if section in _MAY_BE_OWN and "." not in name:
        with config.unlocked():
          config[section][name] = value
      else:
        config.update_from_flattened_dict({path: value})
    except (KeyError, AttributeError):
      near = did_you_mean_field(path, flatten(config.to_dict()))
      raise ValueError(f"{path}: the config has no field {path!r}{near}") from None
    except TypeError as error:
      kind = KINDS.get(functools.reduce(getattr, path.split(".")[:-1], config).get_type(path.rpartition(".")[2]))
      raise ValueError(f"{path}: must be {kind}, not {value!r:.80}" if kind else
                       f"{path}: {' '.join(str(error).split())}") from None


def as_run_config(config: str | ConfigDict | RunConfig) -> RunConfig:
  """A checked config of whatever a program gives. ValueError or OSError, one line."""
  if isinstance(config, RunConfig):
    return config
  return run_config(load_config(config) if isinstance(config, str) else config)


def with_own(
  config: RunConfig, task: Task | None, rewards: Sequence[str | Callable], weights: Sequence[float]
) -> RunConfig:
  """The config with a task or rewards that are objects; config.json names them."""
  require(not callable(rewards) and not isinstance(rewards, str), "rewards",
          f"must be a list of functions or names, such as [short], not {rewards!r:.80}")
  options, given = dict(config.task.options), dict(config.as_given)
  given["task"] = dict(given["task"])
  if task is not None:
    require(not options, f"task.{next(iter(options), '')}", "is set, but the task is given as an object, made already")
    given["task"]["name"] = _named(type(task))
  if rewards:
    options |= {"rewards": tuple(rewards), "reward_weights": tuple(weights)}
    given["task"] |= {"rewards": [each if isinstance(each, str) else _named(each) for each in rewards],
                      "reward_weights": list(weights)}
  require(bool(rewards) or not weights, "reward_weights", "need rewards, whose weights they are")
  return dataclasses.replace(config, task=TaskConfig(given["task"]["name"], options, task), as_given=given)


def _named(thing: Any) -> str:
  return f"{getattr(thing, '__module__', None)}:{getattr(thing, '__qualname__', type(thing).__qualname__)}"
