"""Tasks math, math_xml, gsm8k, gsm8k_xml: examples, prompts, rewards, accuracy, and the grader's safety."""

import importlib.util
import json
import os
from pathlib import Path
import re
import signal
import subprocess
import sys
import threading
import time

from conftest import REPOSITORY, slow
from hypothesis import given, strategies as st
import pytest

from gdsd_jax import get_task
from gdsd_jax.tasks import answers, boxes, math_grader, workers
from gdsd_jax.tasks.base import Grade

needs_math_verify = pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="no math-verify")
MATH = pytest.param("math", marks=needs_math_verify)
TASKS = ("gsm8k", "gsm8k_xml", MATH, "math_xml")


@pytest.fixture(scope="module")
def benchmarks() -> Path:
  """Folder of the public benchmark files; tests that need it skip where it is missing."""
  path = Path(os.environ.get("GDSD_BENCHMARKS", REPOSITORY.parent / "shared" / "data"))
  if not path.is_dir():
    pytest.skip(f"benchmark files are not at {path} (set GDSD_BENCHMARKS)")
  return path


def task_on(name, rows, tmp_path):
  file = tmp_path / "rows.jsonl"
  file.write_text("\n".join(map(json.dumps, rows)))
  return get_task(name, train_source=str(file))


def correctness(name, completion, answer):
  return get_task(name).score(completion, {"answer": answer})["correctness"]


# Examples and prompts


@pytest.mark.parametrize("name", ["gsm8k", "gsm8k_xml"])
def test_gsm8k_example_has_the_number_after_the_marker(tmp_path, name):
  rows = [{"question": "How many?", "answer": "2 * 600 = 1,200\n#### 1,200", "id": 7}]
  assert task_on(name, rows, tmp_path).examples("train") == [{"question": "How many?", "answer": "1200"}]


@pytest.mark.parametrize("answer", ["1200", "#### twelve", "#### ", "####\n1 2", "#### 1,5", "#### 1,2345"])
def test_gsm8k_answer_without_a_number_is_named_with_its_line(tmp_path, answer):
  rows = [{"question": "a", "answer": "#### 1"}, {"question": "b", "answer": answer}]
  with pytest.raises(ValueError, match=r"^task.train_source: \S+, line 2: column 'answer' must end in '#### N"):
    task_on("gsm8k", rows, tmp_path).examples("train")


@pytest.mark.parametrize("name", [MATH, "math_xml"])
@pytest.mark.parametrize("row", [
  {"answer": "\\frac{1}{2}"},
  {"solution": "First \\boxed{3}, so $\\boxed{\\frac{1}{2}}$."},
  {"answer": "\\frac{1}{2}", "solution": "no box"},
])
def test_math_example_has_the_answer_or_what_the_solution_boxes(tmp_path, name, row):
  task = task_on(name, [{"problem": "Half?", **row}], tmp_path)
  assert task.examples("train") == [{"problem": "Half?", "answer": "\\frac{1}{2}"}]


def test_math_answer_may_be_a_whole_number(tmp_path):
  assert task_on("math_xml", [{"problem": "p", "answer": 204}], tmp_path).examples("train")[0]["answer"] == "204"


@pytest.mark.parametrize("row, expected", [
  ({"solution": "12"}, r"column 'solution' must end in \\boxed\{…\}"),
  ({"solution": "\\boxed{12"}, r"column 'solution' must end in \\boxed\{…\}"),
  ({"answer": " "}, "the answer is empty"),
  ({"answer": True}, "column 'answer' must be text, it is True"),
  ({"level": 1}, "no column 'solution', it has 'problem', 'level'"),
])
def test_math_problem_without_answer_is_named_with_its_line(tmp_path, row, expected):
  with pytest.raises(ValueError, match=rf"^task.train_source: \S+, line 1: {expected}$"):
    task_on("math_xml", [{"problem": "p", **row}], tmp_path).examples("train")


