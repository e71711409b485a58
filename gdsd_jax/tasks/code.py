"""Code: Python programs that must pass tests, as in ESPO's AceCode, HumanEval and MBPP."""

from collections.abc import Mapping, Sequence
import dataclasses
import re
from typing import Any, ClassVar

from gdsd_jax import sandbox
from gdsd_jax.checks import require
from gdsd_jax.tasks import base, code_rows, official_prompts
from gdsd_jax.tasks.sources import SourcedTask

# The whole completion: text, one block, and at most a line's end.
_FORMAT = re.compile(r"(?:(?!```).)*```python\n(?:(?!```).)*```\n?", re.DOTALL)
_MAX_PROGRAM = 2**16  # characters; longer ones are not run


@dataclasses.dataclass(frozen=True)
class CodeTask(SourcedTask):
  """Programs asked for in one fenced block, run in bubblewrap, where they never see their tests.

  An example has `messages` and `tests`, each a text of Python or, for programs that read and print, a dict of `stdin`
  and `stdout`. It may have `setup` (str, runs before every test of Python), `names` (list of str, what the program must
  define) and `classes` (list of str, those that are classes; else the tests tell). It may also have `prompt` (str, the
  head of a function that the completion may go on with). A row of a file is as good as an example.

  The columns of a row tell its kind, see `tasks/code_rows.py`: AceCode, HumanEval, MBPP (all of it or sanitized), APPS
  and TACO. Training has no default: the paper's subset of AceCode is on no hub.
  """

  test_source: str = "huggingface:openai/openai_humaneval#test"
  # How AceCode's problems and those of APPS and TACO are asked: "gdsd" or "espo" (tasks/official_prompts.py), None for
  # the latter. HumanEval and MBPP are asked as both evaluate them.
  prompt: str | None = None
  test_seconds: float = 4.0  # CPU time of a test, of all its processes together; a test that waits has twice that
  program_seconds: float = 10.0  # wall-clock time of all tests of a program
  memory_mb: int = 512  # all processes of a program together
  workers: int | None = None  # programs run at a time; None for as many as there are CPUs
  name: ClassVar[str] = "code"

  def __post_init__(self):
    official_prompts.check_name(self.prompt)
    for field, least in (("test_seconds", 0.01), ("program_seconds", 0.01), ("memory_mb", 64), ("workers", 1)):
      value = getattr(self, field)
      unset = value is None and field == "workers"
      require(unset or value >= least, f"task.{field}={value!r}", f"must be at least {least}")

  def examples(self, split: str) -> Sequence[Mapping[str, Any]]:
    """As `Task.examples`; ValueError, too, where there is no bubblewrap to run programs in."""
    base.check_split(split, self.has_validation)
    try:
      sandbox.check_available()
    except RuntimeError as error:
      raise ValueError(f"task.name={self.name}: {error}") from error
    require(getattr(self, f"{split}_source") is not None, f"task.{split}_source",
            "give a file of problems, such as ESPO's acecode_hard.jsonl, whose rows have question and test_cases")
    return super().examples(split)

  def read_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
    return code_rows.read_row(row, self._prompt)

  def messages(self, example: Mapping[str, Any]) -> list[dict[str, str]]:
    return _example(example, self._prompt)["messages"]

  @property
  def _prompt(self) -> str:
    return self.prompt or "espo"

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
  head = code_rows.head_of(name)
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
  tests = tuple(test if isinstance(test, str) else sandbox.ScriptTest(**test) for test in example.get("tests", ()))
  classes = None if example.get("classes") is None else tuple(example["classes"])
  return sandbox.Program(source, tests, example.get("setup", ""), names, classes)


def _grade(completion: str, verdict: sandbox.Verdict) -> base.Grade:
  share = sum(verdict.passed) / len(verdict.passed) if verdict.passed else 0.0
  formed = _FORMAT.fullmatch(completion) is not None
  layout = (1.0 if verdict.syntax else 0.5) if formed else 0.0
  return base.Grade({"format": layout, "correctness": share if layout == 1.0 else 0.0}, accuracy=share == 1.0)


def _example(row, prompt="espo"):
  """An example as it is, or one made of a row of a file."""
  return row if "tests" in row or code_rows.kind_of(row) is None else code_rows.read_row(row, prompt)
