"""GSM8K, grade-school word problems with whole-number answers: boxed as in ESPO and GDSD, and tagged as in d1."""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any, ClassVar

from gdsd_jax.tasks import answers, base
from gdsd_jax.tasks.sources import Row, SourcedTask, text_of

# ASCII digits throughout: \d would let through digits of other scripts.
_REFERENCE = re.compile(r"-?[0-9]+(\.[0-9]+)?")
# Where an answer may be announced, best first. Thousands may be separated by commas.
_ANNOUNCED = (re.compile(r"The answer is (-?[0-9.,]+)"), re.compile(r"#### (-?[0-9.,]+)"))
_INTEGER = re.compile(r"-?[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|-?[0-9]+")
_THOUSANDS = re.compile(r"-?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_NUMBER = re.compile(r"-?[0-9]+\.?[0-9]*")
_BETWEEN = re.compile(r"</reasoning>\s*<answer>")


@dataclasses.dataclass(frozen=True)
class Gsm8kTask(SourcedTask):
  r"""Word problems, asked for a final `\boxed{…}`.

  An example has `question` (str) and `answer` (str, a number without commas). Rows have them, too, their answers end in
  `#### NUMBER`; for rewards a row will do. More generous than the official code, which compares text: thousands may be
  separated by commas, here and in the answer, and a full stop after "The answer is 12" or its absence changes nothing.
  """

  train_source: str = "huggingface:openai/gsm8k/main#train"
  test_source: str = "huggingface:openai/gsm8k/main#test"
  columns: ClassVar[tuple[str, ...]] = ("question", "answer")
  name: ClassVar[str] = "gsm8k"

  def read_row(self, row: Row) -> dict[str, str]:
    marker, answer = text_of(row, "answer").rpartition("####")[1:]
    answer = answer.strip().replace(",", "")
    if not marker or not _REFERENCE.fullmatch(answer):
      raise ValueError(f"column 'answer' must end in '#### NUMBER', it ends in {row['answer'][-40:]!r}")
    return {"question": text_of(row, "question"), "answer": answer}

  def messages(self, example: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{example['question']}\n{answers.BOXED_INSTRUCTION}"}]

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
    return [{"role": "user", "content": f"{answers.TAGS_INSTRUCTION}\n\n{example['question']}"}]

  def _rewards(self, completion: str, reference: str) -> dict[str, float]:
    answer = answers.lenient_answer(completion)
    return {
      "xmlcount": _tag_count(completion),
      "soft_format": _soft_format(completion), "strict_format": _strict_format(completion),
      "int": 0.5 if answer.isascii() and answer.isdigit() else 0.0,
      "correctness": 2.0 if _without_thousands_commas(answer) == reference else 0.0,
    }


def announced_number(completion: str) -> str:
  """The number after "The answer is" or "####", or else the last integer, without commas; empty if there is none."""
  for announced in _ANNOUNCED:
    match = announced.search(completion)
    if match:
      return _without_thousands_commas(match[1].rstrip(".,"))
  return (_INTEGER.findall(completion) or [""])[-1].replace(",", "")


def _has_number(completion: str, reference: str) -> bool:
  """As d1 and GDSD count: the number of the first box that has one, else of the tagged answer, else the last one."""
  numbers = [_number_in(box, 0) for box in _boxes(completion)]
  numbers.append(_number_in(answers.first_answer(completion) or "", -1))
  numbers.append(_number_in(answers.lenient_answer(completion), -1))
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


# Rewards of the layout <reasoning>…</reasoning><answer>…</answer>, with the values of d1


def _soft_format(text: str) -> float:
  """0.5 for a text that starts with both pairs of tags, in order."""
  between = _BETWEEN.search(text, len("<reasoning>")) if text.startswith("<reasoning>") else None
  return 0.5 if between and "</answer>" in text[between.end():] else 0.0


def _strict_format(text: str) -> float:
  """0.5 for both pairs of tags, each tag on a line of its own, with nothing around them but one more line's end."""
  opening = "<reasoning>\n"
  _, between, answer = text[len(opening):].partition("\n</reasoning>\n<answer>\n")
  # The official code ends its pattern in `$`, which lets the line's end pass.
  ended = answer.endswith(("\n</answer>\n", "\n</answer>\n\n"))
  return 0.5 if text.startswith(opening) and between and ended else 0.0


def _tag_count(text: str) -> float:
  """0.125 for each of the four tags that stands once on its own line, less 0.001 a character after the answer tags."""
  reward = 0.125 * (text.count("<reasoning>\n") == 1) + 0.125 * (text.count("\n</reasoning>\n") == 1)
  if text.count("\n<answer>\n") == 1:
    reward += 0.125 - 0.001 * len(text.rsplit("\n<answer>\n", 1)[1])
  if text.count("\n</answer>") == 1:
    reward += 0.125 - 0.001 * (len(text.rsplit("\n</answer>", 1)[1]) - 1)
  return reward