@pytest.mark.parametrize("name", TASKS)
def test_each_split_has_its_own_source(tmp_path, name):
  task = get_task(name, train_source=str(tmp_path / "here.jsonl"), test_source=str(tmp_path / "there.jsonl"))
  with pytest.raises(OSError, match=r"^task.train_source: cannot read \S+here.jsonl: "):
    task.examples("train")
  with pytest.raises(OSError, match=r"^task.test_source: cannot read \S+there.jsonl: "):
    task.examples("test")


@pytest.mark.parametrize("name", TASKS)
def test_unknown_split_is_refused(name):
  with pytest.raises(ValueError, match="^unknown split 'dev'"):
    get_task(name).examples("dev")


XML_PROMPT = "\nRespond in the following format:\n<reasoning>\n...\n</reasoning>\n<answer>\n...\n</answer>\n\n\n"


@pytest.mark.parametrize("name, content", [
  ("gsm8k", "Why?\nPlease reason step by step, and put your final answer within \\boxed{}."),
  pytest.param("math", "Why?\nPlease reason step by step, and put your final answer within \\boxed{}.",
               marks=needs_math_verify),
  ("gsm8k_xml", XML_PROMPT + "Why?"),
  ("math_xml", XML_PROMPT + "You are a math expert. Solve the problem step by step. "
   "Wrap the final answer in a \\boxed{}.\n\nWhy?"),
])
def test_prompts_are_the_official_ones(name, content):
  example = {"question": "Why?", "problem": "Why?", "answer": "1"}
  assert get_task(name).messages(example) == [{"role": "user", "content": content}]


# Rewards and accuracy (tests/test_official_rewards.py has the official cases)


@pytest.mark.parametrize("completion, number", [
  ("The answer is 12", "12"),  # officially 1: an unescaped dot takes the last character
  ("The answer is 12. So", "12"),  # officially "12."
  ("The answer is 1,200 dollars", "1200"), ("The answer is: $1,200.00 in 3 years", "1200"),
  ("The answer is **12** of 13", "12"), ("#### 1,200. 7", "1200"), ("The answer is in 3 years 4", "4"),
  ("The answer is 5. #### 6", "5"), ("#### 12 #### 13", "12"), ("3 or 4,5", "5"), ("The answer is 4,5.", "5"),
  ("from -3 to -12", "-12"), ("it is $1,200.00", "1200"), ("a loss of -$5", "-5"),
])
def test_gsm8k_reward_without_box_and_tag_reads_the_announced_number_or_the_last_one(completion, number):
  assert correctness("gsm8k", completion, number) == 1.0


@pytest.mark.parametrize("completion", ["no number", "", "The answer is 4,5.", "The answer is 12 or so, 4"])
def test_gsm8k_reward_of_another_number_is_0(completion):
  assert correctness("gsm8k", completion, "4") == 0.0


@pytest.mark.parametrize("name", ["gsm8k", "gsm8k_xml"])
@pytest.mark.parametrize("completion, answer", [
  ("\\boxed{12.00}", "12"), ("\\boxed{\\$1,200.00}", "1200"), ("<answer>$1,200.00</answer>", "1200"),
  ("\\boxed{13} apples in 3 years", "13"), ("\\boxed{\\frac{4}{2}}", "2"), ("\\boxed{2\\frac{1}{2}}", "2.5"),
  ("\\boxed{1{,}200}", "1200"), ("\\boxed{1\\,200}", "1,200"), ("\\boxed{\\text{12 apples}}", "12"),
  ("\\boxed{1200} <answer>7</answer>", "1200"), ("the \\boxed form: \\boxed{12}", "12"), ("\\boxed{１２}", "12"),
  ("\\boxed{...} \\boxed{} \\boxed{12}", "12"), ("\\boxed{-\\$5}", "-5"),
])
def test_gsm8k_reward_and_accuracy_read_the_same_number(name, completion, answer):
  [grade] = get_task(name).grade([completion], [{"answer": answer}])
  assert grade.rewards["correctness"] > 0 and grade.accuracy == grade.accuracy_lenient == 1.0


