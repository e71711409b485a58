"""Short arithmetic word problems, easy enough for a model of under a million parameters."""

from collections.abc import Mapping, Sequence
import dataclasses
import re
from typing import Any, ClassVar

from gdsd_jax.tasks import arithmetic_problems, base

# A right answer is what the task is about, so it outweighs any layout.
CORRECTNESS_REWARD = 1.0
# Small beside correctness, yet enough to tell apart the wrong completions of a group.
FORMAT_REWARD = 0.25

# No tag may stand inside, so of nested pairs this is the innermost, and an unclosed tag never matches.
_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL)
# ASCII digits only: str.isdigit and \d would let through digits of other scripts.
_INTEGER = re.compile(r"(-?)0*(0|[1-9][0-9]*)")
_FORMAT = re.compile(
  r"<reasoning>(?:(?!</?(?:reasoning|answer)>).)*</reasoning>\s*<answer>-?[0-9]+</answer>", re.DOTALL
)


@dataclasses.dataclass(frozen=True)
class ArithmeticTask(base.Task):
  """Addition and subtraction word problems.

  An example has `question` (str), `reasoning` (str, such as "12+7=19") and `answer` (int).

  Attributes:
    data_dir: folder of TFDS datasets, which every task takes. The problems here are made in memory and need none.
  """

  data_dir: str | None = None
  name: ClassVar[str] = "arithmetic"
  tags: ClassVar[tuple[str, ...]] = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")

  def examples(self, split: str) -> Sequence[Mapping[str, Any]]:
    base.check_split(split)
    return arithmetic_problems.problems(split)

  def messages(self, example: Mapping[str, Any]) -> list[dict[str, str]]:
    # No instruction about the format: a model this small learns it in pretraining, and short prompts are cheap.
    return [{"role": "user", "content": example["question"]}]

  def grade_one(self, completion: str, example: Mapping[str, Any]) -> base.Grade:
    """`correctness` and accuracy count the last answer, whatever its layout; `format` is for the exact layout."""
    answer = extract_answer(completion)
    right = answer is not None and _canonical_integer(answer) == str(example["answer"])
    well_formed = _FORMAT.fullmatch(completion.strip()) is not None
    return base.Grade({"correctness": CORRECTNESS_REWARD * right, "format": FORMAT_REWARD * well_formed}, right)

  def solution(self, example: Mapping[str, Any]) -> str:
    """The completion that earns the full reward, for pretraining."""
    return f"<reasoning>{example['reasoning']}</reasoning><answer>{example['answer']}</answer>"

  def careless_solution(self, example: Mapping[str, Any], slips: float, rng) -> str:
    """A solution as a careless writer gives it: a share `slips` of the results is wrong, by up to five.

    Args:
      example: a problem.
      slips: share of wrong results, the same in reasoning and answer.
      rng: numpy.random.Generator.
    """
    answer = example["answer"]
    if rng.random() < slips:
      answer = int(rng.choice([n for n in range(max(answer - 5, 0), answer + 6) if n != answer]))
    equation, _, _ = example["reasoning"].partition("=")
    return self.solution({"reasoning": f"{equation}={answer}", "answer": answer})


def extract_answer(text: str) -> str | None:
  """Stripped text of the last complete `<answer>…</answer>`, the innermost of nested ones; None if there is none."""
  answers = _ANSWER.findall(text)
  return answers[-1].strip() if answers else None


def _canonical_integer(text: str) -> str | None:
  # Text, not int(): a completion may hold more digits than int() is willing to read.
  match = _INTEGER.fullmatch(text)
  return match and (match[2] if match[2] == "0" else match[1] + match[2])
