"""Accuracy equals that of the official parsers, completion by completion, but for the classes listed here."""

import collections
import gzip
import json
import re

import pytest

from gdsd_jax import get_task
from gdsd_jax.tasks.base import Completion

# (task, class, what tells it in a row, our accuracy, golden completions of it, why). The first that fits is the one.
CLASSES = (
  ("countdown", "powers", r"\*\*|//", 0.0, 1, "the prompt forbids them; the official code evaluates any Python"),
  ("gsm8k", "negative zero", r'"answer": "-0"', 1.0, 6, "no problem has that answer, and it equals 0"),
  ("gsm8k", "thousands", r"\d(?:,|\{,\}|\\\\,| )\d{3}", 1.0, 34,
   "1,200 is one number; the official parser takes 1 of it in a box, and 200 in a tag"),
  ("gsm8k", "fraction", r"\\\\frac", 1.0, 9, "a fraction is one number; officially one of its two counts"),
  ("gsm8k", "braces", r"boxed\{[^}]*\{", 1.0, 0, "a box ends at its own brace, officially at the first one"),
  ("gsm8k", "signs", r"\^|−|-\\{0,2}\$|\$\.", 1.0, 0, "10^3, −5, -$5 and $.50; officially the first digits"),
  ("math_xml", "words", r"boxed [a-z]", 1.0, 0, "words after the name of a box are none of its content"),
  ("math_xml", "framed", r"\\\\fbox\{", 1.0, 12, "a framed box is a box; officially its content keeps the command"),
  ("math_xml", "gap", r"\\\\boxed \{", 0.0, 3, "a space before the brace leaves the box a box, without the brace"),
  ("math_xml", "box", r"\\\\box\{", 0.0, 2, "\\box{…} is no box of LaTeX; officially in such a tag it is one"),
  ("math_xml", "tag", r"<answer>.*\\\\boxed", 1.0, 4,
   "where the last box is never closed, the tag counts; its own box is read, officially not"),
)


def answer_of(row):
  """The part of a row that classes are told by: completion and answer as JSON."""
  return json.dumps({name: row[name] for name in ("completion", "answer") if name in row}, ensure_ascii=False)


def class_of(row, accuracy):
  for task, name, pattern, ours, *_ in CLASSES:
    if task == row["task"] and ours == accuracy and re.search(pattern, answer_of(row)):
      return task, name
  return row["task"], row["completion"]


def test_accuracy_is_the_official_one_but_for_the_listed_classes(goldens):
  different = collections.Counter()
  with gzip.open(goldens / "accuracy.jsonl.gz", "rt") as file:
    for row in map(json.loads, file):
      accuracy = get_task(row["task"]).accuracy(row["completion"], row)
      if accuracy != pytest.approx(row["official_accuracy"], abs=1e-9):
        different[class_of(row, accuracy)] += 1
  assert different == {(task, name): count for task, name, _, _, count, _ in CLASSES if count}


@pytest.mark.parametrize("task, name, completion, answer", [  # officially all of them are wrong
  ("gsm8k", "thousands", "\\boxed{1,200}", "1200"), ("gsm8k", "thousands", "<answer>1,200</answer>", "1200"),
  ("gsm8k", "fraction", "\\boxed{\\frac{24}{2}}", "12"), ("gsm8k", "braces", "\\boxed{\\text{In all } 12}", "12"),
  ("gsm8k", "signs", "\\boxed{10^3}", "1000"), ("gsm8k", "signs", "\\boxed{−5}", "-5"),
  ("gsm8k", "signs", "<answer>-$5</answer>", "-5"), ("gsm8k", "signs", "\\boxed{$.50}", "0.5"),
  ("math_xml", "words", "in \\boxed form: \\boxed{5}", "5"), ("math_xml", "framed", "\\fbox{5}", "5"),
  ("math_xml", "tag", "<answer>\\boxed{5}</answer> \\boxed{", "5"),
])
def test_examples_of_the_classes(task, name, completion, answer):
  row = {"task": task, "completion": completion, "answer": answer}
  assert get_task(task).accuracy(completion, row) == 1.0 and class_of(row, 1.0) == (task, name)


SOLUTION = "3142243142131324"
SUDOKU = {"puzzle": "3102200002100320", "solution": SOLUTION}


@pytest.mark.parametrize("text, ended, cut", [
  (f"<answer>\n{SOLUTION}", 1.0, 1.0),  # sixteen digits in a row count anywhere
  ("<answer>\n" + " ".join(SOLUTION), 1.0, 0.0),  # an answer that was never ended has no other grid
  (f"{SUDOKU['puzzle']} is <answer>{' '.join(SOLUTION)}", 1.0, 0.0),  # the puzzle, which has nothing filled
  (f"<answer>```\n{' '.join(SOLUTION)}\n```", 1.0, 1.0),
  (f"<answer>{SOLUTION}</answer> so", 1.0, 1.0),
  (f"so </answer> {' '.join(SOLUTION)}", 1.0, 1.0),
])
def test_sudoku_that_was_cut_off_counts_as_officially(text, ended, cut):
  task = get_task("sudoku")
  assert [task.accuracy(given, SUDOKU) for given in (text, Completion(text, True), Completion(text, False))] == [
    ended, ended, cut]
  assert task.grade([Completion(text, False)], [SUDOKU])[0].accuracy_lenient == ended


@pytest.mark.parametrize("name, completion, example", [
  ("gsm8k", "It is 12.", {"answer": "12"}), ("gsm8k", "The answer is 12", {"answer": "12"}),
  ("gsm8k", "<answer>12", {"answer": "12"}), ("gsm8k", "\\boxed {12}", {"answer": "12"}),
  ("gsm8k", "\\boxed{\n12\n}", {"answer": "12"}), ("gsm8k_xml", "<answer>12", {"answer": "12"}),
  ("math_xml", "<answer>\\frac{1}{2}</answer>", {"answer": "\\frac{1}{2}"}),
  ("math_xml", "so <answer> 1/2", {"answer": "\\frac{1}{2}"}),
  ("countdown", "\\boxed{1} so <answer>(5+5)*2</answer>", {"numbers": [5, 5, 2], "target": 20}),
])
def test_what_the_official_parser_does_not_see_is_right_to_the_lenient_one(name, completion, example):
  [grade] = get_task(name).grade([completion], [example])
  assert (grade.accuracy, grade.accuracy_lenient) == (0.0, 1.0)
