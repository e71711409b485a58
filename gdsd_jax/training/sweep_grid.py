"""Sweeps: a command line with several values of some fields, and the grid of runs that it stands for."""

from collections.abc import Mapping, Sequence
import itertools
import re
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from gdsd_jax.checks import require
from gdsd_jax.runs.config import RunConfig
from gdsd_jax.runs.config_dict import run_config
from gdsd_jax.runs.given import load_config

_FLAG = re.compile(r"--?config\.([\w.]+)(?:=(.*))?", re.DOTALL)
# Text that users write, in which a comma is a comma; of a task all but its name and its numbers.
_TEXTS = ("eval.prefill", "log.wandb_project")


def split_grid(arguments: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
  """(arguments that all runs share, the values of each swept field by its path) of a command line.

  A field is swept where its flag has several values with commas between. Numbers and switches are always, names such as
  `objective.name` or `model.path` where no value has a space. Tuples are not, nor is text that users write: `task.*`
  but for `task.name` and numbers, `eval.prefill`, and `log.wandb_project`.
  """
  shared, grid, config, rest = [], {}, None, list(arguments)
  while rest:
    words = [rest.pop(0)]
    match = _FLAG.fullmatch(words[0])
    if match and match[2] is None and rest and not rest[0].startswith("-"):
      words.append(rest.pop(0))
    value = match and (words[1] if len(words) > 1 else match[2])
    if value and "," in value:
      config = _recipe(arguments) if config is None else config
      if _is_swept(config, match[1], value):
        grid[match[1]] = value.split(",")
        continue
    shared += words
  return shared, grid


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


def _is_swept(config: ConfigDict, path: str, value: str) -> bool:
  kind = _kind(config, path)
  if kind in (int, float, bool):
    return True
  is_text = path in _TEXTS or (path.startswith("task.") and path != "task.name")
  return kind is str and not is_text and not re.search(r"\s", value)


def _kind(config: ConfigDict, path: str) -> type | None:
  """The type of a field; None where there is no such field."""
  *sections, name = path.split(".")
  for section in sections:
    config = config.get(section)
    if not isinstance(config, ConfigDict):
      return None
  return config.get_type(name) if name in config else None


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
  values = {path: [_value(config, path, text, texts) for text in texts] for path, texts in grid.items()}
  runs = []
  for texts, setting in zip(itertools.product(*grid.values()), itertools.product(*values.values()), strict=True):
    name = ",".join(f"{short[path]}={text.replace('/', '_')}" for path, text in zip(grid, texts))
    fields = config.copy_and_resolve_references()
    fields.update_from_flattened_dict(dict(zip(grid, setting)))
    flags = [f"--config.{path}={text}" for path, text in zip(grid, texts)]
    runs.append(Run(name, dict(zip(grid, setting)), flags, run_config(fields)))
  return runs


def _value(config: ConfigDict, path: str, text: str, texts: Sequence[str]) -> Any:
  kind, said = _kind(config, path), f"--config.{path}={','.join(texts)}"
  switches = {"true": True, "1": True, "false": False, "0": False}
  kinds = {int: "whole number", float: "number", bool: "true or false", str: "name"}
  require(texts.count(text) == 1, said, f"{text!r} is there twice")
  try:
    if not text:
      raise ValueError
    return switches[text.lower()] if kind is bool else kind(text)
  except (ValueError, KeyError):
    raise ValueError(f"{said}: {text!r} is no {kinds[kind]}; the values of a sweep have commas between") from None
