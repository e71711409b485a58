"""Sweeps: a command line with several values of some fields, and the grid of runs that it stands for."""

from collections.abc import Iterator, Mapping, Sequence
import itertools
import re
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from gdsd_jax import own_code
from gdsd_jax.checks import require
from gdsd_jax.objectives.named import objective_class
from gdsd_jax.runs.config import RunConfig
from gdsd_jax.runs.config_dict import run_config
from gdsd_jax.runs.given import load_config, set_fields
from gdsd_jax.tasks import get_task, task_class

_FLAG = re.compile(r"--?config\.([\w.]+)(?:=(.*))?", re.DOTALL)
# What says which fields a section has besides those that all recipes have.
_NAMED_BY = {"objective": "objective.name", "sampler": "sampler.kind", "task": "task.name"}
_UNSET = "None"  # as a flag of one field has it, too; what must have a value says so
# Text that users write, in which a comma is a comma; of a task all but its name and its numbers.
_TEXTS = ("eval.prefill", "log.wandb_project")


def split_grid(arguments: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
  """(arguments that all runs share, the values of each swept field by its path) of a command line.

  A field is swept where its flag has several values with commas between. Numbers and switches are always, names such as
  `objective.name` or `model.path` where no value has a space. Tuples are not, nor is text that users write: `task.*`
  but for `task.name`, numbers and switches, `eval.prefill`, and `log.wandb_project`. Fields that only some objective,
  task or sampler has, the user's own, too, are what these declare.
  """
  shared, grid, config, given = [], {}, None, list(_flags(arguments))
  names = {path: value.split(",") for _, path, value in given if path in _NAMED_BY.values() and value}
  for words, path, value in given:
    if value and "," in value:
      config = _recipe(arguments) if config is None else config
      if _is_swept(_kind(config, path, names), path, value):
        grid[path] = value.split(",")
        continue
    shared += words
  return shared, grid


def _flags(arguments: Sequence[str]) -> Iterator[tuple[list[str], str | None, str | None]]:
  """(words, path, value) of each flag of a recipe's field; of anything else its word alone."""
  rest = list(arguments)
  while rest:
    words = [rest.pop(0)]
    match = _FLAG.fullmatch(words[0])
    if match and match[2] is None and rest and not rest[0].startswith("-"):
      words.append(rest.pop(0))
    yield words, match and match[1], match and (words[1] if len(words) > 1 else match[2])


def _recipe(arguments: Sequence[str]) -> ConfigDict:
  """The recipe that a command line names; an empty one where there is none, which the flag itself tells."""
  for flag, following in itertools.pairwise([*arguments, ""]):
    match = re.fullmatch(r"--?config(?:=(.*))?", flag)
    if match:
      try:
        return load_config(following if match[1] is None else match[1])
      except Exception:  # a recipe may raise whatever it likes
        break
  return ConfigDict()


def _is_swept(kind: type | None, path: str, value: str) -> bool:
  if kind in (int, float, bool):
    return True
  is_text = path in _TEXTS or (path.startswith("task.") and path != "task.name")
  return kind is str and not is_text and not re.search(r"\s", value)


def _kind(config: ConfigDict, path: str, names: Mapping[str, Sequence[str]]) -> type | None:
  """The type of a field; None where there is no such field.

  names: objectives, tasks and samplers that a command line names, by the path of the field that does so.
  """
  *sections, name = path.split(".")
  found = config
  for section in sections:
    found = found.get(section)
    if not isinstance(found, ConfigDict):
      return None
  if name in found:
    return found.get_type(name)
  if len(sections) != 1 or sections[0] not in _NAMED_BY:
    return None
  named_by = _NAMED_BY[sections[0]]
  things = names.get(named_by) or filter(None, [found.get(named_by.partition(".")[2])])  # pretraining names no sampler
  return next(filter(None, (_declared(sections[0], thing).get(name) for thing in things)), None)


def _declared(section: str, name: str) -> dict[str, type | None]:
  """Field -> type of those that an objective, task or sampler declares; none where it cannot be had, as runs tell."""
  more = own_code.kinds_of(get_task) if section == "task" else {}
  try:
    if own_code.is_own(name):
      return more | own_code.kinds_of(own_code.load(name, _NAMED_BY[section]))
    ours = {"objective": objective_class, "task": task_class}.get(section)
    return more | (own_code.kinds_of(ours(name)) if ours else {})
  except (ValueError, OSError):
    return more


class Run(NamedTuple):
  """A run of a sweep: its folder's name, its value of each swept field, and the config that these make."""

  name: str
  setting: dict[str, Any]
  flags: list[str]
  config: RunConfig


def make_runs(config: ConfigDict, grid: Mapping[str, Sequence[str]]) -> list[Run]:
  """Every combination of the grid's values, checked. Raises ValueError, one line that names the flag or the field."""
  last = {path: path.rpartition(".")[2] for path in grid}
  short = {path: name if list(last.values()).count(name) == 1 else path for path, name in last.items()}
  values = {path: _values(_kind(config, path, grid), path, texts) for path, texts in grid.items()}
  runs = []
  for texts, setting in zip(itertools.product(*grid.values()), itertools.product(*values.values()), strict=True):
    name = ",".join(f"{short[path]}={text.replace('/', '_')}" for path, text in zip(grid, texts))
    fields = config.copy_and_resolve_references()
    set_fields(fields, dict(zip(grid, setting)))
    flags = [_flag(config, path, text, value) for path, text, value in zip(grid, texts, setting)]
    runs.append(Run(name, dict(zip(grid, setting)), flags, run_config(fields)))
  return runs


def _flag(config: ConfigDict, path: str, text: str, value: Any) -> str:
  """What gives a run its value: as Python writes it where the recipe lacks the field, whose kind no flag knows then."""
  section, _, name = path.rpartition(".")
  known = name in config.get(section, {}) if section in _NAMED_BY else True
  return f"--config.{path}={text if known else repr(value)}"


def _values(kind: type, path: str, texts: Sequence[str]) -> list[Any]:
  said, found = f"--config.{path}={','.join(texts)}", []
  switches = {"true": True, "1": True, "false": False, "0": False}
  kinds = {int: "whole number", float: "number", bool: "true or false", str: "name"}
  for text in texts:
    try:
      if not text:
        raise ValueError
      value = None if text == _UNSET else switches[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
      raise ValueError(f"{said}: {text!r} is no {kinds[kind]}; the values of a sweep have commas between") from None
    require(value not in found, said, f"{text!r} is there twice")
    found.append(value)
  return found
