"""Generates Countdown problems that can be solved: the same ones on every machine and Python release."""

from collections.abc import Sequence
import functools
import hashlib
import itertools

from gdsd_jax.tasks.expressions import OPERATORS
from gdsd_jax.tasks.official_digests import is_official_test

OFFICIAL_LARGEST = 100  # number and target of the public test file
_TEST_SHARE = 0.1  # share of the problems that are in the test split


def key(numbers: Sequence[int], target: int) -> str:
  """What makes two problems the same: target and numbers, in whatever order."""
  return f"{','.join(map(str, sorted(numbers)))}={target}"


@functools.cache
def problems(
  split: str, size: int, largest: int = OFFICIAL_LARGEST, operators: str = OPERATORS
) -> tuple[dict[str, object], ...]:
  """Up to `size` problems of split "train" or "test": three numbers of 1…largest, and a target of 1…100 they reach.

  The target is the value of a random expression of the numbers. A problem belongs to one split alone, by its digest,
  and is none of the public test file; the same numbers in another order may be asked for, in the same split.

  Returns:
    dicts of `numbers` (list of int) and `target` (int), no two of them equal.
  """
  found = {}
  for number in itertools.count():
    draw = hashlib.sha256(f"countdown {largest} {operators} {number}".encode()).digest()
    numbers = tuple(1 + int.from_bytes(draw[i:i + 4], "big") % largest for i in (0, 4, 8))
    target = _value(numbers, operators[draw[12] % len(operators)], operators[draw[13] % len(operators)], draw[14] % 2)
    if target is not None and 1 <= target <= OFFICIAL_LARGEST:
      problem = key(numbers, target)
      if _split_of(problem) == split and not is_official_test(problem):
        found[numbers, target] = None
    if len(found) == size:
      return tuple({"numbers": list(numbers), "target": target} for numbers, target in found)


def _value(numbers: Sequence[int], first: str, second: str, nested: int) -> int | None:
  """(a ∘ b) ∘ c, or a ∘ (b ∘ c) if nested; None where a division leaves a remainder."""
  a, b, c = numbers
  if nested:
    inner = _combine(b, second, c)
    return None if inner is None else _combine(a, first, inner)
  inner = _combine(a, first, b)
  return None if inner is None else _combine(inner, second, c)


def _combine(left: int, operator: str, right: int) -> int | None:
  if operator == "/":
    return left // right if right and left % right == 0 else None
  return left + right if operator == "+" else left - right if operator == "-" else left * right


def _split_of(problem: str) -> str:
  return "test" if hashlib.sha256(f"split {problem}".encode()).digest()[0] < 256 * _TEST_SHARE else "train"
