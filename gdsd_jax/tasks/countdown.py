"""Countdown: make a number of three others. The prompts of GDSD and of ESPO, by name, and the rewards of both."""

import ast
from collections.abc import Mapping, Sequence
import dataclasses
from fractions import Fraction
import itertools
import logging
import operator
import re
from typing import Any, ClassVar

from gdsd_jax.checks import require
from gdsd_jax.tasks import answers, base, boxes, official_prompts, puzzles

_log = logging.getLogger(__name__)

NUM_NUMBERS = 3
# The generated problems of each variant. Numbers and targets of the public test file go up to 100.
SPLIT_SIZES = {
  "official": {"train": 10_000, "validation": 500, "test": 500},
  "small": {"train": 6_000, "validation": 400, "test": 400},
}
LARGEST_NUMBER, LARGEST_TARGET = {"official": 100, "small": 15}, 100
OPERATORS = {"official": "+-*/", "small": "+-"}

CORRECT_REWARD, ANSWER_REWARD = 1.0, 0.1  # the latter for any answer in tags
_TOLERANCE = Fraction(1, 100_000)  # matters for large targets only
_LATEX_OPERATORS = (("\\div", "/"), ("\\times", "*"), ("\\cdot", "*"))
_SIGNS = str.maketrans("×·⋅÷−–", "***/--")  # as people write them; the lenient accuracy knows them
_EQUALS = re.compile(r"(?<=[0-9+*/() -])=(?=[0-9. ])")
_LAYOUTS = (("numbers", "target"), ("nums", "target"), ("input", "output"))  # columns of rows

MAX_LENGTH = 1000  # longer text is no expression of a few numbers; it bounds the work
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
_TEXT = re.compile(r"(?:[0-9]+\.?(?![0-9])|[-+*/()\s])*", re.ASCII)
_NODES = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
          ast.USub: operator.neg, ast.UAdd: operator.pos}
_SHAPES = ("{}{}{}{}{}", "({}{}{}){}{}", "{}{}({}{}{})")


@dataclasses.dataclass(frozen=True)
class CountdownTask(puzzles.PuzzleTask):
  """Three numbers and a target, asked for as an expression in `<answer>` tags.

  An example has `numbers` (list of int) and `target` (int); for prompts and rewards, a row will do. Rows have `numbers`
  or `nums`, and `target`; or `input` ("30,100,93") and `output`. Those of three numbers are kept.

  An expression may hold +, -, *, / and parentheses. The official code also lets pass what its prompt forbids but Python
  evaluates: powers, floor division, and decimals made of the numbers, such as .5 or 1.5. The small variant asks
  "3 5 7 = 9"; its generated problems have smaller numbers and fewer operators.
  """

  name: ClassVar[str] = "countdown"

  def examples(self, split: str) -> Sequence[Mapping[str, Any]]:
    found = super().examples(split)
    examples = [example for example in found if len(example["numbers"]) == NUM_NUMBERS]
    require(len(examples) > 0, f"task.{split}_source",
            f"{self.source(split)}: no problem of {NUM_NUMBERS} numbers in it")
    if len(examples) < len(found):
      _log.info("task.%s_source: %d of %d problems are left out, which have other than %d numbers", split,
                len(found) - len(examples), len(found), NUM_NUMBERS)
    return examples

  def generated(self, split: str) -> Sequence[Mapping[str, Any]]:
    size, options = SPLIT_SIZES[self.variant][split], (LARGEST_NUMBER[self.variant], OPERATORS[self.variant])
    return puzzles.generate(self.name, split, size, _problem, key, *options)

  def read_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
    columns = next((columns for columns in _LAYOUTS if all(column in row for column in columns)), None)
    if columns is None:
      raise ValueError(
        f"must have columns 'numbers' or 'nums', and 'target', or 'input' and 'output', it has {', '.join(row)}")
    numbers, target = (row[column] for column in columns)
    try:
      if isinstance(numbers, str):  # CSV has lists as text, too: "[30, 100, 93]"
        numbers = numbers.strip("[] ").replace(",", " ").split()
      numbers, target = list(map(_number, numbers)), _number(target)
    except (TypeError, OverflowError) as error:
      raise ValueError(f"numbers must be a list or text such as '30,100,93', the target a number: {error}") from error
    if any(not isinstance(number, int) or number < 0 for number in numbers):
      raise ValueError(f"numbers must be whole and not negative, they are {numbers}")
    return {"numbers": numbers, "target": target}

  def messages(self, example: Mapping[str, Any]) -> list[dict[str, str]]:
    example = self.read_row(example)
    if self.asked == puzzles.BARE:
      return [{"role": "user", "content": f"{' '.join(map(str, example['numbers']))} = {example['target']}"}]
    return [{"role": "user", "content": official_prompts.COUNTDOWN[self.asked].format(**example)}]

  def evaluation_messages(self, example: Mapping[str, Any]) -> list[dict[str, str]]:
    if self.asked == puzzles.BARE:
      return self.messages(example)
    return [{"role": "user", "content": official_prompts.COUNTDOWN_EVALUATION.format(**self.read_row(example))}]

  def reference_answer(self, example: Mapping[str, Any]) -> str | None:
    return self._solve(self.read_row(example))

  def grade_one(self, completion: str, example: Mapping[str, Any]) -> base.Grade:
    """The reward is for the last tagged answer; accuracy finds the expression elsewhere, too, see `_expression_in`.

    What either of them counts is right to the lenient accuracy, which reads ×, ÷ and − besides.
    """
    answer = answers.last_answer(completion)
    reward = 0.0 if answer is None else CORRECT_REWARD if self._solves(answer, example) else ANSWER_REWARD
    right = self._solves(_expression_in(completion), example)
    lenient = right or reward == CORRECT_REWARD or self._solves(_expression_in(completion.translate(_SIGNS)), example)
    return base.Grade({"equation": reward}, right, lenient)

  def _solves(self, expression: str, example: Mapping[str, Any]) -> bool:
    example = self.read_row(example)
    value = evaluate(expression) if uses_each_once(expression, example["numbers"]) else None
    return value is not None and abs(value - example["target"]) < _TOLERANCE

  def solution(self, example: Mapping[str, Any]) -> str:
    return f"<answer>{self._solve(example)}</answer>"

  def careless_solution(self, example: Mapping[str, Any], slips: float, rng) -> str:
    """A solution as a careless writer gives it: with probability `slips`, one of its operators is wrong."""
    text = self._solve(example)
    if rng.random() < slips:
      place = int(rng.choice([place for place, character in enumerate(text) if character in "+-*/"]))
      wrong = str(rng.choice([operator for operator in OPERATORS[self.variant] if operator != text[place]]))
      text = text[:place] + wrong + text[place + 1:]
    return f"<answer>{text}</answer>"

  def _solve(self, example):
    return solve(example["numbers"], example["target"], OPERATORS[self.variant])


