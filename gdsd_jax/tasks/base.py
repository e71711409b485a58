"""What every task offers."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any, ClassVar

from gdsd_jax.checks import LARGEST, require

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Grade:
  """What one look at a completion finds. Numbers of any kind become floats, as JSON has them.

  ValueError where there is no reward, or one that is no finite number.
  """

  rewards: Mapping[str, float | None]  # by name; the reward of a completion is their sum. None: it does not apply
  accuracy: float | None = None  # what the completion adds to the published accuracy, 0 to 1. None: there is no such
  accuracy_lenient: float | None = None  # the same of a reader that looks further than the official one; None: no such

  def __post_init__(self):
    named = isinstance(self.rewards, Mapping) and all(isinstance(name, str) for name in self.rewards)
    require(named and len(self.rewards) > 0, "rewards",
            f"must be a dict of names and numbers, one at least, not {self.rewards!r:.80}")
    numbers = {name: number(f"reward {name!r}", value) for name, value in self.rewards.items() if value is not None}
    object.__setattr__(self, "rewards", {name: numbers.get(name) for name in self.rewards})
    for name in ("accuracy", "accuracy_lenient"):
      if getattr(self, name) is not None:
        accuracy = number(name, getattr(self, name))
        require(0 <= accuracy <= 1, name, f"must lie between 0 and 1, not {accuracy}")
        object.__setattr__(self, name, accuracy)


def total_of(rewards: Mapping[str, float | None]) -> float | None:
  """The reward of a completion, the sum of those that apply; None where none does."""
  applying = [value for value in rewards.values() if value is not None]
  return sum(applying) if applying else None


class Completion(str):
  """The text of a completion, which says whether the model ended it. Text of any other type counts as ended."""

  ended: bool

  def __new__(cls, text: str, ended: bool = True):
    self = super().__new__(cls, text)
    self.ended = ended
    return self


def number(name: str, value: Any) -> float:
  """A finite number of any library as a float; ValueError, which names it, where it is none."""
  require(hasattr(value, "__float__"), name, f"must be a number, not {value!r:.80}")
  try:
    value = float(value)
  except Exception as error:  # an array of several, of whatever library
    raise ValueError(f"{name}: must be one number: {error}") from error
  require(math.isfinite(value), name, f"must be a finite number, not {value}")
  require(abs(value) <= LARGEST, name, f"must be a number of 32 bits, at most {LARGEST:.1g}, not {value}")
  return value


class Task:
  """Problems with a checkable answer. Tasks inherit from it; the arguments that make one are its options.

  A task says what its problems are (`examples`), how each is asked (`messages`; in evaluations by
  `evaluation_messages`, which is the same unless it says otherwise), and how a completion is graded: by
  `score`, a dict of named rewards, with `accuracy` beside it if there is a notion of right and wrong; or by
  `grade_one`, which finds both in one look; or by `grade`, which takes many completions and may grade them side by
  side. No grader raises on any text. A task that tiny models are pretrained on has three things more, see
  `tasks/arithmetic.py`: `tags`, `solution` and `careless_solution`.
  """

  name: str  # what it is called on the screen
  has_grader: ClassVar[bool] = True  # False: its rewards come from functions alone
  has_validation: bool = False  # whether `examples` has a split "validation"; if not, it is the tail of "train"
  is_own: ClassVar[bool] = False  # whether it runs code of the user's
  takes_ids: ClassVar[bool] = False  # whether `grade` takes the token ids of completions, too

  def __init_subclass__(cls, **kwargs):
    super().__init_subclass__(**kwargs)
    cls.name = cls.__dict__.get("name", cls.__name__)

  def examples(self, split: str) -> Sequence[Mapping[str, Any]]:
    """Problems of split "train" or "test", by index; their fields are the task's own. ValueError on another split.

    Runs train on the first, and choose their best checkpoint on a validation split; only launch/evaluate.py sees the
    test split.
    """
    raise NotImplementedError(f"{type(self).__name__} must have `examples`")

  def messages(self, example: Mapping[str, Any]) -> list[dict[str, str]]:
    """The problem as chat messages, each with `role` and `content`."""
    raise NotImplementedError(f"{type(self).__name__} must have `messages`")

  def evaluation_messages(self, example: Mapping[str, Any]) -> list[dict[str, str]]:
    """As `messages`, in launch/evaluate.py: some published evaluations ask otherwise than training does."""
    return self.messages(example)

  def reference_answer(self, example: Mapping[str, Any]) -> str | None:
    """A right answer, for people who look at completions; by default the example's `answer`. None: none is known."""
    answer = example.get("answer")
    return None if answer is None else str(answer)

  def grade_one(self, completion: str, example: Mapping[str, Any]) -> Grade:
    """Rewards and accuracy of one completion's text."""
    cls = type(self)
    if cls.score is Task.score:
      raise NotImplementedError(f"{cls.__name__} must have `score`, `grade_one` or `grade`")
    return Grade(self.score(completion, example),
                 None if cls.accuracy is Task.accuracy else self.accuracy(completion, example))

  def grade(self, completions: Sequence[str], examples: Sequence[Mapping[str, Any]]) -> list[Grade]:
    """The grade of each completion, which answers the example at the same place. Each is graded once."""
    return [self.grade_one(completion, example) for completion, example in zip(completions, examples, strict=True)]

  def begin_step(self, step: int, steps: int) -> None:
    """Told before the completions of a step are graded, which of how many it is: rewards may change with it."""

  def score(self, completion: str, example: Mapping[str, Any]) -> dict[str, float]:
    """The rewards of one completion, by name: finite numbers, the same names for every completion."""
    return self.grade([completion], [example])[0].rewards

  def accuracy(self, completion: str, example: Mapping[str, Any]) -> float:
    """The accuracy of one completion, from 0 to 1."""
    return self.grade([completion], [example])[0].accuracy


def is_message(message: Any) -> bool:
  """Whether it is a dict of a role and a content, both of them text."""
  return isinstance(message, Mapping) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def check_split(split: str, has_validation: bool = True) -> None:
  """Raises ValueError unless `split` is one of SPLITS, and there."""
  known = [name for name in SPLITS if has_validation or name != "validation"]
  if split not in known:
    raise ValueError(f"unknown split {split!r}, known are {', '.join(known)}")
