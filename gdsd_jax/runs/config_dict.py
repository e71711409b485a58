"""A run's fields as nested dicts: the `ConfigDict` that recipes and flags see, and config.json on the disk.

`base_config` makes the former from the dataclasses of runs/config.py, and `run_config` turns it into these again.
"""

from collections.abc import Mapping
import dataclasses
import json
import typing
from typing import Any

from ml_collections import config_dict, ConfigDict

from gdsd_jax import own_code
from gdsd_jax.checks import did_you_mean_field, require, require_float32, require_int32
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.models.lora import LoraConfig
from gdsd_jax.models.quantised import QuantizeConfig
from gdsd_jax.objectives.named import ObjectiveFields, settings
from gdsd_jax.objectives.own import make_objective
from gdsd_jax.runs.config import DistillationConfig, RolloutConfig, RunConfig, TaskConfig
from gdsd_jax.runs.fields import declared
from gdsd_jax.runs.model_config import ModelConfig


def base_config() -> ConfigDict:
  """Every field of a recipe at its default, which is the paper's, where the paper has one."""
  config = section(RunConfig)
  # Fields of the task, unset ones at its own default; a recipe adds those that only its task has.
  # Where problems come from: see tasks/sources.py.
  for name in ("train_source", "validation_source", "test_source", "data_dir", "columns", "bad_rows"):
    config.task[name] = config_dict.placeholder(str)
  for name in ("rewards", "reward_weights"):  # see tasks/rewards.py
    config.task[name] = config_dict.placeholder(tuple)
  return config


def section(cls, found: ConfigDict | None = None) -> ConfigDict:
  """The fields of a dataclass at their defaults, and those of the dataclasses that it holds, each in its section.

  An unset optional field knows its type. `found` is the section to add them to, None for a new one.
  """
  found = ConfigDict() if found is None else found
  for field in dataclasses.fields(cls):
    part = _part(field)
    if part is ModelConfig:
      found[field.name] = _model_section()
    elif dataclasses.is_dataclass(part):
      name = field.metadata.get("section", field.name)
      found[name] = section(part, found.get(name))
    elif field.default is None:
      kind = typing.get_args(field.type)[0]  # the annotation is `kind | None`
      found[field.name] = config_dict.placeholder(kind)
    elif field.default is not dataclasses.MISSING:
      found[field.name] = field.default
  return found


def _part(field: dataclasses.Field) -> type:
  """The dataclass whose fields a recipe sees in place of this one, if it is a section."""
  return field.metadata.get("fields_of", field.type)


def _model_section() -> ConfigDict:
  """The fields of `ModelConfig`, where those of the adapter and of quantising are sections: `lora`, `quantize`."""
  found = section(ModelConfig)
  del found["lora"], found["lora_path"], found["quantize"]
  found.lora = section(LoraConfig)
  found.lora.rank = 0  # no adapter
  found.lora.path = config_dict.placeholder(str)
  found.quantize = section(QuantizeConfig)
  found.quantize.kind = config_dict.placeholder(str)  # weights as they are
  return found


def run_config(config: ConfigDict) -> RunConfig:
  """The fields of a recipe, typed; all is checked that can be without loading anything.

  Raises:
    ValueError: one line that names the field.
  """
  check_recipe(config)
  return typed(RunConfig, config)


def check_recipe(config: ConfigDict) -> None:
  """Raises ValueError where a config is no recipe of RL: it lacks a section, or has a field that none of them has."""
  known, kind = flatten(base_config().to_dict()), config.get("kind")
  of_kind = "compare" if kind == "comparison" else "pretrain"
  require(kind is None, "--config", f"a recipe of the kind {kind!r} is for launch/{of_kind}.py")
  for section in dict.fromkeys(path.partition(".")[0] for path in known):
    require(section in config, f"--config.{section}",
            "the recipe lacks it; begin with gdsd_jax.runs.config_dict.base_config(), which has all")
  own = tuple(f"{section}." for section in own_sections(config.sampler.kind))
  for path, value in flatten(config.to_dict()).items():
    of_objective = path.startswith("objective.") and not own_code.is_own(config.objective.name)
    if path not in known and (not path.startswith(own) or of_objective and path.partition(".")[2] not in settings()):
      raise ValueError(f"--config.{path}: the config has no field {path!r}{did_you_mean_field(path, known)}")
    require(value is not None or known.get(path) is None, path, "must not be None")


