"""The settings of a run that is there, from its config.json: what evaluates or exports it starts from them."""

from collections.abc import Mapping
import json
import logging
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from gdsd_jax.checks import require
from gdsd_jax.diffusion.config import BLOCK_LENGTH, KINDS, ONLY
from gdsd_jax.runs.config_dict import base_config, flatten, own_sections
from gdsd_jax.runs.files import check_workdir, run_folder

_log = logging.getLogger(__name__)

FILE = "config.json"
_BLOCKS = ("sampler.block_length", "eval.block_length")


def read_saved(workdir: epath.Path) -> dict[str, Any]:
  """What a run's config.json holds, be it of RL or of fine-tuning: its recipe's fields, and `provenance`.

  Raises:
    ValueError, OSError: there is no run in `workdir`, or its config.json is damaged.
  """
  check_workdir(workdir)
  file = workdir / FILE
  if not workdir.is_dir():
    raise FileNotFoundError(f"--workdir: {workdir} does not exist")
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
  fields = {name: value for name, value in read_saved(workdir).items() if name != "provenance"}
  rl = all(isinstance(fields.get(name), dict) for name in ("task", "sampler", "objective", "eval", "model"))
  require(rl, "--workdir", f"{workdir} is no RL run, and says no task; name a recipe that does by --config")
  config, lost = base_config(), []
  known, own = flatten(config.to_dict()), own_sections(fields["sampler"].get("kind"))
  unheeded = _unheeded(fields["sampler"])
  for path, value in flatten(_without_own(fields, known, own)).items():
    if path in unheeded:
      lost += [path] * (value != known[path] and path not in _BLOCKS)
      continue
    try:
      require(path in known, path, "is lost")
      config.update_from_flattened_dict({path: _as_given(value)})
    except (ValueError, TypeError):
      lost.append(path)
  for section in own:
    for name, value in fields[section].items():
      if f"{section}.{name}" not in known:
        config[section][name] = _as_given(value)
  if lost:
    _log.warning("%s is of an older version; without effect are its %s", workdir / FILE, ", ".join(lost))
  return config


def _unheeded(sampler: Mapping[str, Any]) -> set[str]:
  """Fields that say nothing in the config of a run from before samplers refused what they do not have.

  A block length of 32 was the default then, and is meant to be the default of today.
  """
  if "noise" in sampler or sampler.get("kind") not in KINDS:
    return set()
  others = [f"sampler.{name}" for kind, names in ONLY.items() if kind != sampler["kind"] for name in names]
  return {*others, *(_BLOCKS if sampler.get("block_length") == BLOCK_LENGTH else ())}


def _without_own(fields: Mapping[str, Any], known: Mapping[str, Any], own: tuple[str, ...]) -> dict[str, Any]:
  """The fields without those that only one's own task, objective or sampler has."""
  return fields | {section: {name: value for name, value in fields[section].items() if f"{section}.{name}" in known}
                   for section in own}


def _as_given(value: Any) -> Any:
  """A value of JSON as recipes have it."""
  return tuple(value) if isinstance(value, list) else value
