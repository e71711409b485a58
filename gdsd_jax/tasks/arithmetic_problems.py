"""Generates the arithmetic word problems: the same ones on every machine and Python release."""

import hashlib
import itertools
from collections.abc import Iterator
from typing import Any

SMALLEST_OPERAND, LARGEST_OPERAND = 1, 30
SPLIT_SIZES = {"train": 8_000, "test": 400}
TEST_FRACTION = 0.15  # of the facts

NAMES = ("Tom", "Ana", "Ben", "Mia", "Sam", "Eva")
THINGS = ("apple", "book", "coin", "pen", "shell", "card")
TEMPLATES = {
  "+": (
    "{name} has {left} and buys {right} more. How many {things} does {name} have?",
    "{name} finds {left} and then {right} more. How many {things} did {name} find?",
    "{name} gets {left} on Monday and {right} on Friday. How many {things} is that?",
    "A box holds {left}. {name} adds {right} more. How many {things} are in the box?",
  ),
  "-": (
    "{name} has {left} and gives away {right}. How many {things} does {name} have left?",
    "{name} had {left} but lost {right}. How many {things} does {name} have now?",
    "{name} buys {left} and then sells {right}. How many {things} does {name} keep?",
    "A box holds {left}. {name} takes out {right}. How many {things} are in the box?",
  ),
}


def problems(split: str) -> Iterator[dict[str, Any]]:
  """Problems of split "train" or "test", each fact several times in different words.

  A fact is an operation on two operands; for "+" their order does not matter. Every fact belongs to one split alone,
  so that test accuracy measures calculation rather than memory.

  Yields:
    dicts of `question` (str), `answer` (int), `operation` ("+" or "-"), `left` and `right` (int). No two questions
    are equal, within a split or across splits.
  """
  wordings = [_wordings(*fact) for fact in _facts(split)]
  # Every fact once, then every fact again: all are equally frequent, to within one.
  in_turn = itertools.chain.from_iterable(zip(*wordings))
  for wording in itertools.islice(in_turn, SPLIT_SIZES[split]):
    yield _problem(*wording)


def _facts(split):
  operands = range(SMALLEST_OPERAND, LARGEST_OPERAND + 1)
  facts = [(operation, a, b) for operation in TEMPLATES for a in operands for b in operands if a >= b]
  facts = _shuffled(facts)
  num_test = round(TEST_FRACTION * len(facts))
  return facts[:num_test] if split == "test" else facts[num_test:]


def _wordings(operation, larger, smaller):
  orders = {(larger, smaller), (smaller, larger)} if operation == "+" else {(larger, smaller)}
  return _shuffled(
    (operation, left, right, template, name, thing)
    for (left, right), template, name, thing in itertools.product(orders, TEMPLATES[operation], NAMES, THINGS)
  )


def _shuffled(items):
  # By digest, since the shuffle of the random module may change between Python releases.
  return sorted(items, key=lambda item: hashlib.sha256(repr(item).encode()).digest())


def _problem(operation, left, right, template, name, thing):
  first = f"{left} {thing}" if left == 1 else f"{left} {thing}s"
  question = template.format(name=name, left=first, right=right, things=f"{thing}s")
  answer = left + right if operation == "+" else left - right
  return {"question": question, "answer": answer, "operation": operation, "left": left, "right": right}