def own_sections(sampler: str) -> tuple[str, ...]:
  """Sections whose task, objective or own sampler, of that name, says itself which fields it has."""
  return "task", "objective", *(["sampler"] if own_code.is_own(sampler) else [])


def check_paths(cls, fields: Mapping[str, Any]) -> None:
  """Raises ValueError where a recipe for `cls` has a field that is none of it, or lacks one that has no default."""
  known, given = declared(cls), flatten(fields)
  for path in given:
    fits = path in known or path == "kind" or path.startswith("task.")
    require(fits, f"--config.{path}", f"the config has no field {path!r}{did_you_mean_field(path, known)}")
  for path, (_, field) in known.items():
    optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    require(path in given or optional, f"--config.{path}", "the recipe lacks this field, which has no default")


def typed(cls, config: ConfigDict):
  """The dataclass of a whole recipe, with the fields `as_given`. Raises ValueError, one line that names the field."""
  fields = config.to_dict()
  if cls is not RunConfig:  # which `run_config` has checked
    check_paths(cls, fields)
  check_numbers(fields)
  return made(cls, fields | {"as_given": fields})


def check_numbers(fields: Mapping[str, Any]) -> None:
  """Raises ValueError where a number of a recipe is none of a device's."""
  for path, value in flatten(fields).items():
    for number in value if isinstance(value, list) else [value]:
      if isinstance(number, float):
        require_float32(path, number)
      if isinstance(number, int) and path != "seed":  # which has a range of its own
        require_int32(path, number)


def made(cls, fields: Mapping[str, Any]):
  """The dataclass of a section's fields; those that it lacks are at their defaults."""
  if cls is TaskConfig:
    return TaskConfig(fields["name"], {k: v for k, v in fields.items() if k != "name" and v is not None})
  if cls is ModelConfig:
    lora, quantize = fields.get("lora", {}), fields.get("quantize", {})
    if quantize.get("kind") is None:
      for field in dataclasses.fields(QuantizeConfig):
        require(field.name == "kind" or quantize.get(field.name, field.default) == field.default,
                f"model.quantize.{field.name}", "has no effect without model.quantize.kind; give int8, int4 or nf4")
    fields = fields | {"lora": made(LoraConfig, lora) if lora.get("rank") else None, "lora_path": lora.get("path"),
                       "quantize": made(QuantizeConfig, quantize) if quantize.get("kind") is not None else None}
  if cls is ObjectiveFields:
    runs_own = {field.name for field in dataclasses.fields(DistillationConfig)}
    given = {k: v for k, v in fields.items() if k not in runs_own and v is not None}
    return make_objective(given.pop("name"), given)
  if cls is SamplerConfig:
    ours = {field.name for part in (SamplerConfig, RolloutConfig) for field in dataclasses.fields(part)}
    fields = fields | {"own": tuple((k, v) for k, v in fields.items() if k not in ours and v is not None)}
  values = {}
  for field in dataclasses.fields(cls):
    if dataclasses.is_dataclass(part := _part(field)):
      section = field.metadata.get("section", field.name)
      if section in fields or field.default is dataclasses.MISSING:
        values[field.name] = made(part, fields[section])
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


def config_json(config, provenance: Mapping[str, Any] | None = None) -> str:
  """The config as it was given, as JSON, fields in order, with the run's provenance beside them."""
  return json.dumps({**config.as_given, **({"provenance": provenance} if provenance else {})}, indent=2, sort_keys=True)
