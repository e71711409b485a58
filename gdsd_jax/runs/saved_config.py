"""The settings of a run that is there, from its config.json.

A run that resumes is held to them; what evaluates or exports it starts from them.
"""

from collections.abc import Mapping
import dataclasses
import json
import logging
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from gdsd_jax.checks import require
from gdsd_jax.diffusion.config import BLOCK_LENGTH, KINDS
from gdsd_jax.diffusion.config_checks import ONLY
from gdsd_jax.objectives.named import objective_class, ObjectiveFields, OBJECTIVES
from gdsd_jax.objectives.own import OwnObjective
from gdsd_jax.runs import rollouts_file, weights_and_biases
from gdsd_jax.runs.config import RunConfig
from gdsd_jax.runs.config_dict import base_config, flatten, own_sections, run_config, section
from gdsd_jax.runs.files import check_workdir, require_folder, run_folder
from gdsd_jax.runs.lock import check_free

_log = logging.getLogger(__name__)

FILE = "config.json"
# Fields that may change when a run resumes: they do not change what the run computes.
_RESUMABLE = (
  "steps", "checkpoint.", "log.", "mesh.", "model.remat", "model.mlp_tokens",
  "model.revision",  # the weights themselves are compared
  # Only launch/evaluate.py reads these.
  "eval.alg", "eval.alg_temp", "eval.remasking", "eval.cfg_scale", "eval.eos_penalty", "eval.cache", "eval.threshold",
  "eval.factor", "eval.test_size",
  "eval.lengths", "eval.steps_per_token", "eval.block_length", "eval.prompt_buckets", "eval.prefill", "eval.prompt",
)
_OF_A_RUN = {"checkpoints": True, "tensorboard": True, FILE: False, "metrics.jsonl": False, "reward.png": False,
             rollouts_file.FILE: False}
_OF_OTHERS = {"sweep.json": "sweep", "comparison.json": "comparison"}
_BLOCKS = ("sampler.block_length", "eval.block_length")


def read_saved(workdir: epath.Path) -> dict[str, Any]:
  """What a run's config.json holds, be it of RL or of fine-tuning: its recipe's fields, and `provenance`.

  Raises:
    ValueError, OSError: there is no run in `workdir`, or its config.json is damaged.
  """
  check_workdir(workdir)
  file = workdir / FILE
  require_folder(workdir)
  if not file.is_file():
    raise FileNotFoundError(f"--workdir: {workdir} holds no run: {FILE} is missing")
  try:
    saved = json.loads(file.read_text())
  except ValueError as error:
    raise ValueError(f"--workdir: {file} is not the config of a run: {error}") from None
  require(isinstance(saved, dict), "--workdir", f"{file} is not the config of a run: it holds {saved!r:.80}")
  return saved


def saved_recipe(file: str) -> ConfigDict:
  """The fields of a run's config.json as a recipe, which flags may change.

  Fields that recipes have got since are at their defaults; those that they have lost are left out, which is told.
  Raises ValueError or OSError, one line.
  """
  workdir = run_folder(file.removesuffix(f"/{FILE}"))
  config, lost = _recipe_of(read_saved(workdir))
  require(config is not None, "--workdir",
          f"{workdir} is no RL run, and says no task; name a recipe that does by --config")
  if lost:
    _log.warning("%s is of an older version; without effect are its %s", workdir / FILE, ", ".join(lost))
  return config


def _recipe_of(saved: Mapping[str, Any]) -> tuple[ConfigDict | None, list[str]]:
  """The recipe of a config.json, None where it is of no RL run, and the paths of fields that are left out of it."""
  fields = _without_provenance(saved)
  if not all(isinstance(fields.get(name), dict) for name in ("task", "sampler", "objective", "eval", "model")):
    return None, []
  config, lost = base_config(), []
  known, own = flatten(config.to_dict()), own_sections(fields["sampler"].get("kind"))
  unheeded = _unheeded(fields["sampler"]) | _unheeded_of_objective(fields["objective"])
  unheeded |= _unheeded_of_task(fields["task"])
  for path, value in flatten(_without_own(fields, known, own)).items():
    if path in unheeded:
      lost += [path] * (value != known[path] and path not in _BLOCKS)
      continue
    try:
      require(path in known, path, "is lost")
      config.update_from_flattened_dict({path: _as_given(value)})
    except (ValueError, TypeError):
      lost.append(path)
  for part in own:
    for name, value in fields[part].items():
      if (path := f"{part}.{name}") in unheeded:
        lost += [path] * (path not in known and value is not None)
      elif path not in known:
        config[part][name] = _as_given(value)
  return config, lost


def _unheeded(sampler: Mapping[str, Any]) -> set[str]:
  """Fields that say nothing in the config of a run from before samplers refused what they do not have.

  A block length of 32 was the default then, and is meant to be the default of today.
  """
  if "noise" in sampler or sampler.get("kind") not in KINDS:
    return set()
  others = [f"sampler.{name}" for kinds, names in ONLY.items() if sampler["kind"] not in kinds for name in names]
  return {*others, *(_BLOCKS if sampler.get("block_length") == BLOCK_LENGTH else ())}


def _unheeded_of_objective(objective: Mapping[str, Any]) -> set[str]:
  """Fields that say nothing in the config of a run from before objectives refused what they do not have."""
  name = objective.get("name")
  if name not in OBJECTIVES:  # one's own, or none of today
    return set()
  lacking = {field.name for field in dataclasses.fields(ObjectiveFields)} - {"name"}
  lacking -= {field.name for field in dataclasses.fields(objective_class(name))}
  return {f"objective.{field}" for field in lacking}


