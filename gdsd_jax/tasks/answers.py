r"""Answers in completions: in `<answer>` tags or in \boxed{…}, and whether two in LaTeX read the same after clean-up.

The rules are those of the MATH benchmark and of d1, as GDSD applies them. No regular expressions find tags: where many
are never closed, they take quadratic time.
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


def unboxed(text: str) -> str | None:
  r"""What stands in the last `\boxed{…}`, after the last `\boxed ` up to a dollar sign, or else in the last `\fbox{…}`.

  It is all of `text` where nothing is boxed, and None where the last box is never closed.
  """
  if "\\boxed " in text:
    return text.rsplit("\\boxed ", 1)[1].split("$", 1)[0]
  start = text.rfind("\\boxed" if "\\boxed" in text else "\\fbox")
  if start < 0:
    return text
  depth = 0
  for end in range(start, len(text)):
    depth += {"{": 1, "}": -1}.get(text[end], 0)
    if depth == 0 and text[end] == "}":
      box = text[start : end + 1]
      return box.removeprefix("\\boxed{").removesuffix("}") if box.startswith("\\boxed{") else box
  return None


def boxed(text: str) -> str | None:
  r"""As `unboxed`, but None, too, where there is no `\boxed`."""
  return unboxed(text) if "\\boxed" in text else None


def same_answer(first: str | None, second: str | None) -> bool:
  """Whether two answers are the same text after clean-up. No arithmetic: 1+x is not x+1."""
  return first is not None and second is not None and _cleaned(first) == _cleaned(second)


def _cleaned(answer: str) -> str:
  r"""An answer without spaces, units and layout, with braces around the arguments of `\frac` and `\sqrt`."""
  for old, new in _REPLACEMENTS:
    answer = answer.replace(old, new)
  answer = answer.split("\\text{ ", 1)[0]  # a unit
  answer = answer.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
  answer = "0" + answer if answer.startswith(".") else answer
  name, *values = answer.split("=")
  if len(values) == 1 and len(name) <= 2:  # x = …
    answer = values[0]
  answer = re.sub(r"\\sqrt(?!\\sqrt)([^{])", r"\\sqrt{\1}", answer)
  answer = answer.replace(" ", "")
  answer = re.sub(r"\\frac(?!\\frac)([^{])(?!\\frac)([^{])", r"\\frac{\1}{\2}", answer)
  answer = re.sub(r"\\frac([^{])\{", r"\\frac{\1}{", answer)
  if answer == "0.5":
    answer = "1/2"
  return re.sub(rf"^{_CANONICAL_INTEGER}/{_CANONICAL_INTEGER}\Z", r"\\frac{\1}{\2}", answer)