def _expression_in(completion: str) -> str:
  """The expression where the official parser finds it: boxed, in the first tag, or untagged, and up to its result.

  The official code evaluates the powers and floor divisions, too, that its prompt forbids: the one difference from its
  accuracy, in 1 of the 1,500 golden completions.
  """
  found = boxes.boxed(completion), answers.first_answer(completion), completion
  text = next(text for text in found if text is not None)
  for latex, sign in _LATEX_OPERATORS:
    text = text.replace(latex, sign)
  equals = _EQUALS.search(text)
  if equals is not None:
    before = text[:equals.start()]
    text = before[len(before.rstrip("0123456789+-*/() ")):]
  return text.strip()


def _number(value):
  number = int(value)
  return number if isinstance(value, str) or number == value else value


# Arithmetic expressions


def evaluate(text: str) -> Fraction | None:
  """Value of an expression, read as Python reads it but with exact fractions.

  Powers, floor division and decimals are no part of it; a point after a number, as at the end of a sentence, is. None
  for what is no expression, is nested too deeply for Python, is longer than MAX_LENGTH, or divides by zero.
  """
  if len(text) > MAX_LENGTH or not _TEXT.fullmatch(text):
    return None
  try:
    return _value(ast.parse(re.sub(r"0*([0-9]+)\.", r"\1", text.strip(" \t\f")), mode="eval").body)
  except (SyntaxError, KeyError, ZeroDivisionError, RecursionError, MemoryError):
    return None


def _value(node: ast.expr) -> Fraction:
  match node:
    case ast.Constant():
      return Fraction(node.value)
    case ast.UnaryOp():
      return _NODES[type(node.op)](_value(node.operand))
    case ast.BinOp():
      return _NODES[type(node.op)](_value(node.left), _value(node.right))
  raise SyntaxError("no expression of numbers")


def uses_each_once(text: str, numbers: Sequence[int]) -> bool:
  """Whether the numbers in `text` are `numbers`, in any order."""
  # As text, because int() refuses to read very long numbers; and no further than one number too many.
  found = itertools.islice(re.finditer(r"[0-9]+", text), len(numbers) + 1)
  return sorted(match[0].lstrip("0") or "0" for match in found) == sorted(map(str, numbers))


def solve(numbers: Sequence[int], target: int, operators: str = "+-*/") -> str | None:
  """An expression of three numbers, each used once, that evaluates to `target`; None if there is none.

  The first one found: the numbers as far as possible in their order, parentheses only where needed.
  """
  choices = itertools.product(itertools.permutations(numbers), _SHAPES, operators, operators)
  texts = (shape.format(a, first, b, second, c) for (a, b, c), shape, first, second in choices)
  return next((text for text in texts if evaluate(text) == target), None)


# Generated problems


def key(numbers: Sequence[int], target: int) -> str:
  """What makes two problems the same: the target and the numbers, which may be asked for in another order."""
  return f"{','.join(map(str, sorted(numbers)))}={target}"


def _problem(draw: bytes, largest: int, operators: str) -> dict[str, Any] | None:
  """Three numbers up to `largest`, and as the target the value of (a ∘ b) ∘ c or a ∘ (b ∘ c), without remainders."""
  numbers = [1 + int.from_bytes(draw[i:i + 4], "big") % largest for i in (0, 4, 8)]
  first, second = (OPERATIONS[operators[byte % len(operators)]] for byte in draw[12:14])
  a, b, c = map(Fraction, numbers)
  try:
    inner = second(b, c) if draw[14] % 2 else first(a, b)
    target = first(a, inner) if draw[14] % 2 else second(inner, c)
  except ZeroDivisionError:
    return None
  fits = inner.denominator == target.denominator == 1 and 1 <= target <= LARGEST_TARGET
  return {"numbers": numbers, "target": int(target)} if fits else None
