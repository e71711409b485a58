"""Checks of what users set: each raises ValueError, one line with the field's path and what it may be."""

from collections.abc import Iterable, Mapping, Sequence
import difflib
import math
from numbers import Integral, Real
import types
import typing
from typing import Any

LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # how a file begins that Git has left in a large one's place

ONLY_RUNS = ("eval/", "seconds/")  # beginnings of names in a step's row that nobody else may give to a number
KINDS = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}


def require(holds: bool, field: str, message: str) -> None:
  if not holds:
    raise ValueError(f"{field}: {message}")


def require_at_least(config, prefix: str, **least: float) -> None:
  """No field of `config` may be smaller than its limit."""
  for name, limit in least.items():
    value = getattr(config, name)
    require(value >= limit, f"{prefix}{name}", f"must be at least {limit}, not {value}")


def kind_of(annotation: Any) -> type | None:
  """The one of KINDS that a field is declared as, be it with None or without; None for any other declaration."""
  union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
  kinds = [each for each in (typing.get_args(annotation) if union else (annotation,)) if each is not types.NoneType]
  return next((kind for kind in KINDS if kinds == [kind]), None)  # not looked up: an annotation may have no hash


def require_kinds(section: str, declared: Mapping[str, Any], given: Mapping[str, Any]) -> None:
  """What is given of a section's fields must be as they are declared, by annotations; None leaves a field unset.

  Flags of fields that the recipe has not know no kind of theirs: they give what reads like a number, or else text.
  """
  for name, value in given.items():
    kind = kind_of(declared.get(name))
    wider = {int: Integral, float: Real}.get(kind, kind)
    fits = kind is None or value is None or isinstance(value, wider) and isinstance(value, bool) == (kind is bool)
    quoted = f"; as a flag, --config.{section}.{name}='\"{value}\"'" if kind is str and isinstance(value, Real) else ""
    require(fits, f"{section}.{name}", f"must be {KINDS.get(kind)}, not {value!r:.80}{quoted}")


def require_seed(field: str, seed) -> None:
  """A random seed is a whole number of 32 bits: JAX tells larger ones apart only where it has integers of 64."""
  whole = isinstance(seed, Integral) and not isinstance(seed, bool)
  require(whole and 0 <= seed <= 2**32 - 1, field, f"must be a whole number from 0 to {2**32 - 1}, not {seed!r}")


def require_int32(field: str, value) -> None:
  """Devices count in 32 bits."""
  require(-2**31 <= value < 2**31, field, f"must lie below {2**31}, not {value}")


LARGEST = 1e37  # sums of some such numbers are finite in 32 bits


def require_float32(field: str, value: float) -> None:
  """Devices compute in 32 bits, or 16 of the same range: what is beyond is infinite there, what is below nothing."""
  require(math.isfinite(value), field, f"must be a finite number, not {value}")
  require(value == 0 or 1e-37 <= abs(value) <= LARGEST, field, f"must be 0, or between 1e-37 and 1e37, not {value}")


def require_one_of(field: str, value: str, known: Sequence[str]) -> None:
  require(value in known, field, f"{value!r} is not one of {', '.join(known)}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
  """The end of a message about a name that is not known: the nearest one that is, or nothing."""
  near = difflib.get_close_matches(name, known, 1)
  return f"; did you mean {near[0]!r}?" if near else ""


def did_you_mean_field(path: str, known: Iterable[str]) -> str:
  """As `did_you_mean`, of a field's path: its name may be right, or nearly so, in another section, or in several."""
  known = list(known)
  beside = [field for field in known if field.count(".") == path.count(".")]
  near = difflib.get_close_matches(path, beside, 1, 0.75)
  if not near:
    last = lambda field: field.rpartition(".")[2]
    names = difflib.get_close_matches(last(path), set(map(last, known)), 1)
    near = [field for field in known if last(field) in names]
  return f"; did you mean {' or '.join(map(repr, near[:3]))}?" if near else did_you_mean(path, known)


def require_whole(field: str, lengths: Sequence[int]) -> None:
  whole = all(type(length) is int for length in lengths)  # flags do not look into tuples
  require(whole, field, f"must be whole numbers, not {tuple(lengths)}")


def require_buckets(field: str, buckets: Sequence[int]) -> None:
  """Buckets are ascending positive integers, one at least."""
  require_whole(field, buckets)
  ascending = len(buckets) > 0 and list(buckets) == sorted(set(buckets)) and buckets[0] >= 1
  require(ascending, field, f"must be ascending positive lengths, not {tuple(buckets)}")


def require_positions(said: str, tokens: int, limit: int, path) -> None:
  """Prompt and completion, as `said`, may not need more positions than the model at `path` has."""
  if tokens > limit:
    raise ValueError(f"{said} exceed the {limit} positions of {path}")
