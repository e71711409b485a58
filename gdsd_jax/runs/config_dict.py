"""A run's fields as nested dicts: the `ConfigDict` that recipes and flags see, and config.json on the disk.

`base_config` makes the former from the dataclasses of runs/config.py, and `run_config` turns it into these again.
"""

from collections.abc import Mapping
import dataclasses
import json
import math
import typing
from typing import Any

from etils import epath
from ml_collections import config_dict, ConfigDict

from gdsd_jax.checks import require
from gdsd_jax.models.lora import LoraConfig
from gdsd_jax.runs.config import ModelConfig, RunConfig, TaskConfig
from gdsd_jax.runs.files import check_workdir

# Fields that may change when a run resumes: they do not change what the run computes.
RESUMABLE = (
  "steps", "checkpoint.", "log.", "mesh.", "model.remat",
  # Only launch/evaluate.py reads these.
  "eval.lengths", "eval.steps_per_token", "eval.block_length", "eval.prompt_buckets", "eval.prefill",
)


def base_config() -> ConfigDict:
  """Every field of a recipe at its default, which is the paper's, where the paper has one."""
  config = section(RunConfig)
  del config.model["lora"], config.model["lora_path"]  # recipes have them in one section, model.lora
  config.model.lora = section(LoraConfig)
  config.model.lora.rank = 0  # no adapter
  config.model.lora.path = config_dict.placeholder(str)
  # Fields of the task, unset ones at its own default; a recipe adds those that only its task has.
  for name in ("train_source", "test_source", "data_dir"):  # where problems come from: see tasks/sources.py
    config.task[name] = config_dict.placeholder(str)
  return config


def section(cls, found: ConfigDict | None = None) -> ConfigDict:
  """The fields of a dataclass at their defaults, and those of the dataclasses that it holds, each in its section.

  An unset optional field knows its type. `found` is the section to add them to, None for a new one.
  """
  found = ConfigDict() if found is None else found
  for field in dataclasses.fields(cls):
    if dataclasses.is_dataclass(field.type):
      name = field.metadata.get("section", field.name)
      found[name] = section(field.type, found.get(name))
    elif field.default is None:
      kind = typing.get_args(field.type)[0]  # the annotation is `kind | None`
      found[field.name] = config_dict.placeholder(kind)
    elif field.default is not dataclasses.MISSING:
      found[field.name] = field.default
  return found


def run_config(config: ConfigDict) -> RunConfig:
  """The fields of a recipe, typed; all is checked that can be without loading anything.

  Raises:
    ValueError: one line that names the field.
  """
  fields = flatten(config.to_dict())
  for path in sorted(fields.keys() - flatten(base_config().to_dict()).keys()):
    if not path.startswith("task."):
      raise ValueError(f"{path}: a run has no such field")
  return typed(RunConfig, config)


def typed(cls, config: ConfigDict):
  """The dataclass of a whole recipe, with the fields `as_given`. Raises ValueError, one line that names the field."""
  fields = config.to_dict()
  for path, value in flatten(fields).items():
    if isinstance(value, float) and not math.isfinite(value):
      raise ValueError(f"{path}: must be a finite number, not {value}")
  return made(cls, fields | {"as_given": fields})


def made(cls, fields: Mapping[str, Any]):
  """The dataclass of a section's fields; those that it lacks are at their defaults."""
  if cls is TaskConfig:
    return TaskConfig(fields["name"], {k: v for k, v in fields.items() if k != "name" and v is not None})
  if cls is ModelConfig:
    lora = fields.get("lora", {})
    fields = fields | {"lora": made(LoraConfig, lora) if lora.get("rank") else None, "lora_path": lora.get("path")}
  values = {}
  for field in dataclasses.fields(cls):
    if dataclasses.is_dataclass(field.type):
      values[field.name] = made(field.type, fields[field.metadata.get("section", field.name)])
    elif field.name in fields:
      values[field.name] = fields[field.name]
  return cls(**values)


def flatten(fields: Mapping[str, Any]) -> dict[str, Any]:
  """{"path.to.field": value} of a nested dict, tuples as lists (as JSON has them)."""
  flat = {}
  for name, value in fields.items():
    if isinstance(value, Mapping):
      flat |= {f"{name}.{path}": leaf for path, leaf in flatten(value).items()}
    else:
      flat[name] = list(value) if isinstance(value, tuple) else value
  return flat


def contradictions(saved: Mapping[str, Any], current) -> list[str]:
  """Lines "field: saved → current" for what a resumed run may not change.

  Args:
    saved: nested fields of the run's config.json.
    current: typed config, which has its own in `as_given`.
  """
  old, new = flatten(saved), flatten(current.as_given)
  may_change = RESUMABLE
  if current.optimizer.follows_length:  # the rates of a decay, or of a warm-up by share, are those of another run
    may_change = tuple(field for field in RESUMABLE if field != "steps")
  return [
    f"{path}: {old.get(path)!r} → {new.get(path)!r}"
    f"{' (optimizer.schedule or warmup_ratio makes the rate follow them)' * (path == 'steps')}"
    for path in sorted(old.keys() | new.keys())
    if old.get(path) != new.get(path) and not path.startswith(may_change)
  ]


def open_workdir(workdir: epath.Path, config) -> None:
  """Makes the folder of a run. Raises ValueError or OSError if it cannot, or if a run with another config is there."""
  check_workdir(workdir)
  if (file := workdir / "config.json").is_file():
    try:
      different = contradictions(json.loads(file.read_text()), config)
    except (ValueError, AttributeError) as error:
      raise ValueError(f"--workdir: {file} is not the config of a run: {error}") from None
    require(not different, "--workdir", f"{workdir} holds a run with another config ({'; '.join(different)});"
                                        " restore these fields or choose another --workdir")
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise OSError(f"--workdir: cannot make {workdir}: {error}") from error


def config_json(config) -> str:
  """The config as it was given, as JSON, fields in order."""
  return json.dumps(config.as_given, indent=2, sort_keys=True)
