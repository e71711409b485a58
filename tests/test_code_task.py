"""The task `code`: problems of three kinds, prompts, rewards, and programs made of completions."""

import gzip
import json
import os
from pathlib import Path

import pytest

from gdsd_jax import get_task, sandbox
from gdsd_jax.tasks import code
from gdsd_jax.tasks.base import Grade

pytestmark = pytest.mark.usefixtures("bubblewrap")

REPOSITORY = Path(__file__).parent.parent
ACECODE = {"question": "Double it.", "test_cases": ["assert f(1) == 2", "assert f(2) == 4", "assert f(3) == 6"]}
HUMANEVAL = {
  "task_id": "HumanEval/x", "entry_point": "double", "canonical_solution": "    return helper(x)\n",
  "prompt": "from typing import List\n\ndef helper(x):\n    return 2 * x\n\n\n"
            "def double(x: List):\n    \"\"\"Doubles.\"\"\"\n",
  "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate('a') == 'aa'\n",
}
MBPP = {
  "task_id": 1, "text": "Sum them.", "code": "def sum(a, b):\n  return a + b", "test_setup_code": "k = 2",
  "test_list": ["assert sum(1, k) == 3", "assert sum(k, k) == 4"], "challenge_test_list": [],
}


def task_of(tmp_path, *rows, **options):
  path = tmp_path / "problems.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return get_task("code", train_source=str(path), test_source=str(path), **options)


def fenced(source, before="Here:\n"):
  return f"{before}```python\n{source}\n```"


# Prompts.


def test_acecode_shows_the_first_test(tmp_path):
  task = task_of(tmp_path, ACECODE)
  system, user = task.messages(task.examples("train")[0])
  assert user == {"role": "user", "content": "Double it.\nTest cases: assert f(1) == 2"}
  assert system["role"] == "system" and "single fenced code block" in system["content"]


def test_acecode_with_a_head_shows_no_test(tmp_path):
  question = "Please complete the following problem:\n```\ndef f(x):\n```\n"
  task = task_of(tmp_path, {**ACECODE, "question": question})
  assert task.messages(task.examples("test")[0])[1]["content"] == question


def test_humaneval_is_asked_as_in_the_official_evaluation(tmp_path):
  task = task_of(tmp_path, HUMANEVAL)
  assert task.messages(task.examples("test")[0]) == [{"role": "user", "content": (
    "Write a solution to the following problem and make sure that it passes the tests:\n"
    f"```{HUMANEVAL['prompt']}```"
  )}]


def test_mbpp_is_asked_as_in_the_official_evaluation(tmp_path):
  task = task_of(tmp_path, MBPP)
  assert task.messages(task.examples("test")[0]) == [{"role": "user", "content": (
    "You are an expert Python programmer, and here is your task: Sum them. Your code should pass these tests:\n\n"
    "assert sum(1, k) == 3\nassert sum(k, k) == 4"
  )}]


# Rewards.


@pytest.mark.parametrize("completion, source", [
  ("a\n```python\nx = 1\n```\nb\n```python\ny\n```", "x = 1\n"), ("```\nx\n```\n```python\ny\n```", "y\n"),
  ("```py\nx\n```", "x\n"), ("```python\nx\n", "x\n"), ("x = 1", "x = 1"), ("```", "```"), ("```python\n```", ""),
])
def test_the_first_block_of_python_is_the_program(completion, source):
  assert code.extract_code(completion) == source


@pytest.mark.parametrize("completion, scores, accuracy", [
  (fenced("def f(x): return 2 * x"), {"format": 1.0, "correctness": 1.0}, 1.0),
  (fenced("def f(x): return 2 if x == 1 else 0"), {"format": 1.0, "correctness": 1 / 3}, 0.0),
  (fenced("def f(x): return"), {"format": 1.0, "correctness": 0.0}, 0.0),
  (fenced("def f(x: return"), {"format": 0.5, "correctness": 0.0}, 0.0),
  (fenced("def f(x): return 2 * x") + " Done.", {"format": 0.0, "correctness": 0.0}, 1.0),
  (fenced("def f(x): return 2 * x") + "\n" + fenced("1"), {"format": 0.0, "correctness": 0.0}, 1.0),
  ("```\ndef f(x): return 2 * x\n```", {"format": 0.0, "correctness": 0.0}, 1.0),
  ("def f(x): return 2 * x", {"format": 0.0, "correctness": 0.0}, 1.0),
  ("", {"format": 0.0, "correctness": 0.0}, 0.0),
  ("\ud800\0", {"format": 0.0, "correctness": 0.0}, 0.0),
  (fenced("x = 1\n" * 20000), {"format": 0.5, "correctness": 0.0}, 0.0),
])
def test_rewards_of_acecode(tmp_path, completion, scores, accuracy):
  task = task_of(tmp_path, ACECODE)
  example = task.examples("train")[0]
  assert task.score(completion, example) == scores
  assert task.accuracy(completion, example) == accuracy


