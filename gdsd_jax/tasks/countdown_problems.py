"""Generates Countdown problems that can be solved."""

from collections.abc import Sequence
from fractions import Fraction
import functools

from gdsd_jax.tasks import puzzles
from gdsd_jax.tasks.expressions import OPERATIONS, OPERATORS

OFFICIAL_LARGEST = 100  # number and target of the public test file


def key(numbers: Sequence[int], target: int) -> str:
  """What makes two problems the same: target and numbers, in whatever order."""
  return f"{','.join(map(str, sorted(numbers)))}={target}"


@functools.cache
def problems(
  split: str, size: int, largest: int = OFFICIAL_LARGEST, operators: str = OPERATORS
) -> tuple[dict[str, object], ...]:
  """Problems of split "train" or "test", see `puzzles.generate`: three numbers of 1…largest, and a target of 1…100.

  The target is the value of a random expression of the numbers. The same numbers in another order may be asked for, in
  the same split.

  Returns:
    dicts of `numbers` (list of int) and `target` (int).
  """

  def problem(draw: bytes):
    numbers = [1 + int.from_bytes(draw[i:i + 4], "big") % largest for i in (0, 4, 8)]
    target = _value(numbers, operators[draw[12] % len(operators)], operators[draw[13] % len(operators)], draw[14] % 2)
    return {"numbers": numbers, "target": target} if target is not None and 1 <= target <= OFFICIAL_LARGEST else None

  return puzzles.generate(f"countdown {largest} {operators}", split, size, problem, key)


def _value(numbers: Sequence[int], first: str, second: str, nested: int) -> int | None:
  """(a ∘ b) ∘ c, or a ∘ (b ∘ c) if nested; None where a division leaves a remainder."""
  a, b, c = map(Fraction, numbers)
  try:
    inner = OPERATIONS[second](b, c) if nested else OPERATIONS[first](a, b)
    value = OPERATIONS[first](a, inner) if nested else OPERATIONS[second](inner, c)
  except ZeroDivisionError:
    return None
  return int(value) if inner.denominator == value.denominator == 1 else None
