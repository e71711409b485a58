"""What adapter_config.json says: which modules are adapted, at which rank and scale; the rest is refused."""

import dataclasses
import math
from pathlib import Path
import re
from typing import Any

from gdsd_jax.checks import require
from gdsd_jax.huggingface.files import read_json_object

FIELD, CONFIG = "model.lora.path", "adapter_config.json"
# What PEFT can express and this adapter does not compute: refused, not miscomputed.
OFF = {"use_dora": False, "modules_to_save": None, "fan_in_fan_out": False, "lora_bias": False}
# As PEFT has them by default. They are read where they are not, and never written otherwise.
UNIFORM = {"use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}
# Exported files do not name these: they are newer than some releases of PEFT.
_OFF_WHERE_KNOWN = {"alora_invocation_tokens": None, "layer_replication": None, "arrow_config": None,
                    "kasa_config": None, "monteclora_config": None, "trainable_token_indices": None,
                    "target_parameters": None}
# Ways to begin that leave the base weights alone. By the others (pissa, olora, loftq, ...) PEFT changes them, too.
_INITS = (True, False, None, "gaussian", "orthogonal", "eva")


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
  """The fields of an adapter_config.json that this adapter computes, checked."""

  file: Path
  fields: dict[str, Any]

  @property
  def dropout(self) -> float:
    return self.fields["lora_dropout"]

  def rank(self, module: str) -> int:
    return self._of(module, "rank_pattern", self.fields["r"])

  def scale(self, module: str) -> float:
    """What a module's product of factors is multiplied by: alpha / rank, or alpha / √rank if it is rank-stabilised."""
    rank, alpha = self.rank(module), self._of(module, "alpha_pattern", self.fields["lora_alpha"])
    return alpha / (math.sqrt(rank) if self.fields.get("use_rslora") else rank)

  def adapts(self, module: str, layer: int) -> bool:
    """Whether PEFT adapts a module of the base model (by its whole name) that is in this layer."""
    layers, targets = self.fields.get("layers_to_transform"), self.fields.get("target_modules")
    if layers is not None and layer not in (layers if isinstance(layers, list) else [layers]):
      return False
    excluded = self.fields.get("exclude_modules")
    if excluded and _matches(excluded, module):
      return False
    return targets in (None, "all-linear") or _matches(targets, module)

  def _of(self, module: str, pattern: str, default):
    found = self.fields.get(pattern) or {}
    key = next((key for key in found if re.match(rf"(.*\.)?({key})$", module)), None)
    return default if key is None else found[key]


def _matches(targets: str | list[str], module: str) -> bool:
  if isinstance(targets, str):
    return re.fullmatch(targets, module) is not None
  return any(module == target or module.endswith(f".{target}") for target in targets)


def read_adapter_config(folder: Path) -> AdapterConfig:
  """Raises FileNotFoundError or ValueError, one line naming file and field, where it is none of this kind."""
  file = folder / CONFIG
  if (folder / "config.json").is_file() and not file.is_file():
    raise FileNotFoundError(f"{FIELD}: {file} is missing: {folder} is a whole model, which model.path takes")
  fields = {"lora_dropout": 0.0, **read_json_object(file, FIELD)}
  kind, start = fields.get("peft_type"), fields.get("init_lora_weights")
  require(kind == "LORA", FIELD, f"{file} describes no LoRA adapter (peft_type {kind!r})")
  variants = {name: False for name in fields if name.startswith("use_") and name != "use_rslora"}
  for name, off in {**OFF, **_OFF_WHERE_KNOWN, **variants, "bias": "none"}.items():
    value = fields.get(name, off)
    require(value in (off, None, []), FIELD, f"{file} has {name} = {value!r}, which is not supported")
  require(start in _INITS, FIELD, f"{file} has init_lora_weights = {start!r}, which changes the base model; let PEFT"
          " convert it to a plain adapter (save_pretrained's path_initial_model_for_weight_conversion)")
  numbers = {"r": (int,), "lora_alpha": (int, float), "lora_dropout": (int, float)}
  for name, types in numbers.items():
    require(fields.get(name) is not None, FIELD, f"{file} lacks the field {name!r}")
    _check_number(file, name, fields[name], types)
  require(fields["r"] > 0, FIELD, f"{file}: r must be positive, not {fields['r']}")
  for pattern, name in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
    stated = fields.get(pattern) or {}
    require(isinstance(stated, dict), FIELD, f"{file}: {pattern} must be an object, not {stated!r}")
    for key, value in stated.items():
      _check_pattern(file, key)
      _check_number(file, f"{pattern}[{key!r}]", value, numbers[name])
      require(value > 0, FIELD, f"{file}: {pattern}[{key!r}] must be positive, not {value!r}")
  if isinstance(fields.get("target_modules"), str):
    _check_pattern(file, fields["target_modules"])
  return AdapterConfig(file, fields)


def base_model_of(folder: Path, field: str = FIELD) -> tuple[str, str | None]:
  """(name or path, revision) of the model that an adapter was made for. Raises ValueError, naming `field` and file.

  A base model that lies within the adapter's folder is found there, wherever that folder has been moved.
  """
  file = folder / CONFIG
  fields = read_json_object(file, field)
  name = fields.get("base_model_name_or_path")
  require(isinstance(name, str) and name != "", field, f"{file} names no base model (base_model_name_or_path)")
  within = folder / Path(name).name
  if not Path(name).exists() and within.is_dir():
    return str(within), None
  return name, None if Path(name).is_dir() else fields.get("revision")


def _check_number(file: Path, name: str, value, types: tuple[type, ...]) -> None:
  kind = "an integer" if types == (int,) else "a finite number" if name != "lora_dropout" else "a number"
  require(type(value) in types and math.isfinite(value), FIELD, f"{file}: {name} must be {kind}, not {value!r}")


def _check_pattern(file: Path, pattern: str) -> None:
  try:
    re.compile(pattern)
  except re.error as error:
    raise ValueError(f"{FIELD}: {file}: {pattern!r} is no pattern of module names: {error}") from None
