"""Users' own code: how it is named and loaded, and that its mistakes are told by file and line."""

import os
import re

import pytest

from gdsd_jax import own_code


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  return tmp_path


def write(name, text):
  with open(name, "w") as file:
    file.write(text)


def test_a_name_in_a_file_is_loaded_once(folder):
  write("mine.py", "import neighbour\nclass Box:\n  inner = [neighbour.VALUE]\n")
  write("neighbour.py", "VALUE = 3\n")
  assert own_code.load("mine.py:Box.inner", "task.name") == [3]
  assert own_code.load(f"{folder}/mine.py:Box.inner", "task.name") is own_code.load("mine.py:Box.inner", "task.name")
  assert folder / "mine.py" in own_code.loaded_files()


def test_a_name_in_a_module_is_loaded():
  assert own_code.load("os.path:join", "task.name") is os.path.join


def test_dataclasses_of_a_file_know_their_module():
  write("annotated.py", "from __future__ import annotations\nimport dataclasses\n"
                        "@dataclasses.dataclass\nclass Own:\n  level: int = 2\n")
  assert own_code.load("annotated.py:Own", "task.name")().level == 2


@pytest.mark.parametrize("reference, text, message", [
  ("gone.py:Task", None, "task.name: gone.py: there is no such file"),
  ("no_such_module:Task", None, "task.name: there is no module 'no_such_module'"),
  ("bad.py:", "", "task.name: 'bad.py:' must be FILE.py:NAME or PACKAGE.MODULE:NAME"),
  ("bad.py:Tsk", "class Task: pass", "task.name: bad.py has no 'Tsk'; did you mean 'Task'?"),
  ("bad.py:Task", "x = 1\nclass Task\n", "task.name: bad.py, line 2: SyntaxError: expected ':'"),
  ("bad.py:Task", "\n1 / 0\n", "task.name: bad.py, line 2: ZeroDivisionError: division by zero"),
  ("bad.py:Task", "import re\nre.compile('(')\n", "task.name: bad.py, line 2: error: missing ), untermin"),
  ("bad.py:Task", "import no_such_thing\n", "task.name: bad.py, line 1: ModuleNotFoundError: No module named"),
  ("bad.py:Task", "open('rows.txt')\n", "task.name: bad.py, line 1: FileNotFoundError: "),
  ("bad.py:Task", "import sys\nsys.exit(3)\n", "task.name: bad.py, line 2: SystemExit: 3"),
])
def test_what_cannot_be_loaded_is_one_line(reference, text, message):
  if text is not None:
    write("bad.py", text)
  with pytest.raises((ValueError, OSError), match=re.escape(message)):
    own_code.load(reference, "task.name")


def test_an_error_is_told_with_the_last_line_of_the_users_own():
  write("late.py", "import json\ndef outer(text):\n  return inner(text)\ndef inner(text):\n  return json.loads(text)\n")
  outer = own_code.load("late.py:outer", "task.name")
  with pytest.raises(ValueError) as caught:
    outer("{")
  assert own_code.described(caught.value).startswith("late.py, line 5: JSONDecodeError: ")
  assert own_code.described(KeyError("answer"), outer) == "late.py, line 2: KeyError: 'answer'"
  assert own_code.place(outer) == "late.py, line 2"


def test_an_assertion_without_a_message_shows_its_line():
  write("claims.py", "def claim(x):\n  assert x > 1\n")
  with pytest.raises(AssertionError) as caught:
    own_code.load("claims.py:claim", "task.name")(0)
  assert own_code.described(caught.value) == "claims.py, line 2: AssertionError: assert x > 1"
