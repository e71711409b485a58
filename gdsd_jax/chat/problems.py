"""A task's problem by its index, asked as training or the evaluation asks it, and the grade of an answer to it."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from gdsd_jax.chat.answers import Answer, Answering
from gdsd_jax.chat.config import SampleConfig
from gdsd_jax.checks import require
from gdsd_jax.evaluation.problems import choose
from gdsd_jax.huggingface.tokenizer import token_ids
from gdsd_jax.tasks import get_task, train_and_validation, try_out
from gdsd_jax.tasks.base import Completion, Grade, Task


@dataclasses.dataclass(frozen=True)
class Problem:
  """A problem of a task."""

  task: Task
  example: Mapping[str, Any]
  messages: list[dict[str, str]]  # as it is asked
  prefill: str  # what every answer begins with
  as_training: bool  # whether it is asked as in training
  reference: str | None  # the right answer as the task has it; None where it has none

  def grade(self, answer: Answer, answering: Answering) -> Grade:
    """The rewards of an answer as a run would have them. Raises ValueError where the task's grader does."""
    text = Completion(self.prefill + answer.text, ended=answer.length < len(answer.tokens))
    more = []
    if self.task.takes_ids:
      ask = self.task.messages if self.as_training else self.task.evaluation_messages
      more = [token_ids(answering.tokenizer, [text]), ask]
    try:
      return self.task.grade([text], [self.example], *more)[0]
    except Exception as error:  # whatever it raises
      message = str(error) if self.task.is_own else f"{type(error).__name__}: {error}"
      raise ValueError(f"task.name: reward of {self.task.name}: {message}") from error


def find_problem(config: SampleConfig, split: str, index: int) -> Problem:
  """The problem of that index: of the test split as launch/evaluate.py counts and asks them, else as training does.

  Raises ValueError or OSError, one line.
  """
  task = get_task(config.task.name, **config.task.options)
  if split == "test":
    examples, _ = choose(task.examples("test"), config.eval.test_size, None)
  else:
    examples = train_and_validation(task, config.eval.num_examples)[split == "validation"]
  require(0 <= index < len(examples), "--index",
          f"{index} is none of the {len(examples)} {split} problems of {task.name}, which are counted from 0")
  example = examples[index]
  try_out(task, [example])  # what fails does so before an answer is computed
  as_training = split != "test" or config.eval.prompt == "training"
  messages = (task.messages if as_training else task.evaluation_messages)(example)
  prefill = "" if split != "test" else config.eval.prefill
  return Problem(task, example, messages, prefill, as_training, task.reference_answer(example))
