"""Rows of code problems as AceCode, HumanEval, MBPP, APPS and TACO have them, each made into a prompt and tests."""

from collections.abc import Mapping
import json
import re
from typing import Any

from gdsd_jax import sandbox
from gdsd_jax.tasks.official_prompts import CODE_SYSTEM
from gdsd_jax.tasks.sources import text_of

_READS_AND_PRINTS = "The program reads from standard input and prints its answer to standard output."
# The answer of a function under test as JSON has it, which knows no tuples.
_CALL_SETUP = """
def _plain(value):
  return [_plain(item) for item in value] if type(value) in (list, tuple) else value
"""
# A function may stand by itself or in a class Solution, as the sites that problems come from have it.
_CALL = """
try:
  _function = Solution().{name}
except NameError:
  _function = {name}
assert _plain(_function(*{arguments!r})) in {expected!r}
"""


def read_row(row: Mapping[str, Any], prompt: str) -> dict[str, Any]:
  """The example (see `CodeTask`) that a row of any known kind holds.

  ValueError where it is of none, or damaged, or has tests that the sandbox cannot run, see docs/code.md. `prompt` names
  what AceCode's problems and those of APPS and TACO ask for: one of `CODE_SYSTEM`.
  """
  columns = kind_of(row)
  if columns is None:
    known = "; ".join(map(", ".join, _KINDS))
    raise ValueError(f"columns {', '.join(row)} are those of no known kind: {known}")
  example = {**_KINDS[columns](row, prompt), **({"classes": _texts_of(row, "classes")} if "classes" in row else {})}
  tests = [test for test in example["tests"] if isinstance(test, str)]
  why = sandbox.refusal(tests, example.get("setup", ""), example.get("names", ()), example.get("classes"))
  if why:
    raise ValueError(f"{why} (docs/code.md)")
  return example


def kind_of(row: Mapping[str, Any]) -> tuple[str, ...] | None:
  """The columns that tell a row's kind; None where it has those of none."""
  return next((columns for columns in _KINDS if all(column in row for column in columns)), None)


def head_of(name: str) -> re.Pattern[str]:
  """Matches the line that defines a function."""
  return re.compile(rf"^def[ \t]+{re.escape(name)}\b", re.MULTILINE)


def _acecode(row, prompt):
  question, tests = text_of(row, "question"), _tests_of(row, "test_cases")
  # Questions with a block of code show the function's head already.
  question = question if "\n```\n" in question else f"{question}\nTest cases: {tests[0]}"
  return {"messages": _asked_strictly(question, prompt), "tests": tests}


def _humaneval(row, _):
  prompt, name = text_of(row, "prompt"), text_of(row, "entry_point")
  head = head_of(name).search(prompt)
  if not head:
    raise ValueError(f"column 'prompt' must hold the head of {name!r}, the column 'entry_point'")
  question = f"Write a solution to the following problem and make sure that it passes the tests:\n```{prompt}```"
  return {
    "messages": _asked(question), "prompt": prompt, "names": [name],
    "tests": [f"{text_of(row, 'test')}\ncheck({name})\n"],
    "classes": [],
    "setup": prompt[:head.start()],  # tests that use the prompt's helpers mean these, not what a program makes of them
  }


def _mbpp(row, _):
  return _mbpp_of(row, text_of(row, "text"), text_of(row, "test_setup_code"))


def _mbpp_sanitized(row, _):
  return _mbpp_of(row, text_of(row, "prompt"), "\n".join(_texts_of(row, "test_imports")))


def _mbpp_of(row, text, setup):
  tests = _tests_of(row, "test_list")
  question = (f"You are an expert Python programmer, and here is your task: {text} "
              "Your code should pass these tests:\n\n" + "\n".join(tests))
  code = text_of(row, "code")
  names = re.findall(r"^(?:async[ \t]+def|def|class)[ \t]+(\w+)", code, re.MULTILINE)
  classes = re.findall(r"^class[ \t]+(\w+)", code, re.MULTILINE)
  return {"messages": _asked(question), "tests": tests, "setup": setup, "names": names, "classes": classes}


def _input_output(row, prompt):
  """APPS and TACO: programs that read and print, or, where `fn_name` says its name, a function."""
  question, pairs = text_of(row, "question"), _json_of(row, "input_output")
  inputs, outputs = (pairs.get(name) if isinstance(pairs, dict) else None for name in ("inputs", "outputs"))
  if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs) or not inputs:
    raise ValueError("column 'input_output' must have as many `inputs` as `outputs`, lists of one or more")
  start, name = row.get("starter_code") or "", pairs.get("fn_name")
  begun = f"\n\nBegin with this code:\n```python\n{start.strip()}\n```" if start.strip() else ""
  if name is None:
    tests = [{"stdin": _spoken(said), "stdout": _spoken(heard)} for said, heard in zip(inputs, outputs)]
    return {"messages": _asked_strictly(f"{question}\n\n{_READS_AND_PRINTS}{begun}", prompt), "tests": tests}
  if not isinstance(name, str) or not name.isidentifier() or not all(isinstance(given, list) for given in inputs):
    raise ValueError("column 'input_output' must have a name as `fn_name`, and a list of arguments as each of `inputs`")
  # Some answers are in a list of one, without anything to tell which.
  accepted = [(value, *value[:1]) if isinstance(value, list) else (value,) for value in outputs]
  tests = [_CALL.format(name=name, arguments=given, expected=values) for given, values in zip(inputs, accepted)]
  asked = _asked_strictly(f"{question}\n\nThe function is named `{name}`.{begun}", prompt)
  return {"messages": asked, "tests": tests, "setup": _CALL_SETUP, "names": [name], "classes": []}


def _asked(question):
  return [{"role": "user", "content": question}]


def _asked_strictly(question, prompt):
  return [{"role": "system", "content": CODE_SYSTEM[prompt]}, *_asked(question)]


def _tests_of(row, column):
  tests = _texts_of(row, column)
  if not tests:
    raise ValueError(f"column {column!r} must be a list of at least one text of Python")
  return tests


def _texts_of(row, column):
  texts = _json_of(row, column)
  if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
    raise ValueError(f"column {column!r} must be a list of texts of Python, it is {row[column]!r:.80}")
  return list(texts)


def _json_of(row, column):
  """What a column holds, as it is or as the text of its JSON."""
  if not isinstance(row[column], str):
    return row[column]
  try:
    return json.loads(row[column])
  except (ValueError, RecursionError) as error:
    raise ValueError(f"column {column!r} is not JSON: {error}") from error


def _spoken(value):
  """The text of an input or output, which may be in lines."""
  value = "\n".join(value) if isinstance(value, list) and all(isinstance(line, str) for line in value) else value
  if not isinstance(value, str) or len(value.encode("utf-8", "replace")) > sandbox.MAX_TEXT:
    raise ValueError(f"column 'input_output' must hold texts of at most {sandbox.MAX_TEXT} bytes, not {value!r:.80}")
  return value


# The columns that tell the kind of a row, and what makes an example of such a row.
_KINDS = {
  ("question", "test_cases"): _acecode,
  ("prompt", "entry_point", "test"): _humaneval,
  ("text", "code", "test_list", "test_setup_code"): _mbpp,
  ("prompt", "code", "test_list", "test_imports"): _mbpp_sanitized,
  ("question", "input_output"): _input_output,
}
