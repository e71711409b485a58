r"""MATH, competition problems: training asks for a box as ESPO's, or tags as d1's and GDSD's; evaluation as d1's."""

from collections.abc import Mapping, Sequence
import dataclasses
import importlib.util
from typing import Any, ClassVar

from gdsd_jax.checks import require
from gdsd_jax.tasks import answers, base, boxes, math_grader, official_prompts
from gdsd_jax.tasks.sources import check_columns, Row, SourcedTask, text_of

CORRECTNESS_REWARD = 2.0


@dataclasses.dataclass(frozen=True)
class MathXmlTask(SourcedTask):
  r"""Competition problems, asked for `<reasoning>` and a boxed `<answer>`, compared as text as the benchmark does.

  An example has `problem` (str) and `answer` (str, LaTeX). Rows have `problem`, and `answer` (a whole number, too) or a
  `solution` that boxes it; for rewards a row will do.
  """

  train_source: str = "huggingface:ankner/math-500#train"  # MATH without the 500 test problems
  test_source: str = "huggingface:HuggingFaceH4/MATH-500#test"
  required: ClassVar[tuple[str, ...]] = ("problem",)
  name: ClassVar[str] = "math_xml"

  def read_row(self, row: Row) -> dict[str, str]:
    problem = text_of(row, "problem")
    if "answer" in row:
      whole = type(row["answer"]) is int  # as competitions have them whose answers are all whole numbers
      answer = str(row["answer"]) if whole else text_of(row, "answer")
    else:
      check_columns(row, ("solution",))
      answer = boxes.boxed(text_of(row, "solution"))
      if answer is None:
        raise ValueError("column 'solution' must end in \\boxed{…}")
    if not answer.strip():
      raise ValueError("the answer is empty")
    return {"problem": problem, "answer": answer}

  def messages(self, example: Mapping[str, Any]) -> list[dict[str, str]]:
    request = "You are a math expert. Solve the problem step by step. Wrap the final answer in a \\boxed{}."
    return [{"role": "user", "content": f"{official_prompts.TAGS_INSTRUCTION}\n\n{request}\n\n{example['problem']}"}]

  def evaluation_messages(self, example: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"role": "user", "content": official_prompts.MATH_EVALUATION + example["problem"]}]

  def grade_one(self, completion: str, example: Mapping[str, Any]) -> base.Grade:
    expected = _expected(example)
    tagged = "<answer>" in completion
    answer = completion.split("<answer>", 1)[1].split("</answer>", 1)[0] if tagged else completion
    right = lenient = answers.same_answer(final_answer(completion), expected)
    if not boxes.boxes(completion):
      lenient = right or answers.same_answer(answer, expected)
    return base.Grade({
      "correctness": CORRECTNESS_REWARD * lenient,
      "format": (0.5 if tagged else 0.0) + (0.5 if "\\boxed" in answer else 0.25),
    }, right, lenient)


@dataclasses.dataclass(frozen=True)
class MathTask(MathXmlTask):
  r"""The same problems, asked for a final `\boxed{…}` and graded by math-verify; ValueError where that is missing."""

  name: ClassVar[str] = "math"

  def __post_init__(self):
    installed = all(importlib.util.find_spec(package) is not None for package in ("math_verify", "antlr4"))
    require(installed, "task.name='math'", "it needs math-verify to grade: pip install 'gdsd_jax[math]'")

  def messages(self, example: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{example['problem']}\n{answers.BOXED_INSTRUCTION}"}]

  def grade(self, completions: Sequence[str], examples: Sequence[Mapping[str, Any]]) -> list[base.Grade]:
    """Accuracy compares text, as published; the reward and the lenient accuracy are math-verify's, too.

    math-verify sees the last box, or all of a completion without one, and grades side by side.
    """
    expected = list(map(_expected, examples))
    right = [answers.same_answer(final_answer(text), answer) for text, answer in zip(completions, expected)]
    equal = math_grader.equal_batch(list(map(_shown, completions)), expected)
    return [base.Grade({"correctness": CORRECTNESS_REWARD * (same or verdict)}, same, same or verdict)
            for same, verdict in zip(right, equal)]


def final_answer(completion: str) -> str | None:
  r"""The answer in the places that the official parser looks at: the last box, else the whole completion.

  Where the last box is empty or never closed, it is the first closed `<answer>` tag's. The official parser reads
  otherwise in 21 of 1,500 golden completions, which are odd on purpose. In 12 it keeps the `\fbox` around an answer,
  in 3 the braces after "\boxed ", in 4 the box in that tag, and in 2 it removes a `\box` there. It also takes the words
  after "in \boxed form" for the answer.
  """
  answer = boxes.unboxed(completion)
  if not answer and (answer := answers.first_answer(completion)):
    answer = boxes.unboxed(answer) or answer
  return answer


def _shown(completion: str) -> str:
  """What math-verify is given of a completion."""
  answer = final_answer(completion)
  return completion if not answer or answer == completion else f"\\boxed{{{answer}}}"


def _expected(example: Mapping[str, Any]) -> str:
  reference = str(example["answer"] if "answer" in example else example["solution"])
  return boxes.unboxed(reference) or reference