@pytest.mark.parametrize("name", ["gsm8k", "gsm8k_xml"])
@pytest.mark.parametrize("completion, answer", [
  ("\\boxed{\\frac{2}{3}}", "2"), ("\\boxed{\\frac{2}{3}}", "3"), ("\\boxed{2/3}", "2"), ("\\boxed{2 1/2}", "2"),
  ("\\boxed{1,200}", "200"), ("\\boxed{1,200}", "1"), ("\\boxed{15}", "1,5"), ("\\boxed{1,5}", "15"),
  ("\\boxed{12.00}", "0"), ("\\boxed{13} in 3 years", "3"), ("\\boxed{1/0}", "1"), ("\\boxed{inf}", "inf"),
])
def test_gsm8k_reward_and_accuracy_of_another_number_are_0(name, completion, answer):
  [grade] = get_task(name).grade([completion], [{"answer": answer}])
  assert grade.rewards["correctness"] == grade.accuracy == grade.accuracy_lenient == 0.0


@pytest.mark.parametrize("name, right, row", [
  ("gsm8k", "\\boxed{1200}", {"answer": "2 * 600 = <<2*600=1200>>1,200\n#### 1,200"}),
  ("gsm8k_xml", "<answer>1200</answer>", {"answer": "2 * 600 = <<2*600=1200>>1,200\n#### 1,200"}),
  pytest.param("math", "\\boxed{1200}", {"solution": "Twice 600 is $\\boxed{1200}$."}, marks=needs_math_verify),
  ("math_xml", "\\boxed{1200}", {"solution": "Twice 600 is $\\boxed{1200}$."}),
])
def test_a_row_is_as_good_as_an_example(name, right, row):
  task = get_task(name)
  assert task.score(right, row)["correctness"] > 0 and task.accuracy(right, row) == 1.0
  assert task.score("13", row)["correctness"] == task.accuracy("13", row) == 0.0


@pytest.mark.parametrize("end, reward", [("", 0.5), ("\n", 0.5), ("\n\n", 0.5), ("\n\n\n", 0.0), ("\nso", 0.0)])
def test_strict_format_lets_at_most_two_line_ends_follow(end, reward):
  completion = f"<reasoning>\nr\n</reasoning>\n<answer>\n12\n</answer>{end}"
  assert get_task("gsm8k_xml").score(completion, {"answer": "12"})["strict_format"] == reward


def test_gsm8k_xml_answer_may_separate_thousands():
  assert correctness("gsm8k_xml", "<answer>1,200</answer>", "1200") == 2.0


@pytest.mark.parametrize("completion, accuracy", [
  ("\\boxed{12}", 1), ("\\boxed{12.0} or \\boxed{13}", 1), ("\\boxed{...} \\boxed{12 apples}", 1),
  ("\\boxed{13} 12", 0), ("\\boxed{1}2", 0), ("<answer>3 * 4 = 12</answer> 13", 1), ("13 <answer>12", 0),
  ("it is 12", 0), ("12 or 13", 0), ("", 0), ("\\boxed{}", 0), ("\\boxed{twelve}", 0), ("\\boxed{nan} \\boxed{12}", 0),
])
def test_gsm8k_accuracy_counts_the_box_then_the_closed_tag_and_nothing_else(completion, accuracy):
  assert get_task("gsm8k").accuracy(completion, {"answer": "12"}) == accuracy


@pytest.mark.parametrize("completion, accuracy", [
  ("\\boxed{\\dfrac12}", 1), ("\\boxed{3} then $\\boxed{ 1/2 }$", 1), ("\\boxed{1/2} then \\boxed{3}", 0),
  ("<answer>0.5</answer>", 0), ("\\boxed{3 <answer>0.5</answer>", 1), ("so \\frac{1}{2}", 0), ("", 0),
  ("\\fbox{\\frac12}", 1), ("The \\boxed form: \\boxed{1/2}", 1), ("\\boxed{1/2} in the \\boxed form", 1),
  ("\\boxed {1/2}", 1), ("\\boxed{1/2} or \\boxed{", 0), ("<answer>\\boxed{1/2}</answer> \\boxed{3", 1),
])
def test_math_xml_accuracy_counts_the_last_box_then_the_tag(completion, accuracy):
  assert get_task("math_xml").accuracy(completion, {"answer": "\\frac{1}{2}"}) == accuracy


