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

from gdsd_jax import own_code
from gdsd_jax.checks import did_you_mean_field, require, require_int32
from gdsd_jax.diffusion.config import BLOCK_LENGTH, SamplerConfig
from gdsd_jax.models.lora import LoraConfig
from gdsd_jax.objectives.named import ObjectiveFields, settings
from gdsd_jax.objectives.own import make_objective
from gdsd_jax.runs import weights_and_biases
from gdsd_jax.runs.config import DistillationConfig, ModelConfig, RolloutConfig, RunConfig, TaskConfig
from gdsd_jax.runs.fields import declared
from gdsd_jax.runs.files import check_workdir
from gdsd_jax.runs.lock import check_free

# Fields that may change when a run resumes: they do not change what the run computes.
RESUMABLE = (
  "steps", "checkpoint.", "log.", "mesh.", "model.remat",
  "model.revision",  # the weights themselves are compared
  # Only launch/evaluate.py reads these.
  "eval.alg", "eval.alg_temp", "eval.remasking", "eval.cfg_scale", "eval.eos_penalty", "eval.cache", "eval.threshold",
  "eval.factor", "eval.test_size",
  "eval.lengths", "eval.steps_per_token", "eval.block_length", "eval.prompt_buckets", "eval.prefill", "eval.prompt",
)


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
  """The fields of `ModelConfig`, where those of the adapter are a section of their own, `lora`."""
  found = section(ModelConfig)
  del found["lora"], found["lora_path"]
  found.lora = section(LoraConfig)
  found.lora.rank = 0  # no adapter
  found.lora.path = config_dict.placeholder(str)
  return found


def run_config(config: ConfigDict) -> RunConfig:
  """The fields of a recipe, typed; all is checked that can be without loading anything.

  Raises:
    ValueError: one line that names the field.
  """
  known = flatten(base_config().to_dict())
  for section in dict.fromkeys(path.partition(".")[0] for path in known):
    require(section in config, f"--config.{section}",
            "the recipe lacks it; begin with gdsd_jax.runs.config_dict.base_config(), which has all")
  own = tuple(f"{section}." for section in own_sections(config.sampler.kind))
  for path, value in flatten(config.to_dict()).items():
    of_objective = path.startswith("objective.") and not own_code.is_own(config.objective.name)
    if path not in known and (not path.startswith(own) or of_objective and path.partition(".")[2] not in settings()):
      raise ValueError(f"--config.{path}: the config has no field {path!r}{did_you_mean_field(path, known)}")
    require(value is not None or known.get(path) is None, path, "must not be None")
  return typed(RunConfig, config)


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
  for path, value in flatten(fields).items():
    for number in value if isinstance(value, list) else [value]:
      if isinstance(number, float) and not math.isfinite(number):
        raise ValueError(f"{path}: must be a finite number, not {number}")
      if isinstance(number, int) and path != "seed":  # which has a range of its own
        require_int32(path, number)
  return made(cls, fields | {"as_given": fields})


def made(cls, fields: Mapping[str, Any]):
  """The dataclass of a section's fields; those that it lacks are at their defaults."""
  if cls is TaskConfig:
    return TaskConfig(fields["name"], {k: v for k, v in fields.items() if k != "name" and v is not None})
  if cls is ModelConfig:
    lora = fields.get("lora", {})
    fields = fields | {"lora": made(LoraConfig, lora) if lora.get("rank") else None, "lora_path": lora.get("path")}
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
      values[field.name] = made(part, fields[field.metadata.get("section", field.name)])
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

  Fields that were added to recipes after the run began are compared at their defaults. Runs from before dream's exact
  sampler could have blocks say a block length of 32 where they mean that nothing was said.

  Args:
    saved: nested fields of the run's config.json.
    current: typed config, which has its own in `as_given`.
  """
  saved = {name: value for name, value in saved.items() if name != "provenance"}
  new = flatten(current.as_given)
  added = {path: value for path, value in flatten(section(type(current)).to_dict()).items() if path in new}
  old = added | flatten(saved)
  if "sampler.noise" not in flatten(saved) and old.get("sampler.block_length") == BLOCK_LENGTH:
    old["sampler.block_length"] = new.get("sampler.block_length") and BLOCK_LENGTH
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
  """Makes the folder of a run. Collective.

  Raises ValueError or OSError if it cannot, if a run with another config is there, or one that is going on.
  """
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
  check_free(workdir)
  weights_and_biases.check(config.log.wandb_project)


def config_json(config, provenance: Mapping[str, Any] | None = None) -> str:
  """The config as it was given, as JSON, fields in order, with the run's provenance beside them."""
  return json.dumps({**config.as_given, **({"provenance": provenance} if provenance else {})}, indent=2, sort_keys=True)
