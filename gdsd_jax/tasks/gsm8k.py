"""GSM8K, word problems: training asks for a box as ESPO's does, or for tags as d1's and GDSD's; evaluation as d1's."""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any, ClassVar

from gdsd_jax.tasks import answers, base, boxes, numbers, official_prompts
from gdsd_jax.tasks.sources import Row, SourcedTask, text_of

_ANNOUNCED = tuple(re.compile(rf"{phrase}:?[ *$\\\\]*") for phrase in ("The answer is", "####"))  # best first


@dataclasses.dataclass(frozen=True)
class Gsm8kTask(SourcedTask):
  r"""Word problems, asked for a final `\boxed{…}`.

  An example has `question` (str) and `answer` (str, a number without commas). Rows have them, too, their answers end in
  `#### NUMBER`; for rewards a row will do.

  The final number is that of the first box with one, else the last one in the first closed `<answer>` tag. These are
  the places of the official parser, and accuracy knows no others. The reward and the lenient accuracy go on: to boxes
  that it does not see (`\boxed {12}`, or over several lines), to what follows "The answer is" or "####", and to the
  last number of the text, the only place of the official reward. They read each number alike, see `numbers.py`, so
  that they agree wherever accuracy finds one. The official parser reads otherwise in 49 of 1,500 golden completions,
  which are odd on purpose: in 34 it takes a part of 1,200, in 9 a part of a fraction, in 6 the answer is -0.
  """

  train_source: str = "huggingface:openai/gsm8k/main#train"
  test_source: str = "huggingface:openai/gsm8k/main#test"
  required: ClassVar[tuple[str, ...]] = ("question", "answer")
  name: ClassVar[str] = "gsm8k"

  def read_row(self, row: Row) -> dict[str, str]:
    marker, answer = text_of(row, "answer").rpartition("####")[1:]
    answer = numbers.plain(answer.strip())
    if not marker or not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", answer):
      raise ValueError(f"column 'answer' must end in '#### NUMBER', it ends in {row['answer'][-40:]!r}")
    return {"question": text_of(row, "question"), "answer": answer}

  def messages(self, example: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{example['question']}\n{answers.BOXED_INSTRUCTION}"}]

  def evaluation_messages(self, example: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"role": "user", "content": official_prompts.GSM8K_EVALUATION + example["question"]}]

  def grade_one(self, completion: str, example: Mapping[str, Any]) -> base.Grade:
    expected = numbers.whole_number(str(example["answer"]).rpartition("####")[2])
    number = final_number(completion)
    right = number is not None and number == expected
    if number is None:
      number = self._number_elsewhere(completion)
    lenient = number is not None and number == expected
    return base.Grade(self._rewards(completion, lenient), right, lenient)

  def _number_elsewhere(self, completion: str) -> float | None:
    number = _first_number(completion, ((box, box.end) for box in boxes.boxes(completion)))
    announced = (numbers.announced_number(completion, phrase) for phrase in _ANNOUNCED)
    number = next((found for found in (number, *announced) if found is not None), None)
    return numbers.read_number(completion, last=True) if number is None else number

  def _rewards(self, completion: str, right: bool) -> dict[str, float]:
    return {"correctness": right}


@dataclasses.dataclass(frozen=True)
class Gsm8kXmlTask(Gsm8kTask):
  """The same problems, asked for in `<reasoning>` and `<answer>` tags."""

  name: ClassVar[str] = "gsm8k_xml"

  def messages(self, example: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{official_prompts.TAGS_INSTRUCTION}\n\n{example['question']}"}]

  def _number_elsewhere(self, completion: str) -> float | None:
    """As the official reward: what follows the last tag, or a text without tags, is nothing but the number."""
    return numbers.whole_number(answers.lenient_answer(completion))

  def _rewards(self, completion: str, right: bool) -> dict[str, float]:
    answer = answers.lenient_answer(completion)
    return _layout_rewards(completion) | {
      "int": 0.5 if answer.isascii() and answer.isdigit() else 0.0, "correctness": 2.0 if right else 0.0,
    }


def final_number(completion: str) -> float | None:
  """The number in the places that the official parser looks at; None where they have none."""
  ends = ((box, _official_end(box, completion)) for box in boxes.boxes(completion))
  number = _first_number(completion, ends)
  if number is None and (tagged := answers.first_answer(completion)):
    number = numbers.read_number(tagged, last=True)
  return number


def _official_end(box: boxes.Box, text: str) -> int | None:
  """Where a box ends that the official parser sees: on its line, which it may do at the brace of something else."""
  if box.has_gap or box.is_bare or box.first_brace is None:
    return None
  fits = text.find("\n", box.start, box.first_brace) < 0
  closed = box.end is not None and text.find("\n", box.first_brace, box.end) < 0
  return (box.end if closed else box.first_brace) if fits else None


def _first_number(text: str, ends) -> float | None:
  """The number of the first box that has one. `ends`: pairs of a box and where it ends, if it does."""
  examined = 0
  for box, end in ends:
    if end is not None and box.start >= examined:  # what is inside a box without a number has none either
      number, examined = numbers.read_number(text[box.start:end]), end
      if number is not None:
        return number
  return None


def _layout_rewards(text: str) -> dict[str, float]:
  """The rewards for the layout <reasoning>…</reasoning><answer>…</answer>, with the values of d1 but for two repairs.

  `xmlcount` is less by 0.001 a character after the answer; the official code counts the answer, too. `strict_format`
  is for completions that end with the closing tag, too: models end their turn there, and officially never earn it.
  """
  # xmlcount: 0.125 for each tag that stands once on its own line.
  tag_count = 0.125 * (text.count("<reasoning>\n") == 1) + 0.125 * (text.count("\n</reasoning>\n") == 1)
  if text.count("\n<answer>\n") == 1:
    answer = text.rsplit("\n<answer>\n", 1)[1]
    after = answer.rpartition("\n</answer>")[2].removeprefix("\n") if "\n</answer>" in answer else answer
    tag_count += 0.125 - 0.001 * len(after)
  if text.count("\n</answer>") == 1:
    tag_count += 0.125 - 0.001 * (len(text.rsplit("\n</answer>", 1)[1]) - 1)
  # soft_format: the text starts with both pairs of tags, in order.
  between = re.search(r"</reasoning>\s*<answer>", text) if text.startswith("<reasoning>") else None
  soft = between is not None and "</answer>" in text[between.end():]
  # strict_format: each tag on a line of its own, with nothing around them but two line's ends.
  _, inner, answer = text.removeprefix("<reasoning>\n").partition("\n</reasoning>\n<answer>\n")
  ends = tuple("\n</answer>" + "\n" * count for count in range(3))
  strict = text.startswith("<reasoning>\n") and inner != "" and answer.endswith(ends)
  return {"xmlcount": tag_count, "soft_format": 0.5 * soft, "strict_format": 0.5 * strict}