@pytest.mark.parametrize("first, second", [
  ("\\tfrac34", "\\frac{3}{4}"), ("\\dfrac1{72}", "\\frac{1}{72}"), ("-3/4", "\\frac{-3}{4}"), (".5", "1/2"),
  ("\\sqrt3", "\\sqrt{3}"), ("\\sqrt\\sqrt3", "\\sqrt\\sqrt{3}"), ("90^\\circ", "90"), ("90^{\\circ}", "90"),
  ("50\\%", "50"), ("\\$5", "5"), ("x=5", "5"), ("5\\text{ cm}", "5"), ("\\left( 3, 4 \\right)", "(3,4)"),
  ("10\\!000", "10000"), ("5\\text{ cm}\\text{ or so}", "5\\text{ cm}\\text{ or so}"), ("\\sqrt", "\\sqrt"),
  ("\\{.5\\}", "\\{0.5\\}"), ("1\n2", "12"),
])
def test_answers_that_read_the_same(first, second):
  assert answers.same_answer(first, second)


@pytest.mark.parametrize("first, second", [("1+x", "x+1"), ("abc=5", "5"), ("01/2", "1/2"), ("12", "21"), ("", "0"),
  ("5\\text{ cm}, 6\\text{ cm}", "5"), ("\\frac", "\\frac ")])
def test_answers_that_read_differently(first, second):
  assert not answers.same_answer(first, second)


@pytest.mark.parametrize("completion, answer, expected", [
  ("so $x = \\boxed{\\frac{2}{4}}$", "0.5", 2.0), ("\\boxed{x+1}", "1+x", 2.0), ("\\boxed{(1, 2)}", "(2, 1)", 0.0),
  ("x^2-4=0", "x^2+7x=0", 0.0), ("so $x^2-4=0$", "x^2+7x=0", 0.0), ("x=4", "x^2+7x=0", 0.0), ("5", "x=5", 2.0),
  ("\\boxed{1<x<3}", "(1,3)", 0.0), ("\\boxed{(1,3)}", "1<x<3", 2.0),
  ("\\boxed{\\text{Tuesday}}", "\\text{Tuesday}", 2.0), ("\\boxed{\\sqrt{8}}", "2\\sqrt{2}", 2.0), ("", "1", 0.0),
])
def test_math_verify_grades_math(completion, answer, expected):
  pytest.importorskip("math_verify")
  assert correctness("math", completion, answer) == expected


@pytest.mark.parametrize("name", TASKS)
@given(text=st.text() | st.lists(st.sampled_from([
  "<answer>", "</answer>", "<reasoning>", "\n", "\\boxed", "{", "}", "\\frac", "\\sqrt", "12", "1,200", "-", "/", "^",
  ".", " ", "$", "####", "The answer is ", "\ud800", "\0", "\\text{ ", "=", "x",
])).map("".join))
def test_any_text_is_scored(name, text):
  task = get_task(name)
  rewards = task.score(text, {"answer": "12"})
  assert all(isinstance(value, float) for value in rewards.values())
  assert task.accuracy(text, {"answer": "12"}) in (0.0, 1.0)


@pytest.mark.parametrize("name", ["gsm8k", "gsm8k_xml", "math_xml"])
@pytest.mark.parametrize("text", [
  "\\boxed{" * 10**5, "<reasoning>\n" + "\n</reasoning>\n<answer>\n" * 10**5, "<answer>" * 10**5, "1," * 10**6,
  "\\frac" * 10**5,
], ids=lambda text: text[:9])
def test_long_text_takes_linear_time(name, text):
  task = get_task(name)
  start = time.process_time()
  task.score(text, {"answer": "12"})
  task.accuracy(text, {"answer": "12"})
  assert time.process_time() - start < 10  # quadratic time would be minutes


