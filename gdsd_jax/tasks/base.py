"""What every task offers, and the parsing of answers that tasks share."""

from collections.abc import Mapping, Sequence
import re
from typing import Any, Protocol

SPLITS = ("train", "test")
VARIANTS = ("official", "small")

# No tag may stand inside, so of nested pairs this is the innermost, and an unclosed tag never matches.
_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL)


class Task(Protocol):
  """Problems with a checkable answer. Tasks are frozen dataclasses that inherit from it.

  Attributes:
    name: what `get_task` calls it.
  """

  name: str

  def examples(self, split: str) -> Sequence[Mapping[str, Any]]:
    """Problems of split "train" or "test", by index; their fields are the task's own. ValueError on another split."""

  def messages(self, example: Mapping[str, Any]) -> list[dict[str, str]]:
    """The problem as chat messages, each with `role` and `content`."""

  def score(self, completion: str, example: Mapping[str, Any]) -> dict[str, float]:
    """Rewards of a completion's text by name; the reward of a rollout is their sum. Never raises on any text."""

  def accuracy(self, completion: str, example: Mapping[str, Any]) -> float:
    """What the completion adds to the published accuracy, from 0 to 1. Never raises on any text."""

  def score_batch(self, completions: Sequence[str], examples: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """`score` of many completions; a task whose rewards are slow computes them side by side."""
    return [self.score(completion, example) for completion, example in zip(completions, examples)]


def check_split(split: str) -> None:
  """Raises ValueError unless `split` is one of SPLITS."""
  if split not in SPLITS:
    raise ValueError(f"unknown split {split!r}, known are {', '.join(SPLITS)}")


def check_variant(variant: str) -> None:
  """Raises ValueError unless `variant`, of a task that has one for small models, is one of VARIANTS."""
  if variant not in VARIANTS:
    raise ValueError(f"task.variant={variant!r}: unknown, known are {', '.join(VARIANTS)}")


def extract_answer(text: str) -> str | None:
  """Stripped text of the last complete `<answer>…</answer>`, the innermost of nested ones; None if there is none."""
  answers = _ANSWER.findall(text)
  return answers[-1].strip() if answers else None
