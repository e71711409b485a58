"""Mathematical equality by math-verify, in processes of its own: what they cannot settle in time is wrong."""

from collections.abc import Sequence
import functools

from gdsd_jax.tasks.workers import serve, Workers

OPERATION_SECONDS = 2  # math-verify's own limit for reading a completion, reading an answer, and comparing the two
GRADING_SECONDS = 10  # the worker's limit for all of it
MEMORY_BYTES = 2**31


@functools.cache
def workers() -> Workers:
  """The processes that grade, one set for all."""
  return Workers("gdsd_jax.tasks.math_grader")


def equal_batch(completions: Sequence[str], answers: Sequence[str]) -> list[bool]:
  """Whether math-verify finds the final expressions of each completion and its answer equal, many pairs at a time.

  Completions and answers are text with LaTeX. Which is which matters: an interval is right where the answer is an
  inequality, but not the other way round. False, too, where it raises or takes too long. OSError where no worker can
  be started.
  """
  return [bool(verdict) for verdict in workers().ask(list(zip(completions, answers)))]


def _prepare():
  from math_verify import parse, verify

  def equal(pair):
    completion, answer = pair
    texts = completion, answer if "\\boxed" in answer else f"\\boxed{{{answer}}}"
    found, expected = (parse(text, parsing_timeout=OPERATION_SECONDS) for text in texts)
    return bool(verify(gold=expected, target=found, timeout_seconds=OPERATION_SECONDS))

  equal(("\\boxed{\\frac{1}{2}}", "0.5"))  # imports what is imported late
  return equal


if __name__ == "__main__":
  serve(_prepare, GRADING_SECONDS, MEMORY_BYTES)