@pytest.mark.parametrize("completion, reward", [
  ("<reasoning>a</reasoning> \n<answer>1</answer> so", 0.5), ("<reasoning></reasoning>b<answer>1</answer>", 0.0),
  ("<reasoning>a</reasoning><answer>1", 0.0), (" <reasoning>a</reasoning><answer>1</answer>", 0.0),
  ("<reasoning>a</reasoning>b</reasoning><answer></answer>", 0.5),
])
def test_soft_format_wants_both_pairs_of_tags_at_the_start(completion, reward):
  assert get_task("gsm8k_xml").score(completion, {"answer": "12"})["soft_format"] == reward


@pytest.mark.parametrize("name", TASKS)
def test_batch_grades_equal_single_ones(name):
  completions = ["\\boxed{12}", "<answer>12</answer>", "", "13"] * 3
  examples = [{"answer": "12"}, {"answer": "13"}, {"answer": "1"}] * 4
  task = get_task(name)
  grades = task.grade(completions, examples)
  assert [grade.rewards for grade in grades] == [*map(task.score, completions, examples)]
  assert [grade.accuracy for grade in grades] == [*map(task.accuracy, completions, examples)]


@pytest.mark.parametrize("completion, answer", [("It is $\\frac{1}{2}$.", "0.5"), ("\\boxed{x+1}", "1+x")])
def test_what_only_math_verify_finds_equal_is_right_to_the_lenient_accuracy(completion, answer):
  pytest.importorskip("math_verify")
  assert get_task("math").grade([completion], [{"answer": answer}]) == [Grade({"correctness": 2.0}, 0.0, 1.0)]


def test_math_verify_is_shown_the_last_box_and_accuracy_compares_text(monkeypatch):
  pytest.importorskip("math_verify")
  asked = []

  def equal_batch(completions, answers):
    asked.extend(completions)
    return [completion == "a" for completion in completions]

  monkeypatch.setattr(math_grader, "equal_batch", equal_batch)
  grades = get_task("math").grade(["a", "b", "the \\boxed form: \\fbox{1} \\boxed{1} 2"], [{"answer": "1"}] * 3)
  assert grades == [Grade({"correctness": 2.0}, 0.0, 1.0), Grade({"correctness": 0.0}, 0.0, 0.0),
                    Grade({"correctness": 2.0}, 1.0, 1.0)]
  assert asked == ["a", "b", "\\boxed{1}"]


# The benchmark files: everything loads, and every reference answer is right


def test_all_gsm8k_answers_are_right_however_they_are_written(benchmarks):
  task = get_task("gsm8k", test_source=str(benchmarks / "gsm8k" / "test.jsonl"))
  tagged = get_task("gsm8k_xml")
  examples = task.examples("test")
  assert len(examples) == 1319
  for example in examples:
    for number in {example["answer"], f"{int(example['answer']):,}"}:
      tag = f"<answer>\n{number}\n</answer>"
      for text in (f"\\boxed{{{number}}}", f"The answer is {number}.", f"#### {number}", tag):
        [grade] = task.grade([text], [example])
        assert (grade.rewards, grade.accuracy_lenient) == ({"correctness": 1.0}, 1.0)
        assert grade.accuracy == ("####" not in text and "The answer" not in text)
      assert tagged.score(tag, example)["correctness"] == 2.0


def test_all_gsm8k_training_problems_load(benchmarks):
  assert len(get_task("gsm8k", train_source=str(benchmarks / "gsm8k" / "train.jsonl")).examples("train")) == 7473