@pytest.mark.parametrize("source", [
  "def double(x):\n    return helper(x)", "def double(x: List):\n  return 2 * x", "    return helper(x)",
  "return helper(x)", "y = helper(x)\n    return y", "if x:\n        return helper(x)\n    return x",
  "if x:\n    return helper(x)\nreturn x", "    return helper(x)\n\nprint(double(", "\treturn helper(x)",
])
def test_humaneval_takes_functions_and_bodies(tmp_path, source):
  task = task_of(tmp_path, HUMANEVAL)
  assert task.accuracy(fenced(source, before=""), task.examples("test")[0]) == 1.0


def test_humaneval_fails_wrong_bodies(tmp_path):
  task = task_of(tmp_path, HUMANEVAL)
  assert task.accuracy(fenced("    return x"), task.examples("test")[0]) == 0.0


def test_humaneval_tests_use_the_prompts_helpers(tmp_path):
  test = "def check(candidate):\n    assert candidate(2) == helper(2)\n"
  task = task_of(tmp_path, {**HUMANEVAL, "test": test})
  example = task.examples("test")[0]
  assert task.accuracy(fenced("def double(x): return 2 * x"), example) == 1.0
  assert task.accuracy(fenced("def helper(x): return 0\ndef double(x): return 0"), example) == 0.0


def test_mbpp_functions_may_be_called_as_pythons_own(tmp_path):
  task = task_of(tmp_path, MBPP)
  example = task.examples("test")[0]
  assert task.score(fenced(MBPP["code"]), example)["correctness"] == 1.0
  assert task.score(fenced("def sum(a, b): return 3"), example)["correctness"] == 0.5


SANITIZED = {
  "source_file": "a", "task_id": 2, "prompt": "Find the square root.", "test_imports": ["import math"],
  "code": "import math\ndef root(x):\n  return math.sqrt(x)", "test_list": ["assert math.isclose(root(4), 2)"],
}


def test_sanitized_mbpp_is_asked_as_the_whole_of_it_and_its_tests_have_their_imports(tmp_path):
  task = task_of(tmp_path, SANITIZED)
  example = task.examples("test")[0]
  assert task.messages(example)[0]["content"].startswith(
    "You are an expert Python programmer, and here is your task: Find the square root. Your code should pass these")
  assert task.accuracy(fenced(SANITIZED["code"]), example) == 1.0
  assert task.accuracy(fenced("def root(x): return x"), example) == 0.0


def test_acecodes_tests_may_be_the_text_of_json(tmp_path):
  rows = [ACECODE, {**ACECODE, "test_cases": json.dumps(ACECODE["test_cases"])}]
  first, second = task_of(tmp_path, *rows).examples("train")
  assert first == second


APPS = {
  "problem_id": 1, "question": "Add two numbers.", "solutions": "", "difficulty": "introductory", "starter_code": "",
  "input_output": json.dumps({"inputs": ["1 2\n", ["3", "4"]], "outputs": ["3\n", ["7", ""]]}),
}
CALLED = {**APPS, "starter_code": "class Solution:\n  def add(self, a, b):\n    ", "input_output": json.dumps({
  "fn_name": "add", "inputs": [[1, 2], [[1], [2]], [[], []]], "outputs": [[3], [1, 2], []]})}


def test_apps_programs_read_and_print(tmp_path):
  task = task_of(tmp_path, APPS)
  example = task.examples("train")[0]
  system, user = task.messages(example)
  assert user["content"] == (
    "Add two numbers.\n\nThe program reads from standard input and prints its answer to standard output.")
  assert system["content"].startswith("You are a helpful assistant.")
  right = "import sys\nprint(sum(map(int, sys.stdin.read().split())))"
  assert task.score(fenced(right), example) == {"format": 1.0, "correctness": 1.0}
  assert task.score(fenced("print(3)"), example) == {"format": 1.0, "correctness": 0.5}
  assert task.accuracy(fenced("def add(a, b): return a + b"), example) == 0.0
  assert task.score(fenced(right), APPS) == task.score(fenced(right), example)


