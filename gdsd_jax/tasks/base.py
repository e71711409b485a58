"""What every task offers."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, Protocol

SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class Grade:
  """What one look at a completion finds. Numbers of any kind become floats, as JSON has them."""

  rewards: Mapping[str, float]  # by name; the reward of a completion is their sum
  accuracy: float  # what the completion adds to the published accuracy, from 0 to 1

  def __post_init__(self):
    object.__setattr__(self, "rewards", {name: float(value) for name, value in self.rewards.items()})
    object.__setattr__(self, "accuracy", float(self.accuracy))


class Task(Protocol):
  """Problems with a checkable answer. Tasks are frozen dataclasses that inherit from it; their fields are its options.

  A task says what its problems are (`examples`), how each is asked (`messages`), and how one completion is graded
  (`grade_one`). One whose grader is slow has a `grade` of its own instead, which grades side by side. No grader raises
  on any text. A task that tiny models are pretrained on has three things more, see `tasks/arithmetic.py`: `tags`,
  `solution` and `careless_solution`.
  """

  name: str  # what `get_task` calls it

  def examples(self, split: str) -> Sequence[Mapping[str, Any]]:
    """Problems of split "train" or "test", by index; their fields are the task's own. ValueError on another split."""

  def messages(self, example: Mapping[str, Any]) -> list[dict[str, str]]:
    """The problem as chat messages, each with `role` and `content`."""

  def grade_one(self, completion: str, example: Mapping[str, Any]) -> Grade:
    """Rewards and accuracy of one completion's text."""

  def grade(self, completions: Sequence[str], examples: Sequence[Mapping[str, Any]]) -> list[Grade]:
    """The grade of each completion, which answers the example at the same place. Each is graded once."""
    return [self.grade_one(completion, example) for completion, example in zip(completions, examples, strict=True)]

  def score(self, completion: str, example: Mapping[str, Any]) -> dict[str, float]:
    """The rewards of one completion, by name."""
    return self.grade([completion], [example])[0].rewards

  def accuracy(self, completion: str, example: Mapping[str, Any]) -> float:
    """The accuracy of one completion, from 0 to 1."""
    return self.grade([completion], [example])[0].accuracy


def check_split(split: str) -> None:
  """Raises ValueError unless `split` is one of SPLITS."""
  if split not in SPLITS:
    raise ValueError(f"unknown split {split!r}, known are {', '.join(SPLITS)}")