@pytest.mark.parametrize("every", [10, slow(1)])
def test_all_math500_answers_are_right_under_both_graders(benchmarks, every):
  pytest.importorskip("math_verify")
  examples = get_task("math", test_source=str(benchmarks / "math" / "math500.jsonl")).examples("test")[::every]
  completions = [f"Thus $\\boxed{{{example['answer']}}}$." for example in examples]
  # None that math-verify cannot grade.
  assert get_task("math").grade(completions, examples) == [Grade({"correctness": 2.0}, 1.0, 1.0)] * (500 // every)
  assert sum(map(get_task("math_xml").accuracy, completions, examples)) == 500 // every


def test_solutions_of_the_training_problems_box_their_answers(benchmarks):
  examples = get_task("math_xml", train_source=str(benchmarks / "math" / "train.jsonl")).examples("train")
  assert len(examples) == 3682
  rows = map(json.loads, (benchmarks / "math" / "train.jsonl").read_text().splitlines())
  assert [boxes.unboxed(row["solution"]) for row in rows] == [example["answer"] for example in examples]


# The grader's processes


@pytest.fixture(scope="module")
def own():
  """What this thread holds of the grader: its `worker`, from the first grading on."""
  pytest.importorskip("math_verify")
  own = threading.local()
  with pytest.MonkeyPatch.context() as monkeypatch:
    monkeypatch.setattr(math_grader.workers(), "_own", own)
    yield own
  if hasattr(own, "worker"):
    workers._stop(own.worker)


def is_equal(pair):
  """By this thread's worker."""
  return math_grader.workers()._ask(pair)


RIGHT = ("\\boxed{1/2}", "0.5")


@pytest.mark.parametrize("expression", ["9^{9^{9^9}}", "99999999999!", "(" * 5000 + "1" + ")" * 5000])
def test_costly_expression_is_wrong_within_seconds(own, expression):
  assert is_equal(RIGHT)
  start = time.monotonic()
  assert not is_equal((f"\\boxed{{{expression}}}", "1"))
  assert time.monotonic() - start < math_grader.GRADING_SECONDS + 60  # it would be years
  assert is_equal(RIGHT)


def test_worker_that_is_deaf_to_signals_ends_itself():
  pytest.importorskip("math_verify")
  program = """
import math_verify
def parse(text, **options):
  return 9 ** (9 ** 9) if "deaf" in text else text  # one multiplication after another, none of them interruptible
math_verify.parse, math_verify.verify = parse, lambda *arguments, **options: True
from gdsd_jax.tasks import math_grader, workers
workers.serve(math_grader._prepare, 0.5, math_grader.MEMORY_BYTES)
"""
  worker = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
  assert worker.stdout.readline() == "ready\n"
  ask = lambda pair: print(json.dumps(pair), file=worker.stdin, flush=True) or worker.stdout.readline()
  assert ask(RIGHT) == "true\n"
  assert ask(("deaf", "1")) == ""
  assert worker.wait(timeout=30) != 0


def test_dead_worker_is_replaced(own):
  assert is_equal(RIGHT)
  first = own.worker
  first.kill()
  first.wait()
  assert is_equal(RIGHT)
  assert own.worker.pid != first.pid


def test_worker_is_reused(own):
  is_equal(RIGHT)
  first = own.worker.pid
  assert all(map(is_equal, [RIGHT] * 5))
  assert own.worker.pid == first


def test_worker_has_limited_memory_and_no_jax(own):
  is_equal(RIGHT)
  process = Path("/proc") / str(own.worker.pid)
  assert "jax" not in (process / "maps").read_text()
  assert re.search(rf"Max address space +{math_grader.MEMORY_BYTES} ", (process / "limits").read_text())


def test_worker_dies_with_its_parent():
  pytest.importorskip("math_verify")
  program = """
from gdsd_jax.tasks import math_grader
math_grader.workers()._ask(("1", "1"))
print(math_grader.workers()._own.worker.pid, flush=True)
input()
"""
  parent = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
  worker = Path("/proc") / parent.stdout.readline().strip()
  assert worker.is_dir()
  parent.send_signal(signal.SIGKILL)
  parent.wait()
  deadline = time.monotonic() + 20
  while worker.is_dir() and "zombie" not in (worker / "status").read_text():
    assert time.monotonic() < deadline
    time.sleep(0.05)


def test_grader_that_cannot_start_is_an_error(monkeypatch):
  monkeypatch.setattr(math_grader.workers(), "_own", threading.local())
  monkeypatch.setattr(math_grader.workers(), "_command", ["/bin/false"])
  with pytest.raises(OSError, match="^a worker does not start: /bin/false$"):
    is_equal(RIGHT)


def test_without_math_verify_the_task_says_how_to_get_it(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
  with pytest.raises(ValueError, match=r"^task.name='math': .* pip install 'gdsd_jax\[math\]'$"):
    get_task("math")
  assert get_task("math_xml").score("\\boxed{1}", {"answer": "1"})["correctness"] == 2.0
