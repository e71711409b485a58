"""Writes docs/config_fields.md from the dataclasses of recipes: python docs/config_fields.py."""

import dataclasses
import importlib
import inspect
from pathlib import Path
import re
from typing import Any

from gdsd_jax.command_help import load
from gdsd_jax.comparison.config import ComparisonConfig
from gdsd_jax.objectives.named import objective_class, OBJECTIVES
from gdsd_jax.runs.config import RunConfig
from gdsd_jax.runs.config_dict import base_config, flatten
from gdsd_jax.runs.fields import comments, declared, explanations
from gdsd_jax.supervised.config import FinetuningConfig, PreferenceConfig, PretrainingConfig
from gdsd_jax.tasks import get_task, TASKS
from gdsd_jax.tasks.sources import SourcedTask

FILE = Path(__file__).with_suffix(".md")
INTRODUCTION = """# Every config field

Each is a flag, `--config.FIELD=VALUE`, and a key of `gdsd_jax.load_config(recipe, {"FIELD": value})`. `--help` of a
command shows the same text, with the values of its recipe. Defaults are those of the dataclasses, from which
`docs/config_fields.py` writes this page. The values of recipes, with the reason for each, are in `configs/`.
A tuple is given as `--config.eval.lengths="(16,32)"`, and `--config.objective.beta=None` unsets what may be unset.
"""
SECTIONS = {
  "": "The run",
  "model": "The model that it starts from",
  "task": "Problems and rewards",
  "sampler": "How completions are sampled",
  "masks": "In which states they are scored",
  "objective": "What is learnt of them",
  "optimizer": "The optimizer",
  "eval": "Evaluations",
  "checkpoint": "Checkpoints",
  "mesh": "Devices",
  "log": "What is told",
}
OTHERS = {  # recipes that are no RL run: their dataclass, and what they are
  "sft": (FinetuningConfig, "Fine-tuning on chats"),
  "vrpo": (PreferenceConfig, "Fine-tuning on preferences"),
  "pretrain_tiny": (PretrainingConfig, "Pretraining of a small model"),
  "compare": (ComparisonConfig, "Comparisons"),
}
REWARDS = {  # arguments of `get_task`, which are no dataclass's
  "rewards": "reward functions in place of the task's own rewards, FILE.py:NAME ([how](own_tasks.md#reward-functions))",
  "reward_weights": "one for each of them; none: all are 1",
  "reward_chat": "whether they see lists of messages; None: where the rows' prompt is one",
  "reward_seconds": "time limit for one completion, each then judged in a process of its own; None: there is none",
  "reward_late": "what a completion earns whose time was up",
}

NOT_GIVEN = "is not given: it follows from the tokenizer"
_NONE = ""  # where no default is


def page() -> str:
  """The whole page."""
  said, fields, defaults = [INTRODUCTION], explanations(RunConfig), flatten(base_config().to_dict())
  for section, title in SECTIONS.items():
    of_section = [path for path in fields if ("." in path and path.partition(".")[0]) == (section or False)]
    said += [_titled(title, section), _table((path, defaults[path], fields[path]) for path in of_section)]
    said += _of_tasks() if section == "task" else _of_objectives() if section == "objective" else []
  for recipe, (cls, title) in OTHERS.items():
    said += [f"## {title}\n\n`configs/{recipe}.py`; the values are those of the recipe.\n", *_of_recipe(recipe, cls)]
  return "\n".join(said)


def _titled(title: str, section: str) -> str:
  return f"## {title}\n" if not section else f"## {title}: `{section}`\n"


def _of_tasks() -> list[str]:
  """Fields of `task` beside its name: those of tasks with a source, what single tasks have otherwise, and rewards'."""
  shared = {(field.name, _shown(field.default), comments(SourcedTask)[field.name])
            for field in dataclasses.fields(SourcedTask)}
  classes = {name: getattr(importlib.import_module(module), cls) for name, (module, cls) in TASKS.items()}
  defaults = inspect.signature(get_task).parameters
  rows = [(f"task.{field.name}", "those with a source", field.default, comments(SourcedTask)[field.name])
          for field in dataclasses.fields(SourcedTask)]
  rows += [row for row in _grouped("task", classes) if (row[0].partition(".")[2], *row[2:]) not in shared]
  rows += [(f"task.{name}", "all", defaults[name].default, said) for name, said in REWARDS.items()]
  return ["What tasks have beside it; of your own class, its arguments:\n", _table(rows, of=True)]


def _of_objectives() -> list[str]:
  """Settings of each objective, with its own default, which is what holds where a recipe says nothing."""
  rows = _grouped("objective", {name: objective_class(name) for name in OBJECTIVES})
  return ["What single objectives have, with their own defaults; what one has not is refused:\n", _table(rows, of=True)]


def _grouped(section: str, classes) -> list[tuple]:
  """(path, names, default, explanation) of dataclasses' fields; those that are alike in all of it share a row."""
  found = {}
  for name, cls in classes.items():
    for field in dataclasses.fields(cls):
      found.setdefault((field.name, _shown(field.default), comments(cls)[field.name]), []).append(name)
  rows = [(f"{section}.{field}", ", ".join(names), default, said) for (field, default, said), names in found.items()]
  return sorted(rows, key=lambda row: row[0]) if section == "objective" else rows


def _of_recipe(recipe: str, cls) -> list[str]:
  """Fields that RL has not, and the names of those that it has."""
  values = flatten(load(recipe).to_dict())
  ours, theirs, said = declared(RunConfig), declared(cls), explanations(cls)
  alike = [path for path in theirs if path in ours and ours[path] == theirs[path]]
  rows = [(path, values.get(path, _default(theirs[path].field)), said[path] or NOT_GIVEN) for path in theirs
          if path not in alike]
  if not alike:
    return [_table(rows)]
  return [_table(rows), "As above: " + ", ".join(f"`{path}`" for path in alike) + ".\n"]


def _default(field: dataclasses.Field) -> Any:
  return _NONE if field.default is dataclasses.MISSING else field.default


def _table(rows, of: bool = False) -> str:
  titles = ["field", *(["of"] if of else []), "default", "what it is"]
  lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
  for path, *whose, default, said in rows:
    shown = _shown(default)
    shown = shown.removeprefix(f"{FILE.parents[1]}/")  # a file of ours
    said = re.sub(r"docs/(\w+)\.md", r"[\1](\1.md)", said.replace("|", "∣"))
    lines.append(f"| {' | '.join([f'`{path}`', *whose, f'`{shown}`' if shown else '', said])} |")
  return "\n".join(lines) + "\n"


def _shown(value) -> str:
  return "" if value in ((), [], _NONE) else value if isinstance(value, str) else repr(value)


if __name__ == "__main__":
  FILE.write_text(page())
