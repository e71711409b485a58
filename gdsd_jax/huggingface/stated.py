"""What is said of a model in the place of a config.json that does not: special tokens, and the length of its blocks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gdsd_jax.checks import require, require_one_of
from gdsd_jax.models.config import DenoiserConfig

# Field of config.json -> that of DenoiserConfig, and of a run's section `model` but for padding.
FIELDS = {"mask_token_id": "mask_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "pad_token_id",
          "block_size": "block_length"}
_OTHER_WORDS = {"block_size": "block_length"}  # that config.json may have instead


def completed(fields: Mapping[str, Any], stated: Mapping[str, int]) -> dict[str, Any]:
  """The `fields` of config.json, and with them what is `stated` where they say nothing of it.

  Raises ValueError where something is stated that config.json alone can say.
  """
  for name in stated:
    require_one_of("stated", name, tuple(FIELDS))
  says = lambda name: name is not None and fields.get(name) is not None
  return {**fields, **{name: value for name, value in stated.items()
                       if not says(name) and not says(_OTHER_WORDS.get(name))}}


def require_heeded(config: DenoiserConfig, stated: Mapping[str, int], where: Path | str) -> None:
  """Raises ValueError, one line naming the run's field, where a model is another than what is `stated` of it."""
  for name, value in stated.items():
    field, found = FIELDS[name], getattr(config, FIELDS[name])
    require(found is not None, f"model.{field}", f"{value} is given, but {where} has none: all tokens of a model of the"
            f" family {config.family} see each other; leave the field out")
    require(found == value, f"model.{field}", f"{value} is given, but {where} says {found}; leave the field out")


def shown(stated: Mapping[str, int]) -> str:
  """How a message names what was stated beside config.json; "" for nothing."""
  return f" with {', '.join(f'model.{FIELDS[name]}={value}' for name, value in stated.items())}" if stated else ""


def flags(stated: Mapping[str, int]) -> str:
  """The flags of a command that state it, each after a space."""
  return "".join(f" --config.model.{FIELDS[name]}={value}" for name, value in stated.items())


def hint(name: str) -> str:
  """What gives a field that config.json lacks, as the end of a message; "" where nothing does."""
  return f"; --config.model.{FIELDS[name]} can say it" if name in FIELDS else ""
