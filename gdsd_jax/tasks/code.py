"""Code: Python programs that must pass tests, as in ESPO's AceCode, HumanEval and MBPP."""

from collections.abc import Mapping, Sequence
import dataclasses
import re
from typing import Any, ClassVar

from gdsd_jax import sandbox
from gdsd_jax.checks import require
from gdsd_jax.tasks import base
from gdsd_jax.tasks.sources import check_columns, examples_of, SourcedTask, text_of

_SYSTEM_PROMPT = (
  "You are a helpful assistant. When you output code, it must be in a single fenced code block using triple backticks "
  "(```) and the language specifier (e.g., ```python). The code block must appear as the last part of your response "
  "and end with a newline after the closing backticks (```). Do not include any text after the code block. Do not "
  "include extra code blocks or explanations outside the final code block."
)
# The whole completion: text, one block, and at most a line's end.
_FORMAT = re.compile(r"(?:(?!```).)*```python\n(?:(?!```).)*```\n?", re.DOTALL)
_MAX_PROGRAM = 2**16  # characters; longer ones are not run


@dataclasses.dataclass(frozen=True)
class CodeTask(SourcedTask):
  """Programs asked for in one fenced block, run in bubblewrap, where they never see their tests.

  An example has `messages` and `tests` (list of str). It may have `setup` (str, runs before every test) and `names`
  (list of str, what the program must define). It may also have `prompt` (str, the head of a function that the
  completion may go on with). A row of a file is as good as an example.

  The columns of a source tell its kind: AceCode has `question` and `test_cases`; HumanEval has `prompt`, `entry_point`
  and `test`; MBPP has `text`, `code`, `test_list` and `test_setup_code`. Training has no default: the paper's subset of
  AceCode is on no hub.
  """

  test_source: str = "huggingface:openai/openai_humaneval#test"
  test_seconds: float = 4.0  # CPU time of a test; a test that waits has twice that
  program_seconds: float = 10.0  # wall-clock time of all tests of a program
  memory_mb: int = 512  # for a program
  workers: int | None = None  # programs run at a time; None for as many as there are CPUs
  name: ClassVar[str] = "code"

  def __post_init__(self):
    for field, least in (("test_seconds", 0.01), ("program_seconds", 0.01), ("memory_mb", 64), ("workers", 1)):
      value = getattr(self, field)
      unset = value is None and field == "workers"
      require(unset or value >= least, f"task.{field}={value!r}", f"must be at least {least}")

  def examples(self, split: str) -> Sequence[Mapping[str, Any]]:
    """As `Task.examples`; ValueError, too, where there is no bubblewrap to run programs in."""
    base.check_split(split, self.has_validation)
    field = f"{split}_source"
    try:
      sandbox.check_available()
    except RuntimeError as error:
      raise ValueError(f"task.name={self.name}: {error}") from error
    require(getattr(self, field) is not None, f"task.{field}",
            "give a file of problems, such as ESPO's acecode_hard.jsonl, whose rows have question and test_cases")
    rows = self.rows(split)
    columns, known = _kind(rows[0]), "; ".join(map(", ".join, _KINDS))
    require(columns is not None, f"task.{field}",
            f"{rows[0].place}: columns {', '.join(rows[0])} are those of no known kind: {known}")
    return examples_of(rows, lambda row: _read_row(row, columns), field=f"task.{field}")

  def messages(self, example: Mapping[str, Any]) -> list[dict[str, str]]:
    return _example(example)["messages"]

  def grade(self, completions: Sequence[str], examples: Sequence[Mapping[str, Any]]) -> list[base.Grade]:
    """Runs the program of each completion: its first block, or the whole text where there is no block.

    `format` is 1 for one block of Python at the end, and a half where it is no Python; `correctness` is the share of
    tests passed, for completions whose format earns 1. Accuracy asks for all tests, whatever the format.
    """
    pairs = zip(completions, examples, strict=True)
    programs = [_program(completion, _example(example)) for completion, example in pairs]
    distinct = list(dict.fromkeys(programs))  # completions of one group may well be the same
    limits = sandbox.Limits(self.test_seconds, self.program_seconds, self.memory_mb)
    verdicts = dict(zip(distinct, sandbox.run(distinct, limits, self.workers)))
    return [_grade(completion, verdicts[program]) for completion, program in zip(completions, programs)]


def extract_code(completion: str) -> str:
  """The first ```python block; else the first block of any kind, closed or not; else the whole text."""
  _, _, rest = completion.partition("```python\n")
  if "```" in rest:
    return rest[:rest.index("```")]
  fence = re.search(r"```[^\n`]*\n", completion)
  return completion[fence.end():].partition("```")[0] if fence else completion


