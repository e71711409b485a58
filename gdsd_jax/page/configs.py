"""The settings of runs beside their defaults, those of the nearest recipe, and each other; and what made them."""

from collections.abc import Mapping, Sequence
import functools
import json
import re
from typing import Any

from ml_collections import ConfigDict

from gdsd_jax.page.folders import Run
from gdsd_jax.runs.config import RunConfig
from gdsd_jax.runs.config_dict import base_config, flatten
from gdsd_jax.runs.fields import explanations
from gdsd_jax.runs.given import load_config
from gdsd_jax.runs.recipe_files import recipe_names
from gdsd_jax.supervised.config import FinetuningConfig, PreferenceConfig, PretrainingConfig

_SUPERVISED = {"sft": FinetuningConfig, "vrpo": PreferenceConfig}
_HASH = 12  # characters of a fingerprint that are shown


def config_table(runs: Sequence[Run]) -> dict[str, Any]:
  """`rows`, one a field, values as text, None where a config has no such field; `recipe`, the nearest of one run.

  A row says what the field is, and whether it `differs` from the recipe.
  """
  told = [flatten(run.config) for run in runs]
  kind = next((run.config["kind"] for run in runs if isinstance(run.config.get("kind"), str)), None)
  defaults = flatten(base_config().to_dict()) if kind is None else {}
  about = explanations(RunConfig if kind is None else _SUPERVISED.get(kind, PretrainingConfig))
  recipe, fields = nearest_recipe(told[0]) if len(runs) == 1 and told[0] else (None, {})
  paths = sorted({path for each in told for path in each}, key=lambda path: ("." in path, path))
  rows = [{
    "path": path, "about": about.get(path, ""), "values": [_said(each, path) for each in told],
    "default": _said(defaults, path), "recipe": _said(fields, path),
    "differs": recipe is not None and told[0][path] != fields.get(path),
  } for path in paths]
  differing = sum(row["differs"] for row in rows)
  said = recipe and (f"The package's nearest recipe is {recipe}; fields that differ from it: {differing or 'none'}.")
  return {"rows": rows, "recipe": recipe, "said": said}


def _said(fields: Mapping[str, Any], path: str) -> str | None:
  """A value as flags write it; None where there is no such field."""
  if path not in fields:
    return None
  value = fields[path]
  return value if isinstance(value, str) else json.dumps(value) if isinstance(value, list | dict) else str(value)


def nearest_recipe(fields: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
  """(name, fields) of the package's recipe from which the fewest fields differ; of another kind none is near."""
  near = [(name, recipe) for name, recipe in _recipes() if recipe.get("kind") == fields.get("kind")]
  distance = lambda of: sum(value != of[1].get(path) for path, value in fields.items())
  return min(near, key=distance, default=(None, {}))


@functools.cache
def _recipes() -> list[tuple[str, dict[str, Any]]]:
  """RECIPE:PRESET and the fields of each that the package has."""
  found = []
  for recipe in recipe_names():
    for preset in presets(recipe):
      try:
        fields = load_config(f"{recipe}:{preset}")
      except ValueError:  # a preset of others, which this recipe has not
        continue
      found.append((f"{recipe}:{preset}", flatten(fields.to_dict() if isinstance(fields, ConfigDict) else fields)))
  return found


def presets(recipe: str) -> list[str]:
  """The presets of a recipe, which it tells when it is asked for one that it does not have."""
  try:
    load_config(f"{recipe}:no such preset")
  except ValueError as error:
    while error.__cause__ or error.__context__:  # its own words, which flags wrap in theirs
      error = error.__cause__ or error.__context__
    found = re.search(r"known are (.*)", str(error))
    return found[1].split(", ") if found else []
  return []


def environment_table(runs: Sequence[Run]) -> list[dict[str, Any]]:
  """What config.json tells of where each run was made: versions, inputs by their fingerprints, earlier starts."""
  told = [_environment(run) for run in runs]
  names = list(dict.fromkeys(name for each in told for name in each))
  return [{"name": name, "values": [each.get(name) for each in told]} for name in names]


def _environment(run: Run) -> dict[str, str]:
  of, found = run.provenance, {"folder": str(run.folder)}
  for section, prefix, length in (("versions", "", None), ("inputs", "fingerprint of ", _HASH)):
    part = of.get(section)
    for name, value in part.items() if isinstance(part, dict) else ():
      if value is not None:
        found[f"{prefix}{name}"] = str(value)[:length]
  if of.get("model_commit"):
    found["commit of the model"] = str(of["model_commit"])
  if isinstance(of.get("earlier"), list):
    found["earlier starts with other versions"] = str(len(of["earlier"]))
  return found