@pytest.mark.parametrize("source, share", [
  ("def add(a, b): return a + b", 1.0), ("class Solution:\n  def add(self, a, b): return a + b", 1.0),
  ("def add(a, b): return tuple(a + b) if a != 1 else 3", 1.0), ("def add(a, b): return a", 1 / 3),
  ("print(3)", 0.0),
])
def test_apps_functions_are_called(tmp_path, source, share):
  task = task_of(tmp_path, CALLED)
  example = task.examples("train")[0]
  assert "The function is named `add`." in task.messages(example)[1]["content"]
  assert "```python\nclass Solution:\n  def add(self, a, b):\n```" in task.messages(example)[1]["content"]
  assert task.score(fenced(source), example)["correctness"] == pytest.approx(share)


def test_a_file_may_hold_problems_of_several_kinds(tmp_path):
  examples = task_of(tmp_path, ACECODE, MBPP, APPS).examples("train")
  assert [len(example["tests"]) for example in examples] == [3, 2, 2]


def test_a_column_tells_which_names_are_classes(tmp_path):
  row = {**ACECODE, "test_cases": ["assert Sum(1) == 2"]}
  source = fenced("class Sum:\n  def __init__(self, x): self.x = x\n  def __eq__(self, o): return o == self.x + 1")
  task = task_of(tmp_path, {**row, "classes": ["Sum"]}, {**row, "classes": []})
  assert [task.accuracy(source, example) for example in task.examples("train")] == [1.0, 0.0]


def test_bad_problems_are_skipped_when_asked(tmp_path):
  task = task_of(tmp_path, {"a": 1}, {**APPS, "input_output": ""}, ACECODE, bad_rows="skip")
  assert len(task.examples("train")) == 1


@pytest.mark.parametrize("row", [ACECODE, HUMANEVAL, MBPP])
def test_rows_of_a_file_score_as_examples_do(tmp_path, row):
  example = task_of(tmp_path, row).examples("test")[0]
  right = {"question": "def f(x): return 2 * x", "entry_point": "    return helper(x)", "text": MBPP["code"]}
  completion = fenced(next(code for column, code in right.items() if column in row))
  task = code.CodeTask()
  assert task.score(completion, row) == task.score(completion, example) == {"format": 1.0, "correctness": 1.0}


def test_a_batch_is_graded_as_one_by_one(tmp_path):
  task = task_of(tmp_path, ACECODE, {**ACECODE, "test_cases": ["assert f(1) == 3"]})
  double, triple = fenced("def f(x): return 2 * x"), fenced("def f(x): return 3 * x")
  examples = [example for example in task.examples("train") for _ in range(2)]
  grades = task.grade([double, triple] * 2, examples)
  assert [grade.rewards["correctness"] for grade in grades] == [1.0, 0.0, 0.0, 1.0]
  assert [grade.accuracy for grade in grades] == [1.0, 0.0, 0.0, 1.0]


def test_rewards_and_accuracy_come_of_one_run_of_each_program(tmp_path, monkeypatch):
  ran, run = [], sandbox.run
  monkeypatch.setattr(sandbox, "run", lambda programs, *options: ran.extend(programs) or run(programs, *options))
  task = task_of(tmp_path, ACECODE)
  completions = [fenced(f"def f(x): return {factor} * x") for factor in (2, 3, 2)]
  grades = task.grade(completions, task.examples("train") * 3)
  assert [grade.rewards["correctness"] for grade in grades] == [grade.accuracy for grade in grades] == [1.0, 0.0, 1.0]
  assert len(ran) == 2  # the same program is run once


def test_limits_are_options(tmp_path):
  task = task_of(tmp_path, ACECODE, test_seconds=0.2, program_seconds=0.4, memory_mb=128, workers=1)
  completion = fenced("import time\ndef f(x):\n  time.sleep(1)\n  return 2 * x")
  assert task.score(completion, task.examples("train")[0])["correctness"] == 0.0


# Real problems.


@pytest.fixture(scope="module")
def data() -> Path:
  path = Path(os.environ.get("GDSD_DATA", REPOSITORY.parent / "shared" / "data"))
  if not path.is_dir():
    pytest.skip(f"benchmark data is not at {path} (set GDSD_DATA)")
  return path