def _unheeded_of_task(task: Mapping[str, Any]) -> set[str]:
  """Fields that say nothing in the config of a run from before tasks refused what nothing uses."""
  unheeded = set() if task.get("reward_seconds") else {"reward_late"}
  if not task.get("rewards"):
    unheeded |= {"reward_chat", "reward_seconds", "reward_late"}
  if task.get("name") == "prompts" and not task.get("answer_column"):
    unheeded |= {"answer_after", "extract"}
  return {f"task.{field}" for field in unheeded}


def _without_own(fields: Mapping[str, Any], known: Mapping[str, Any], own: tuple[str, ...]) -> dict[str, Any]:
  """The fields without those that only one's own task, objective or sampler has."""
  return fields | {part: {name: value for name, value in fields[part].items() if f"{part}.{name}" in known}
                   for part in own}


def _without_provenance(saved: Mapping[str, Any]) -> dict[str, Any]:
  return {name: value for name, value in saved.items() if name != "provenance"}


def _as_given(value: Any) -> Any:
  """A value of JSON as recipes have it."""
  return tuple(value) if isinstance(value, list) else value


def open_workdir(workdir: epath.Path, config) -> None:
  """Makes the folder of a run. Collective.

  Raises ValueError or OSError if it cannot, if a run with another config is there, or one that is going on.
  """
  check_workdir(workdir)
  if (workdir / FILE).is_file():
    saved = read_saved(workdir)
    require("steps" in saved, "--workdir", f"{workdir / FILE} is not that of a run, which has `steps`; choose another"
                                           " folder")
    different = contradictions(saved, config)
    require(not different, "--workdir", f"{workdir} holds a run with another config ({'; '.join(different)});"
                                        " restore these fields or choose another --workdir")
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise OSError(f"--workdir: cannot make {workdir}: {error}") from error
  for name, of in _OF_OTHERS.items():
    require(not (workdir / name).is_file(), "--workdir", f"{workdir} is the folder of a {of}, whose runs lie below it;"
                                                         " choose another --workdir")
  for name, is_folder in _OF_A_RUN.items():  # told now, and not when the first of them is written
    path = workdir / name
    require(not path.exists() or path.is_dir() == is_folder, "--workdir",
            f"{path} is {'no folder' if is_folder else 'a folder'}, where a run has its own; choose another --workdir")
  check_free(workdir)
  weights_and_biases.check(config.log.wandb_project)


def contradictions(saved: Mapping[str, Any], current) -> list[str]:
  """Lines "field: saved → current" for what a resumed run may not change.

  Fields that were added to recipes after the run began are compared at their defaults, and those of an RL run that say
  the same in other words, such as None for what it stands for, do not differ.

  Args:
    saved: nested fields of the run's config.json.
    current: typed config, which has its own in `as_given`.
  """
  new, told = flatten(current.as_given), flatten(_without_provenance(saved))
  if isinstance(told.get("objective.name"), str):
    unheeded = _unheeded_of_objective(saved["objective"]) | _unheeded_of_task(saved["task"])
    told = {path: value for path, value in told.items() if path not in unheeded}
  old = {path: value for path, value in flatten(section(type(current)).to_dict()).items() if path in new} | told
  may_change = _RESUMABLE
  if current.optimizer.follows_length:  # the rates of a decay, or of a warm-up by share, are those of another run
    may_change = tuple(field for field in _RESUMABLE if field != "steps")
  # Checkpoints of such a run have rollouts, with what these remember.
  held = ("log.trajectory",) if getattr(current, "async_rollouts", False) else ()
  different = [path for path in sorted(old.keys() | new.keys())
               if old.get(path) != new.get(path) and (path in held or not path.startswith(may_change))]
  if different and isinstance(current, RunConfig):
    then, now = _meant_by(saved), _meanings(current)
    different = [path for path in different if path not in then or then[path] != now.get(path)]
  return [
    f"{path}: {old.get(path)!r} → {new.get(path)!r}"
    f"{' (with async_rollouts the checkpoints hold what rollouts remember)' * (path in held)}"
    f"{' (optimizer.schedule or warmup_ratio makes the rate follow them)' * (path == 'steps')}"
    for path in different
  ]


def _meant_by(saved: Mapping[str, Any]) -> dict[str, Any]:
  """The `_meanings` of a config.json; none where it is no recipe of today's."""
  try:
    recipe, _ = _recipe_of(saved)
    return {} if recipe is None else _meanings(run_config(recipe))
  except (ValueError, OSError):
    return {}


def _meanings(config: RunConfig) -> dict[str, Any]:
  """Path -> what the run makes of a field, where it may stand for another value than it has."""
  objective = config.objective
  fields = objective.objective if isinstance(objective, OwnObjective) else objective  # those of the user's own
  masks = () if objective.masks is None else config.masks.forward_process(config.sampler, objective.masks)
  return {
    **{f"sampler.{name}": value for name, value in config.sampler.settings.items()},
    **{f"objective.{field.name}": getattr(fields, field.name)
       for field in (dataclasses.fields(fields) if dataclasses.is_dataclass(fields) else ())},
    "objective.num_mc": config.num_mc, "objective.advantages": config.advantages,
    **dict.fromkeys(("masks.kind", "masks.block_length", "masks.remasking"), masks),
  }
