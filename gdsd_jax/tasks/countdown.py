"""Countdown: make a number of three others. Prompts and rewards of d1, ESPO and GDSD."""

from collections.abc import Mapping, Sequence
import dataclasses
from fractions import Fraction
import re
from typing import Any, ClassVar

from gdsd_jax.checks import require
from gdsd_jax.tasks import answers, base, puzzles
from gdsd_jax.tasks.expressions import evaluate, OPERATIONS, solve, uses_each_once

NUM_NUMBERS = 3
# The generated problems of each variant. Numbers and targets of the public test file go up to 100.
SPLIT_SIZES = {"official": {"train": 10_000, "test": 500}, "small": {"train": 6_000, "test": 500}}
LARGEST_NUMBER, LARGEST_TARGET = {"official": 100, "small": 15}, 100
OPERATORS = {"official": "+-*/", "small": "+-"}

CORRECT_REWARD, ANSWER_REWARD = 1.0, 0.1  # the latter for any answer in tags
_TOLERANCE = Fraction(1, 100_000)  # matters for large targets only
_LATEX_OPERATORS = (("\\div", "/"), ("\\times", "*"), ("\\cdot", "*"))
_EQUALS = re.compile(r"(?<=[0-9+*/() -])=(?=[0-9. ])")
_LAYOUTS = (("numbers", "target"), ("nums", "target"), ("input", "output"))  # columns of rows

INSTRUCTION = (
  "\nUsing only the numbers {numbers}, create an arithmetic expression that evaluates to exactly {target}. You must "
  "use all numbers from the list, and each number must be used exactly once. You may use the operations +, -, *, and "
  "/ as needed. After reasoning, provide only your final expression inside <answer></answer> tags without including an "
  "equals sign or the target number. For example, if the numbers are [2, 3, 4] and the target is 5, a valid answer is: "
  "<answer>\n2*4-3\n</answer>"
)


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
    examples = [example for example in super().examples(split) if len(example["numbers"]) == NUM_NUMBERS]
    source = getattr(self, f"{split}_source")
    require(len(examples) > 0, f"task.{split}_source", f"{source}: no problem of {NUM_NUMBERS} numbers in it")
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
    if self.variant == "small":
      return [{"role": "user", "content": f"{' '.join(map(str, example['numbers']))} = {example['target']}"}]
    return [{"role": "user", "content": answers.TAGS_INSTRUCTION + INSTRUCTION.format(**example)}]

  def grade_one(self, completion: str, example: Mapping[str, Any]) -> base.Grade:
    """The reward is for the last tagged answer; accuracy finds the expression elsewhere, too, see `_expression_in`."""
    answer = answers.last_answer(completion)
    reward = 0.0 if answer is None else CORRECT_REWARD if self._solves(answer, example) else ANSWER_REWARD
    return base.Grade({"equation": reward}, self._solves(_expression_in(completion), example))

  def _solves(self, expression: str, example: Mapping[str, Any]) -> bool:
    example = self.read_row(example)
    value = evaluate(expression) if uses_each_once(expression, example["numbers"]) else None
    return value is not None and abs(value - example["target"]) < _TOLERANCE

  def solution(self, example: Mapping[str, Any]) -> str:
    """A completion that earns the full reward, for pretraining."""
    return f"<answer>{self._solve(example)}</answer>"

  def careless_solution(self, example: Mapping[str, Any], slips: float, rng) -> str:
    """A solution as a careless writer gives it: with probability `slips`, one of its operators is wrong."""
    text = self._solve(example)
    if rng.random() < slips:
      places = [place for place, character in enumerate(text) if character in "+-*/"]
      place = int(rng.choice(places))
      wrong = str(rng.choice([operator for operator in OPERATORS[self.variant] if operator != text[place]]))
      text = text[:place] + wrong + text[place + 1:]
    return f"<answer>{text}</answer>"

  def _solve(self, example):
    return solve(example["numbers"], example["target"], OPERATORS[self.variant])


def _expression_in(completion: str) -> str:
  """The expression as d1 and GDSD find it: it may be boxed, in LaTeX, followed by its result, or untagged."""
  found = answers.boxed(completion), answers.first_answer(completion), completion
  text = next(text for text in found if text is not None)
  for latex, operator in _LATEX_OPERATORS:
    text = text.replace(latex, operator)
  equals = _EQUALS.search(text)
  if equals is not None:
    before = text[:equals.start()]
    text = before[len(before.rstrip("0123456789+-*/() ")):]
  return text.strip()


def _number(value):
  number = int(value)
  return number if isinstance(value, str) or number == value else value


# Generated problems


def key(numbers: Sequence[int], target: int) -> str:
  """What makes two problems the same: the target and the numbers, which may be asked for in another order."""
  return f"{','.join(map(str, sorted(numbers)))}={target}"


def _problem(draw: bytes, largest: int, operators: str) -> dict[str, Any] | None:
  """Three numbers up to `largest`, and as the target the value of a random expression of them."""
  numbers = [1 + int.from_bytes(draw[i:i + 4], "big") % largest for i in (0, 4, 8)]
  target = _value(numbers, operators[draw[12] % len(operators)], operators[draw[13] % len(operators)], draw[14] % 2)
  return {"numbers": numbers, "target": target} if target is not None and 1 <= target <= LARGEST_TARGET else None


def _value(numbers: Sequence[int], first: str, second: str, nested: int) -> int | None:
  """(a ∘ b) ∘ c, or a ∘ (b ∘ c) if nested; None where a division leaves a remainder."""
  a, b, c = map(Fraction, numbers)
  try:
    inner = OPERATIONS[second](b, c) if nested else OPERATIONS[first](a, b)
    value = OPERATIONS[first](a, inner) if nested else OPERATIONS[second](inner, c)
  except ZeroDivisionError:
    return None
  return int(value) if inner.denominator == value.denominator == 1 else None