def test_the_humaneval_file_opens_and_its_bodies_pass(data):
  path = data / "humaneval" / "HumanEval.jsonl.gz"
  task = get_task("code", test_source=str(path))
  examples = task.examples("test")
  solutions = [json.loads(line)["canonical_solution"] for line in gzip.open(path)][:12]
  assert len(examples) == 164
  grades = task.grade([fenced(solution.strip()) for solution in solutions], examples[:12])
  assert grades == [Grade({"format": 1.0, "correctness": 1.0}, 1.0)] * 12


def test_the_mbpp_file_opens(data):
  task = get_task("code", test_source=str(data / "mbpp" / "mbpp.jsonl"))
  assert len(task.examples("test")) == 419 and task.examples("test")[0]["names"] == ["min_cost"]


# Bad input.


@pytest.mark.parametrize("row, message", [
  ({"a": 1}, "columns a are those of no known kind: question, test_cases; prompt, entry_point, test; text, code, "),
  ({**ACECODE, "test_cases": []}, "column 'test_cases' must be a list of at least one text of Python"),
  ({**ACECODE, "test_cases": [1]}, "column 'test_cases' must be a list of texts of Python"),
  ({**ACECODE, "test_cases": "assert f(1)"}, "column 'test_cases' is not JSON: Expecting value"),
  ({**APPS, "input_output": ""}, "column 'input_output' is not JSON: Expecting value"),
  ({**APPS, "input_output": '{"inputs": [], "outputs": []}'}, "column 'input_output' must have as many `inputs` as"),
  ({**APPS, "input_output": '{"inputs": ["a"], "outputs": []}'}, "column 'input_output' must have as many `inputs` as"),
  ({**APPS, "input_output": '["a"]'}, "column 'input_output' must have as many `inputs` as"),
  ({**APPS, "input_output": '{"inputs": [1], "outputs": ["a"]}'}, "column 'input_output' must hold texts of at most"),
  ({**APPS, "input_output": '{"inputs": [1], "outputs": [1], "fn_name": "f"}'}, "column 'input_output' must have a "),
  ({**APPS, "input_output": '{"inputs": [[]], "outputs": [1], "fn_name": "f("}'}, "column 'input_output' must have a "),
  ({**ACECODE, "question": 1}, "column 'question' must be text"),
  ({**HUMANEVAL, "entry_point": "other"}, "column 'prompt' must hold the head of 'other'"),
  ({**MBPP, "test_setup_code": None}, "column 'test_setup_code' must be text"),
  ({**ACECODE, "test_cases": ["assert f(1) == 2", "assert f(2) = 4"]}, "test 2 is no Python"),
  ({**ACECODE, "test_cases": ["assert np.all(f(1))"]}, "test 1 uses np: programs and tests have Python's standard"),
  ({**ACECODE, "test_cases": ["assert Sum(1) == 2"]}, "a test compares Sum.* name it in the column 'classes'"),
  ({**MBPP, "test_list": ["assert 1"]}, "test 1 takes nothing from the program"),
  ({**HUMANEVAL, "test": "import pytest\ndef check(f): f(1)"}, "test 1 imports pytest"),
  ({**ACECODE, "classes": 5}, "column 'classes' must be a list of texts"),
])
def test_bad_rows_are_named(tmp_path, row, message):
  task = task_of(tmp_path, row)
  with pytest.raises(ValueError, match=rf"^task\.train_source: .*line 1: {message}"):
    task.examples("train")


@pytest.mark.parametrize("field", ["test_seconds", "program_seconds", "memory_mb", "workers"])
def test_bad_options_are_named(field):
  with pytest.raises(ValueError, match=rf"^task\.{field}=0: must be at least"):
    get_task("code", **{field: 0})


def test_training_needs_a_source():
  with pytest.raises(ValueError, match=r"^task\.train_source: give a file of problems"):
    get_task("code").examples("train")


def test_unknown_splits_are_refused(tmp_path):
  with pytest.raises(ValueError, match="unknown split"):
    task_of(tmp_path, ACECODE).examples("validation")


def test_without_bubblewrap_the_task_refuses_to_start(tmp_path, monkeypatch):
  def refuse():
    raise RuntimeError("programs run in bubblewrap, which is not here")

  monkeypatch.setattr(sandbox, "check_available", refuse)
  with pytest.raises(ValueError, match=r"^task\.name=code: programs run in bubblewrap"):
    task_of(tmp_path, ACECODE).examples("train")
