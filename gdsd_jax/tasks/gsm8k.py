"""GSM8K, grade-school word problems with whole-number answers: boxed as in ESPO and GDSD, and tagged as in d1."""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any, ClassVar

from gdsd_jax.tasks import answers, base, official_prompts
from gdsd_jax.tasks.sources import Row, SourcedTask, text_of

# ASCII digits throughout: \d would let through digits of other scripts. Thousands may be separated by commas.
_ANNOUNCED = (re.compile(r"The answer is (-?[0-9.,]+)"), re.compile(r"#### (-?[0-9.,]+)"))  # best first
_INTEGER = re.compile(r"-?[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|-?[0-9]+")
_THOUSANDS = re.compile(r"-?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_NUMBER = re.compile(r"-?[0-9]+\.?[0-9]*")


@dataclasses.dataclass(frozen=True)
class Gsm8kTask(SourcedTask):
  r"""Word problems, asked for a final `\boxed{…}`.

  An example has `question` (str) and `answer` (str, a number without commas). Rows have them, too, their answers end in
  `#### NUMBER`; for rewards a row will do. More generous than the official code, which compares text: thousands may be
  separated by commas, here and in the answer, and a full stop after "The answer is 12" or its absence changes nothing.
  """

  train_source: str = "huggingface:openai/gsm8k/main#train"
  test_source: str = "huggingface:openai/gsm8k/main#test"
  required: ClassVar[tuple[str, ...]] = ("question", "answer")
  name: ClassVar[str] = "gsm8k"

  def read_row(self, row: Row) -> dict[str, str]:
    marker, answer = text_of(row, "answer").rpartition("####")[1:]
    answer = answer.strip().replace(",", "")
    if not marker or not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", answer):
      raise ValueError(f"column 'answer' must end in '#### NUMBER', it ends in {row['answer'][-40:]!r}")
    return {"question": text_of(row, "question"), "answer": answer}

  def messages(self, example: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{example['question']}\n{answers.BOXED_INSTRUCTION}"}]

  def evaluation_messages(self, example: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"role": "user", "content": official_prompts.GSM8K_EVALUATION + example["question"]}]

  def grade_one(self, completion: str, example: Mapping[str, Any]) -> base.Grade:
    reference = str(example["answer"]).rpartition("####")[2].strip().replace(",", "")
    return base.Grade(self._rewards(completion, reference), _has_number(completion, reference))

  def _rewards(self, completion: str, reference: str) -> dict[str, float]:
    return {"correctness": announced_number(completion) == reference}


@dataclasses.dataclass(frozen=True)
class Gsm8kXmlTask(Gsm8kTask):
  """The same problems, asked for in `<reasoning>` and `<answer>` tags."""

  name: ClassVar[str] = "gsm8k_xml"

  def messages(self, example: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{official_prompts.TAGS_INSTRUCTION}\n\n{example['question']}"}]

  def _rewards(self, completion: str, reference: str) -> dict[str, float]:
    answer = answers.lenient_answer(completion)
    return _layout_rewards(completion) | {
      "int": 0.5 if answer.isascii() and answer.isdigit() else 0.0,
      "correctness": 2.0 if _without_thousands_commas(answer) == reference else 0.0,
    }


def announced_number(completion: str) -> str:
  """The number after "The answer is" or "####", or else the last integer, without commas; empty if there is none."""
  for announced in _ANNOUNCED:
    if match := announced.search(completion):
      return _without_thousands_commas(match[1].rstrip(".,"))
  return (_INTEGER.findall(completion) or [""])[-1].replace(",", "")


def _has_number(completion: str, reference: str) -> bool:
  """As d1 and GDSD count: the number of the first box that has one, else of the tagged answer, else the last one."""
  tagged = answers.first_answer(completion) or "", answers.lenient_answer(completion)
  numbers = [_number_in(box, 0) for box in _boxes(completion)] + [_number_in(text, -1) for text in tagged]
  number = next((number for number in numbers if number is not None), None)
  return number is not None and number == _number_in(reference, 0)


def _boxes(text: str) -> list[str]:
  # Not by a regular expression, which takes quadratic time on many boxes that are never closed.
  closed = (part for line in text.split("\n") for part in line.split("}")[:-1])
  return [part.partition("\\boxed{")[2] for part in closed if "\\boxed{" in part]


def _number_in(text: str, position: int) -> float | None:
  numbers = _NUMBER.findall(text.replace(",", ""))
  return float(numbers[position]) if numbers else None


def _without_thousands_commas(number: str) -> str:
  return number.replace(",", "") if _THOUSANDS.fullmatch(number) else number


def _layout_rewards(text: str) -> dict[str, float]:
  """The rewards for the layout <reasoning>…</reasoning><answer>…</answer>, with the values of d1."""
  # xmlcount: each tag that stands once on its own line, less 0.001 a character after the answer tags.
  tag_count = 0.125 * (text.count("<reasoning>\n") == 1) + 0.125 * (text.count("\n</reasoning>\n") == 1)
  if text.count("\n<answer>\n") == 1:
    tag_count += 0.125 - 0.001 * len(text.rsplit("\n<answer>\n", 1)[1])
  if text.count("\n</answer>") == 1:
    tag_count += 0.125 - 0.001 * (len(text.rsplit("\n</answer>", 1)[1]) - 1)
  # soft_format: the text starts with both pairs of tags, in order.
  between = re.search(r"</reasoning>\s*<answer>", text) if text.startswith("<reasoning>") else None
  soft = between is not None and "</answer>" in text[between.end():]
  # strict_format: each tag on a line of its own, with nothing around them but one more line's end, which the official
  # pattern lets pass by ending in `$`.
  _, inner, answer = text.removeprefix("<reasoning>\n").partition("\n</reasoning>\n<answer>\n")
  strict = text.startswith("<reasoning>\n") and inner != "" and answer.endswith(("\n</answer>\n", "\n</answer>\n\n"))
  return {"xmlcount": tag_count, "soft_format": 0.5 * soft, "strict_format": 0.5 * strict}
