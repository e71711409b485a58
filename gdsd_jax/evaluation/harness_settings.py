"""The settings of --model_args that say how completions and likelihoods are made, and their numbers."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import typing
from typing import Any

from gdsd_jax.checks import require
from gdsd_jax.evaluation.harness_requests import GenerationDefaults
from gdsd_jax.evaluation.likelihood import LikelihoodConfig


def _fields(settings: type) -> dict[str, type]:
  """Names of a dataclass's fields, but for `kind`, with the type of their values: int, float or str."""
  annotated = {field.name: field.type for field in dataclasses.fields(settings) if field.name != "kind"}
  return {name: next(kind for kind in (int, float, str) if kind in (known, *typing.get_args(known)))
          for name, known in annotated.items()}


_OF_COMPLETIONS, _OF_LIKELIHOODS = _fields(GenerationDefaults), _fields(LikelihoodConfig)
SETTINGS = {**_OF_COMPLETIONS, **_OF_LIKELIHOODS}


def settings_of(
  families: Sequence[str], kind: str | None, likelihood: str | None, given: Mapping[str, Any]
) -> tuple[GenerationDefaults, LikelihoodConfig]:
  """What the settings say to a model of the first family that they fit. ValueError, where they fit none.

  `kind` and `likelihood` are those of sampler and estimate where they are not the family's.
  """
  errors = []
  for family in families:
    try:
      values = {name: number(name, value, SETTINGS[name]) for name, value in given.items() if value is not None}
      completions = {name: value for name, value in values.items() if name in _OF_COMPLETIONS}
      likelihoods = {name: value for name, value in values.items() if name in _OF_LIKELIHOODS}
      return (GenerationDefaults(kind=kind or family, **completions),
              LikelihoodConfig(kind=likelihood or family, **likelihoods))
    except ValueError as error:
      errors.append(error)
  raise ValueError(f"--model_args: {errors[0]}")


def number(name: str, value: Any, kind: type) -> Any:
  """A value as a number of this kind; a text, for str, as it is. ValueError names what is none."""
  if kind is str:
    return value
  try:
    found = kind(value)
  except (TypeError, ValueError, OverflowError):
    found = math.nan
  fits = not isinstance(value, bool) and math.isfinite(found) and float(value) == found
  require(fits, name, f"must be a {'whole ' if kind is int else ''}number, not {value!r}")
  return found
