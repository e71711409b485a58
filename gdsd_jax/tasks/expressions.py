"""Arithmetic expressions in +, -, *, / and parentheses: their exact value, and expressions that reach a target."""

import ast
from collections.abc import Sequence
from fractions import Fraction
import itertools
import operator
import re

MAX_LENGTH = 1000  # longer text is no expression of a few numbers; it bounds the work
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}

_TEXT = re.compile(r"(?:[0-9]+\.?(?![0-9])|[-+*/()\s])*", re.ASCII)
_NUMBER = re.compile(r"[0-9]+")
_NODES = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
          ast.USub: operator.neg, ast.UAdd: operator.pos}
_SHAPES = ("{}{}{}{}{}", "({}{}{}){}{}", "{}{}({}{}{})")


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
  found = itertools.islice(_NUMBER.finditer(text), len(numbers) + 1)
  return sorted(match[0].lstrip("0") or "0" for match in found) == sorted(map(str, numbers))


def solve(numbers: Sequence[int], target: int, operators: str = "+-*/") -> str | None:
  """An expression of three numbers, each used once, that evaluates to `target`; None if there is none.

  The first one found: the numbers as far as possible in their order, parentheses only where needed.
  """
  choices = itertools.product(itertools.permutations(numbers), _SHAPES, operators, operators)
  texts = (shape.format(a, first, b, second, c) for (a, b, c), shape, first, second in choices)
  return next((text for text in texts if evaluate(text) == target), None)
