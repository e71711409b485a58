r"""Problems that are rows of a file or dataset, told by configuration alone: how they are asked, and what is right.

  --config.task.name=prompts --config.task.train_source=rows.jsonl --config.task.answer_column=answer
  --config.task.name=prompts --config.task.train_source=rows.jsonl --config.task.rewards=my_rewards.py:short
"""

from collections.abc import Mapping
import dataclasses
import functools
import re
import string
from typing import Any, ClassVar

from gdsd_jax.checks import require
from gdsd_jax.tasks import answers, base, boxes, numbers
from gdsd_jax.tasks.sources import check_columns, Row, SourcedTask, text_of

# How an answer is found in a completion, by name; anything else is a regular expression.
EXTRACTIONS = {
  "boxed": boxes.boxed,  # in the last \boxed{…}
  "tag": answers.last_answer,  # in the last <answer>…</answer>
  "number": functools.partial(numbers.find_number, last=True),  # the last number
  "text": str.strip,  # all of it
}


@dataclasses.dataclass(frozen=True)
class PromptsTask(SourcedTask):
  """An example is a row with its `prompt` as it is asked: text, or a list of chat messages.

  A completion is right, and its reward `correctness` 1, where the answer found in it is that of the row: the same
  number, or the same text after the clean-up of the MATH benchmark. Without `answer_column` functions give the rewards.
  """

  prompt_column: str | None = None  # None for `prompt`, or `messages` where rows have that; text or chat messages
  prompt_template: str | None = None  # text with {column}s of the row in it, in place of a column
  system_prompt: str | None = None  # goes before prompts that have none
  answer_column: str | None = None  # has the right answers; None: rewards come from functions, and there is no accuracy
  answer_after: str | None = None  # what precedes the answer in its column, such as "####"
  # Where the answer stands: "boxed", "tag", "number" (the last), "text" (all of it), or a regular expression, whose
  # first group, or all of it, is the answer.
  extract: str = "boxed"
  name: ClassVar[str] = "prompts"

  def __post_init__(self):
    for field in ("prompt_column", "prompt_template", "system_prompt", "answer_column", "answer_after", "extract"):
      value = getattr(self, field)
      require(value is None and field != "extract" or isinstance(value, str), f"task.{field}",
              f"must be text, not {value!r}")
    require(self.answer_after != "", "task.answer_after", "must not be empty; None takes all of the column")
    require(self.prompt_column is None or self.prompt_template is None, "task.prompt_template",
            "takes the place of task.prompt_column; give one of them")
    for field in ("answer_after", "extract"):
      default = type(self).__dataclass_fields__[field].default
      require(self.answer_column is not None or getattr(self, field) == default, f"task.{field}",
              "needs task.answer_column, whose answers completions are compared with")
    if self.extract not in EXTRACTIONS:
      try:
        re.compile(self.extract)
      except re.error as error:
        raise ValueError(f"task.extract: {self.extract!r} is none of {', '.join(EXTRACTIONS)}, and no regular"
                         f" expression: {error}") from None

  @property
  def has_grader(self) -> bool:
    return self.answer_column is not None

  def read_row(self, row: Row) -> dict[str, Any]:
    if self.answer_column is not None:
      self._check_answer(row)
    return {**row, "prompt": self._prompt_of(row)}

  def _check_answer(self, row: Row) -> None:
    """Raises ValueError where a row has no answer: every completion would be wrong."""
    check_columns(row, (self.answer_column,))
    column, answer = f"column {self.answer_column!r}", row[self.answer_column]
    if isinstance(answer, list | tuple | Mapping) or answer is None or answer != answer:  # the last is not-a-number
      raise ValueError(f"{column} must be text or a number, it is {answer!r:.80}")
    if self.answer_after is not None and self.answer_after not in str(answer):
      raise ValueError(f"{column} lacks {self.answer_after!r}, which task.answer_after says, it is {answer!r:.80}")
    if not self.reference_answer(row):
      raise ValueError(f"{column} holds no answer, it is {answer!r:.80}")

  def _prompt_of(self, row: Row) -> str | list[dict[str, str]]:
    if self.prompt_template is not None:
      return self._filled(row)
    column = self.prompt_column or ("messages" if "messages" in row and "prompt" not in row else "prompt")
    check_columns(row, (column,))
    if not isinstance(row[column], list):
      return text_of(row, column)
    messages = row[column]
    if not messages or not all(map(base.is_message, messages)):
      raise ValueError(f"column {column!r} must be text or messages, each with role and content, not {messages!r:.80}")
    if messages[-1]["role"] == "assistant":
      raise ValueError(f"column {column!r} ends with the assistant's turn, which the model is to write")
    return [{"role": message["role"], "content": message["content"]} for message in messages]

  def _filled(self, row: Row) -> str:
    try:
      filled = self.prompt_template.format_map(row)
    except KeyError as error:
      columns = ", ".join(map(repr, row))
      raise ValueError(f"task.prompt_template asks for the column {error}, it has {columns}") from None
    except (ValueError, IndexError, AttributeError, TypeError) as error:
      raise ValueError(f"task.prompt_template cannot be filled: {error}; a brace of its own is written twice") from None
    for _, field, *_ in string.Formatter().parse(self.prompt_template):
      column = field and re.split(r"[.[]", field)[0]
      if column and row[column] is None:
        raise ValueError(f"column {column!r}, which task.prompt_template asks for, is empty")
    return filled

  def messages(self, example: Mapping[str, Any]) -> list[dict[str, str]]:
    prompt = example["prompt"]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if self.system_prompt is not None and messages[0]["role"] != "system":
      messages.insert(0, {"role": "system", "content": self.system_prompt})
    return messages

  def reference_answer(self, example: Mapping[str, Any]) -> str | None:
    if self.answer_column is None:
      return super().reference_answer(example)
    answer = str(example[self.answer_column])
    return (answer if self.answer_after is None else answer.rpartition(self.answer_after)[2]).strip()

  def grade_one(self, completion: str, example: Mapping[str, Any]) -> base.Grade:
    right = self._is_right(completion, self.reference_answer(example))
    return base.Grade({"correctness": right}, right)

  def _is_right(self, completion: str, answer: str) -> bool:
    found = self._extracted(completion)
    if found is None:
      return False
    values = numbers.whole_number(found), numbers.whole_number(answer)
    return values[0] == values[1] if None not in values else answers.same_answer(found, answer)

  def _extracted(self, completion: str) -> str | None:
    if self.extract in EXTRACTIONS:
      return EXTRACTIONS[self.extract](completion)
    match = re.search(self.extract, completion)
    return match and match[min(1, match.re.groups)]
