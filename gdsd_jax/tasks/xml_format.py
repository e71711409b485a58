"""Rewards for completions laid out as <reasoning>…</reasoning><answer>…</answer>, with the values of d1 and GDSD."""

import re

SYSTEM_PROMPT = """
Respond in the following format:
<reasoning>
...
</reasoning>
<answer>
...
</answer>
"""

_BETWEEN = re.compile(r"</reasoning>\s*<answer>")


# Not by regular expressions, which take quadratic time on many tags that are never closed.


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


def soft_format(text: str) -> float:
  """0.5 for a text that starts with both pairs of tags, in order."""
  between = _BETWEEN.search(text, len("<reasoning>")) if text.startswith("<reasoning>") else None
  return 0.5 if between and "</answer>" in text[between.end():] else 0.0


def strict_format(text: str) -> float:
  """0.5 for both pairs of tags, each tag on a line of its own, with nothing around them but one more line's end."""
  opening = "<reasoning>\n"
  _, between, answer = text[len(opening):].partition("\n</reasoning>\n<answer>\n")
  # The official code ends its pattern in `$`, which lets the line's end pass.
  ended = answer.endswith(("\n</answer>\n", "\n</answer>\n\n"))
  return 0.5 if text.startswith(opening) and between and ended else 0.0


def tag_count(text: str) -> float:
  """0.125 for each of the four tags that stands once on its own line, less 0.001 a character after the answer tags."""
  reward = 0.125 * (text.count("<reasoning>\n") == 1) + 0.125 * (text.count("\n</reasoning>\n") == 1)
  if text.count("\n<answer>\n") == 1:
    reward += 0.125 - 0.001 * len(text.rsplit("\n<answer>\n", 1)[1])
  if text.count("\n</answer>") == 1:
    reward += 0.125 - 0.001 * (len(text.rsplit("\n</answer>", 1)[1]) - 1)
  return reward