def complete(prompt: str, name: str, code: str) -> str:
  """The program that `code` makes of a prompt which ends in the head of function `name`.

  Code that defines the function replaces it, and keeps what precedes it: imports and helpers. Any other code is its
  body, whose indentation may have been lost, as a whole or in its first line.
  """
  head = _head_of(name)
  if head.search(code):
    return prompt[:head.search(prompt).start()] + "\n" + code
  lines = [line.expandtabs(4) for line in code.split("\n") if line.strip()] or ["pass"]
  indents = [len(line) - len(line.lstrip()) for line in lines]
  if indents[0]:  # what follows the body is not the body's
    lines = lines[:indents.index(0)] if 0 in indents else lines
  elif len(lines) > 1 and indents[1] >= (8 if lines[0].rstrip().endswith(":") else 4):
    lines[0] = "    " + lines[0]
  else:
    lines = ["    " + line for line in lines]
  return prompt.rstrip() + "\n" + "\n".join(lines) + "\n"


def _program(completion, example):
  code = extract_code(completion)
  names = tuple(example.get("names", ()))
  if len(code) > _MAX_PROGRAM:
    code = "("  # no Python either
  source = complete(example["prompt"], names[0], code) if "prompt" in example else code.strip()
  return sandbox.Program(source, tuple(example.get("tests", ())), example.get("setup", ""), names)


def _grade(completion: str, verdict: sandbox.Verdict) -> base.Grade:
  share = sum(verdict.passed) / len(verdict.passed) if verdict.passed else 0.0
  formed = _FORMAT.fullmatch(completion) is not None
  layout = (1.0 if verdict.syntax else 0.5) if formed else 0.0
  return base.Grade({"format": layout, "correctness": share if layout == 1.0 else 0.0}, accuracy=share == 1.0)


def _example(row):
  """An example as it is, or one made of a row of a file."""
  columns = _kind(row)
  return _read_row(row, columns) if columns and "tests" not in row else row


def _read_row(row, columns):
  check_columns(row, columns)
  return _KINDS[columns](row)


def _kind(row):
  """The columns that tell a row's kind; None where it has those of none."""
  return next((columns for columns in _KINDS if all(column in row for column in columns)), None)


def _acecode(row):
  question, tests = text_of(row, "question"), _tests_of(row, "test_cases")
  # Questions with a block of code show the function's head already.
  question = question if "\n```\n" in question else f"{question}\nTest cases: {tests[0]}"
  return {"messages": [{"role": "system", "content": _SYSTEM_PROMPT}, *_asked(question)], "tests": tests}


def _humaneval(row):
  prompt, name = text_of(row, "prompt"), text_of(row, "entry_point")
  head = _head_of(name).search(prompt)
  if not head:
    raise ValueError(f"column 'prompt' must hold the head of {name!r}, the column 'entry_point'")
  question = f"Write a solution to the following problem and make sure that it passes the tests:\n```{prompt}```"
  return {
    "messages": _asked(question), "prompt": prompt, "names": [name],
    "tests": [f"{text_of(row, 'test')}\ncheck({name})\n"],
    "setup": prompt[:head.start()],  # tests that use the prompt's helpers mean these, not what a program makes of them
  }


def _mbpp(row):
  tests = _tests_of(row, "test_list")
  question = (f"You are an expert Python programmer, and here is your task: {text_of(row, 'text')} "
              "Your code should pass these tests:\n\n" + "\n".join(tests))
  names = re.findall(r"^(?:async[ \t]+def|def|class)[ \t]+(\w+)", text_of(row, "code"), re.MULTILINE)
  return {"messages": _asked(question), "tests": tests, "setup": text_of(row, "test_setup_code"), "names": names}


def _asked(question):
  return [{"role": "user", "content": question}]


def _head_of(name):
  return re.compile(rf"^def[ \t]+{re.escape(name)}\b", re.MULTILINE)


def _tests_of(row, column):
  tests = row[column]
  if not isinstance(tests, (list, tuple)) or not tests or not all(isinstance(test, str) for test in tests):
    raise ValueError(f"column {column!r} must be a list of tests, each a text, it is {tests!r:.80}")
  return list(tests)


# The columns of each kind of source, and what makes an example of such a row.
_KINDS = {
  ("question", "test_cases"): _acecode,
  ("prompt", "entry_point", "test"): _humaneval,
  ("text", "code", "test_list", "test_setup_code"): _mbpp,
}
