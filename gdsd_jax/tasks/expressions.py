"""Arithmetic expressions in +, -, *, / and parentheses: their exact value, and expressions that reach a target."""

from collections.abc import Sequence
from fractions import Fraction
import itertools
import re

# Longer text is no expression of a few numbers. It bounds the work, however long a completion is.
MAX_LENGTH = 1000
OPERATORS = "+-*/"

_TOKEN = re.compile(r"[0-9]+\.?(?![0-9])|[-+*/()]|[ \t\f]+|[\r\n]+")
_NUMBER = re.compile(r"[0-9]+")
_PRECEDENCE = {"(": 0, "+": 1, "-": 1, "*": 2, "/": 2, "negate": 3, "keep": 3}
_SIGNS = {"-": "negate", "+": "keep"}
_SHAPES = ("{} {} {} {} {}", "({} {} {}) {} {}", "{} {} ({} {} {})")


def evaluate(text: str) -> Fraction | None:
  """Value of an expression, read as Python reads it but with exact fractions.

  Powers, floor division and decimals are no part of it; a point after a number, as at the end of a sentence, is.

  Returns:
    None for what is no expression, is longer than MAX_LENGTH, or divides by zero. Never raises.
  """
  if len(text) > MAX_LENGTH:
    return None
  values, operators = [], []
  position, operand_next = 0, True
  while position < len(text):
    match = _TOKEN.match(text, position)
    if match is None:
      return None
    token, position = match[0], match.end()
    if token.isspace():
      if token[0] in "\r\n" and "(" not in operators:  # ends the expression, as in Python
        return None
    elif operand_next:
      if token[0].isdigit():
        if token[0] == "0" and token.strip("0").isdigit():  # 05 is no number in Python
          return None
        values.append(Fraction(int(token.rstrip("."))))
        operand_next = False
      elif token == "(" or token in _SIGNS:
        operators.append(_SIGNS.get(token, token))
      else:
        return None
    elif token == ")":
      if "(" not in operators or not _apply(values, operators, 1):
        return None
      operators.pop()
    elif token in OPERATORS:
      if not _apply(values, operators, _PRECEDENCE[token]):
        return None
      operators.append(token)
      operand_next = True
    else:
      return None
  if operand_next or "(" in operators or not _apply(values, operators, 1):
    return None
  return values[0]


def _apply(values: list[Fraction], operators: list[str], precedence: int) -> bool:
  """Applies the operators on top of the stack that bind at least so tightly. False where one divides by zero."""
  while operators and _PRECEDENCE[operators[-1]] >= precedence:
    operator, right = operators.pop(), values.pop()
    if operator in ("negate", "keep"):
      values.append(-right if operator == "negate" else right)
      continue
    left = values.pop()
    if operator == "/" and not right:
      return False
    values.append(
      left + right if operator == "+" else
      left - right if operator == "-" else
      left * right if operator == "*" else
      left / right
    )
  return True


def uses_each_once(text: str, numbers: Sequence[int]) -> bool:
  """Whether the numbers in `text` are `numbers`, in any order."""
  # As text, because int() refuses to read very long numbers; and no further than one number too many.
  found = itertools.islice(_NUMBER.finditer(text), len(numbers) + 1)
  return sorted(match[0].lstrip("0") or "0" for match in found) == sorted(map(str, numbers))


def solve(numbers: Sequence[int], target: int, operators: str = OPERATORS) -> str | None:
  """An expression of three numbers, each used once, that evaluates to `target`; None if there is none.

  The first one found: the numbers as far as possible in their order, parentheses only where needed.
  """
  for ordered in itertools.permutations(numbers):
    for shape in _SHAPES:
      for first, second in itertools.product(operators, repeat=2):
        text = shape.format(ordered[0], first, ordered[1], second, ordered[2]).replace(" ", "")
        if evaluate(text) == target:
          return text
  return None
