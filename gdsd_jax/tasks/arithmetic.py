"""Short arithmetic word problems, easy enough for a model of under a million parameters."""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import itertools
import re
from typing import Any, ClassVar

from gdsd_jax.tasks import answers, base

LEFT_OPERANDS, RIGHT_OPERANDS = range(1, 13), range(1, 10)
SPLIT_SIZES = {"train": 9_000, "validation": 400, "test": 400}
HELD_OUT_FRACTION = 0.1  # share of the problems that validation and test ask, half of them each

NAMES = ("Tom", "Ana", "Ben", "Mia", "Sam", "Eva")
THINGS = ("apple", "book", "coin", "pen", "shell", "card")
TEMPLATES = {
  "+": (
    "{name} has {left} and buys {right} more. How many {things} does {name} have?",
    "{name} finds {left} and then {right} more. How many {things} did {name} find?",
    "{name} gets {left} on Monday and {right} on Friday. How many {things} is that?",
    "A box holds {left}. {name} adds {right} more. How many {things} are in the box?",
  ),
  "-": (
    "{name} has {left} and gives away {right}. How many {things} does {name} have left?",
    "{name} had {left} but lost {right}. How many {things} does {name} have now?",
    "{name} buys {left} and then sells {right}. How many {things} does {name} keep?",
    "A box holds {left}. {name} takes out {right}. How many {things} are in the box?",
  ),
}

CORRECTNESS_REWARD = 1.0  # what the task is about, so it outweighs any layout
FORMAT_REWARD = 0.25  # small, yet enough to tell apart the wrong completions of a group

# ASCII digits only, here and below: str.isdigit and \d would let through digits of other scripts.
_FORMAT = re.compile(r"(?s)<reasoning>(?:(?!</?(?:reasoning|answer)>).)*</reasoning>\s*<answer>-?[0-9]+</answer>")


@dataclasses.dataclass(frozen=True)
class ArithmeticTask(base.Task):
  """Addition and subtraction word problems.

  An example has `question` (str), `reasoning` (str, such as "12+7=19") and `answer` (int).
  """

  data_dir: str | None = None  # an option of every task; problems that are made in memory need none
  name: ClassVar[str] = "arithmetic"
  has_validation: ClassVar[bool] = True
  tags: ClassVar[tuple[str, ...]] = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")

  def examples(self, split: str) -> Sequence[Mapping[str, Any]]:
    base.check_split(split)
    return problems(split)

  def messages(self, example: Mapping[str, Any]) -> list[dict[str, str]]:
    # No instruction about the format: a model this small learns it in pretraining, and short prompts are cheap.
    return [{"role": "user", "content": example["question"]}]

  def grade_one(self, completion: str, example: Mapping[str, Any]) -> base.Grade:
    """`correctness` and accuracy count the last answer, whatever its layout; `format` is for the exact layout.

    Integers alone are answers, not 19.0 as in GSM8K: this task has no others, and its published results stand.
    """
    answer = extract_answer(completion)
    right = answer is not None and _canonical_integer(answer) == str(example["answer"])
    well_formed = _FORMAT.fullmatch(completion.strip()) is not None
    return base.Grade({"correctness": CORRECTNESS_REWARD * right, "format": FORMAT_REWARD * well_formed}, right)

  def solution(self, example: Mapping[str, Any]) -> str:
    """The completion that earns the full reward, for pretraining."""
    return f"<reasoning>{example['reasoning']}</reasoning><answer>{example['answer']}</answer>"

  def careless_solution(self, example: Mapping[str, Any], slips: float, rng) -> str:
    """A solution as a careless writer gives it: a share `slips` of the results is wrong, by up to five.

    Reasoning and answer have the same result. `rng` is a numpy.random.Generator.
    """
    answer = example["answer"]
    if rng.random() < slips:
      answer = int(rng.choice([n for n in range(max(answer - 5, 0), answer + 6) if n != answer]))
    equation, _, _ = example["reasoning"].partition("=")
    return self.solution({"reasoning": f"{equation}={answer}", "answer": answer})


def extract_answer(text: str) -> str | None:
  """Stripped text of the last complete `<answer>…</answer>`, the innermost of nested ones; None if there is none."""
  answer = answers.last_answer(text)
  return answer and answer.rpartition("<answer>")[2].strip()


def _canonical_integer(text: str) -> str | None:
  # Text, not int(): a completion may hold more digits than int() is willing to read.
  match = re.fullmatch(r"(-?)0*(0|[1-9][0-9]*)", text)
  return match and (match[2] if match[2] == "0" else match[1] + match[2])


# Generated problems: the same ones on every machine and Python release


def problems(split: str) -> list[dict[str, Any]]:
  """Problems of split "train", "validation" or "test", always in the same order.

  A problem is a calculation in a sentence template, told several times with different names and things. It belongs to
  one split alone: validation and test ask for known calculations in sentences that they were never seen in. No two
  questions are equal, within a split or across splits.
  """
  tellings = [_shuffled((*problem, name, thing) for name in NAMES for thing in THINGS) for problem in _problems(split)]
  # Every problem once, then every problem again: all are equally frequent, to within one.
  chosen = list(itertools.islice(itertools.chain.from_iterable(zip(*tellings)), SPLIT_SIZES[split]))
  # TFDS shuffles a split by these digests. Runs draw problems by index, so the order is part of their results.
  order = sorted(range(len(chosen)), key=lambda index: hashlib.md5(f"{split}{index}".encode()).digest())
  return [_example(*chosen[index]) for index in order]


def _problems(split: str) -> list[tuple]:
  every = _shuffled(
    (operation, left, right, template)
    for operation, templates in TEMPLATES.items()
    for left, right, template in itertools.product(LEFT_OPERANDS, RIGHT_OPERANDS, templates)
    if operation == "+" or left >= right
  )
  held_out = round(HELD_OUT_FRACTION * len(every))
  parts = {"test": slice(held_out // 2), "validation": slice(held_out // 2, held_out), "train": slice(held_out, None)}
  return every[parts[split]]


def _shuffled(items) -> list[tuple]:
  # By digest, since the shuffle of the random module may change between Python releases.
  return sorted(items, key=lambda item: hashlib.sha256(repr(item).encode()).digest())


def _example(operation: str, left: int, right: int, template: str, name: str, thing: str) -> dict[str, Any]:
  first = f"{left} {thing}" if left == 1 else f"{left} {thing}s"
  question = template.format(name=name, left=first, right=right, things=f"{thing}s")
  answer = left + right if operation == "+" else left - right
  return {"answer": answer, "question": question, "reasoning": f"{left}{operation}{right}={answer}"}
