"""Generates the arithmetic word problems: the same ones on every machine and Python release."""

import hashlib
import itertools
from typing import Any

LEFT_OPERANDS, RIGHT_OPERANDS = range(1, 13), range(1, 10)
SPLIT_SIZES = {"train": 9_000, "test": 400}
TEST_FRACTION = 0.1  # share of the problems that test asks

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


def problems(split: str) -> list[dict[str, Any]]:
  """Problems of split "train" or "test", always in the same order.

  A problem is a calculation in a sentence template, told several times with different names and things. It belongs to
  one split alone: test asks for known calculations in sentences that they were never seen in.

  Returns:
    dicts of `answer` (int), `question` (str) and `reasoning` (str, such as "12+7=19"). No two questions are equal,
    within a split or across splits.
  """
  tellings = [_shuffled((*problem, *telling) for telling in itertools.product(NAMES, THINGS))
              for problem in _problems(split)]
  # Every problem once, then every problem again: all are equally frequent, to within one.
  in_turn = itertools.chain.from_iterable(zip(*tellings))
  chosen = list(itertools.islice(in_turn, SPLIT_SIZES[split]))
  # TFDS shuffles a split by these digests. Runs draw problems by index, so the order is part of their results.
  order = sorted(range(len(chosen)), key=lambda index: hashlib.md5(f"{split}{index}".encode()).digest())
  return [_example(*chosen[index]) for index in order]


def _problems(split: str) -> list[tuple]:
  every = _shuffled(
    (operation, left, right, template)
    for operation, templates in TEMPLATES.items()
    for left, right, template in itertools.product(LEFT_OPERANDS, RIGHT_OPERANDS, templates)
    if operation == "+" or left >= right
  )
  num_test = round(TEST_FRACTION * len(every))
  return every[:num_test] if split == "test" else every[num_test:]


def _shuffled(items) -> list[tuple]:
  # By digest, since the shuffle of the random module may change between Python releases.
  return sorted(items, key=lambda item: hashlib.sha256(repr(item).encode()).digest())


def _example(operation: str, left: int, right: int, template: str, name: str, thing: str) -> dict[str, Any]:
  first = f"{left} {thing}" if left == 1 else f"{left} {thing}s"
  answer = left + right if operation == "+" else left - right
  return {
    "answer": answer,
    "question": template.format(name=name, left=first, right=right, things=f"{thing}s"),
    "reasoning": f"{left}{operation}{right}={answer}",
  }
