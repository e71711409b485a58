r"""Answers in `<answer>` tags, and whether two in LaTeX read the same after the clean-up of the MATH benchmark.

Boxes are in boxes.py, numbers in numbers.py. No regular expressions find tags: where many are never closed, they take
quadratic time.
"""

import re

BOXED_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."  # after the problem

# In this order. Layout, degrees, dollars and percent signs say nothing about equality.
_REPLACEMENTS = (
  ("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"), ("\\left", ""), ("\\right", ""),
  ("^{\\circ}", ""), ("^\\circ", ""), ("\\$", ""),
)
_CANONICAL_INTEGER = r"(0|-?[1-9][0-9]*)"


def first_answer(text: str) -> str | None:
  """Stripped text between the first `<answer>` and the next `</answer>`; None if they are not both there."""
  answer, closed, _ = text.partition("<answer>")[2].partition("</answer>")
  return answer.strip() if closed else None


def last_answer(text: str) -> str | None:
  """Stripped text of the last pair of `<answer>` and the next `</answer>`, pairs taken from the left; None without."""
  answers = [part.partition("<answer>")[2] for part in text.split("</answer>")[:-1] if "<answer>" in part]
  return answers[-1].strip() if answers else None


def lenient_answer(text: str) -> str:
  """Stripped text after the last `<answer>`, up to the next `</answer>`; of a text without tags all of it."""
  return text.rsplit("<answer>", 1)[-1].split("</answer>", 1)[0].strip()


def same_answer(first: str | None, second: str | None) -> bool:
  """Whether two answers are the same text after clean-up. No arithmetic: 1+x is not x+1.

  As in the official code, what the clean-up cannot read is compared as it stands, and the other one, too.
  """
  if first is None or second is None:
    return False
  cleaned = _cleaned(first), _cleaned(second)
  return first == second if None in cleaned else cleaned[0] == cleaned[1]


def _cleaned(answer: str) -> str | None:
  r"""An answer without spaces, units and layout, with braces around the arguments of `\frac` and `\sqrt`.

  None where it has two units, or ends in `\frac` or `\sqrt`.
  """
  for old, new in _REPLACEMENTS:
    answer = answer.replace(old, new)
  answer, *units = answer.split("\\text{ ")
  if len(units) > 1:
    return None
  answer = answer.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
  answer = "0" + answer if answer.startswith(".") else answer
  name, *values = answer.split("=")
  if len(values) == 1 and len(name) <= 2:  # x = …
    answer = values[0]
  if answer.endswith("\\sqrt") or answer.rstrip(" ").endswith("\\frac"):
    return None
  answer = re.sub(r"\\sqrt(?!\\sqrt)([^{])", r"\\sqrt{\1}", answer)
  answer = answer.replace(" ", "")
  answer = re.sub(r"\\frac(?!\\frac)([^{])(?!\\frac)([^{])", r"\\frac{\1}{\2}", answer)
  answer = re.sub(r"\\frac([^{])\{", r"\\frac{\1}{", answer)
  if answer == "0.5":
    answer = "1/2"
  return re.sub(rf"^{_CANONICAL_INTEGER}/{_CANONICAL_INTEGER}\Z", r"\\frac{\1}{\2}", answer)
