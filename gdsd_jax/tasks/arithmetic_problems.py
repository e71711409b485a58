"""Generates the arithmetic word problems: the same ones on every machine and Python release."""

from collections.abc import Iterator
import hashlib
import itertools
from typing import Any

SMALLEST_OPERAND, LARGEST_OPERAND = 1, 6
SPLIT_SIZES = {"train": 9_000, "test": 400}
TEST_FRACTION = 0.1  # of the calculations

NAMES = ("Tom", "Ana", "Ben", "Mia", "Sam", "Eva")
THINGS = ("apple", "book", "coin", "pen", "shell", "card")
EVENTS = {
  "+": ("finds {number} more", "buys {number}", "gets {number} more"),
  "-": ("gives away {number}", "loses {number}", "sells {number}"),
}
TEMPLATES = (
  "{name} has {start}, {first} and {second}. How many {things} does {name} have?",
  "{name} starts with {start}. {name} {first}, then {second}. How many {things} are left?",
  "With {start} in a bag, {name} {first}, then {second}. How many {things} now?",
  "How many {things} are there if {name} has {start}, {first} and {second}?",
)


def problems(split: str) -> Iterator[dict[str, Any]]:
  """Problems of split "train" or "test", each calculation several times in different words.

  A calculation is a start and two events, such as 7 + 5 − 3, that never falls below zero. Every calculation belongs to
  one split alone, so that test accuracy measures composition of known steps rather than memory of results.

  Yields:
    dicts of `question` (str), `reasoning` (str, such as "7+5=12 12-3=9") and `answer` (int). No two questions are
    equal, within a split or across splits.
  """
  calculations = _calculations(split)
  for round_number in itertools.count():
    # Every calculation once, then every one again in other words: all are equally frequent, to within one.
    for i, calculation in enumerate(calculations):
      if round_number * len(calculations) + i == SPLIT_SIZES[split]:
        return
      yield _problem(*calculation, _wording(calculation, round_number))


def _calculations(split):
  operands = range(SMALLEST_OPERAND, LARGEST_OPERAND + 1)
  every = [
    (start, first, second)
    for start in operands
    for first in itertools.product(EVENTS, operands)
    for second in itertools.product(EVENTS, operands)
    if _apply(start, first) >= 0 and _apply(_apply(start, first), second) >= 0
  ]
  every = _shuffled(every)
  num_test = round(TEST_FRACTION * len(every))
  return every[:num_test] if split == "test" else every[num_test:]


def _apply(value: int, event: tuple[str, int]) -> int:
  sign, operand = event
  return value + operand if sign == "+" else value - operand


def _wording(calculation, round_number: int) -> int:
  # A stride through all wordings from a start that depends on the calculation: no wording comes twice.
  count = _num_wordings()
  return (int.from_bytes(_digest(calculation)[:4], "big") + round_number * (count // 7 + 1)) % count


def _num_wordings() -> int:
  return len(TEMPLATES) * len(NAMES) * len(THINGS) * len(EVENTS["+"]) * len(EVENTS["-"])


def _problem(start: int, first, second, wording: int) -> dict[str, Any]:
  wording, template = divmod(wording, len(TEMPLATES))
  wording, name = divmod(wording, len(NAMES))
  wording, thing = divmod(wording, len(THINGS))
  first_verb, second_verb = divmod(wording, len(EVENTS["+"]))
  thing, between = THINGS[thing], _apply(start, first)
  answer = _apply(between, second)
  question = TEMPLATES[template].format(
    name=NAMES[name], things=f"{thing}s", start=f"{start} {thing}" if start == 1 else f"{start} {thing}s",
    first=EVENTS[first[0]][first_verb].format(number=first[1]),
    second=EVENTS[second[0]][second_verb].format(number=second[1]),
  )
  reasoning = f"{start}{first[0]}{first[1]}={between} {between}{second[0]}{second[1]}={answer}"
  return {"question": question, "reasoning": reasoning, "answer": answer}


def _shuffled(items):
  # By digest, since the shuffle of the random module may change between Python releases.
  return sorted(items, key=_digest)


def _digest(item) -> bytes:
  return hashlib.sha256(repr(item).encode()).digest()
