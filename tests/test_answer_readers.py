"""Numbers and boxes are read in one way, and rewards never contradict accuracy where both judge the same thing."""

import math
import time

from hypothesis import given, settings, strategies as st
import pytest

from gdsd_jax import get_task
from gdsd_jax.tasks import answers, boxes, numbers
from gdsd_jax.tasks.gsm8k import final_number


@pytest.mark.parametrize("text, number", [
  ("12", 12), ("12.00", 12), (" +12 ", 12), ("12.", 12), ("-5", -5), ("−5", -5), (".5", 0.5), ("$.50", 0.5),
  ("1e3", 1e3),
  ("$1,200.00", 1200), ("\\$1,200", 1200), ("1,234,567", 1234567), ("1{,}200", 1200), ("1\\,200", 1200), ("-$5", -5),
  ("10,\\!000", 10000), ("１２", 12), ("1_0", 10), ("12 apples", 12), ("**12**", 12), ("...12", 12), ("12²", 12),
  ("\\frac{2}{3}", 2 / 3), ("-\\dfrac{4}{2}", -2), ("\\frac{-1}{2}", -0.5), ("\\tfrac12", 0.5), ("2\\frac{1}{2}", 2.5),
  ("3/4", 0.75), ("2 1/2", 2.5), ("7 / 2 hours", 3.5), ("\\text{12 cm}", 12), ("1,5", 1), ("1,2345", 1), ("5%", 5),
  ("1 200", 1200), ("$ 1 000 000.00", 1e6), ("1~200", 1200), ("1\\;200", 1200), ("3 100 or so", 3), ("10^3", 1000),
  ("10^{-1}", 0.1), ("-2^{10}", -1024), ("90^\\circ", 90), ("\\frac{1,200}{2}", 600), ("12 dollars, 1,200 cents", 12),
  ("1.200,00", 1200), ("1.234.567,8 €", 1234567.8), ("1.2\\times10^3", 1200), ("-3 × 10^{-2}", -0.03), ("2*3^2", 18),
  ("3 \\times 4", 3), ("12 + 1", 12), ("twelve", None), ("", None), ("²", None), ("-", None),
])
def test_first_number_of_a_text(text, number):
  assert numbers.read_number(text) == number


@pytest.mark.parametrize("text", ["nan", "inf", "1/0", "\\frac{1}{0}", "9^{999}"])
def test_numbers_that_equal_no_answer(text):
  number = numbers.read_number(text)
  assert not math.isfinite(number) and numbers.whole_number(text) is None


@pytest.mark.parametrize("text, number", [
  ("3 * 4 = 12", 12), ("in 3 years", 3), ("5 of 1,200", 1200), ("from 3 to -12", -12), ("2 or \\frac{1}{2}", 0.5),
])
def test_last_number_of_a_text(text, number):
  assert numbers.read_number(text, last=True) == number


@pytest.mark.parametrize("text, number", [
  ("12", 12), (" $ 1,200.00\n", 1200), ("-3/4", -0.75), ("1,5", None), ("1 200", 1200), ("1 20", None),
  ("12 apples", None), ("", None),
  ("1,2345", None), ("#12", None),
])
def test_whole_number(text, number):
  assert numbers.whole_number(text) == number


@settings(max_examples=30)
@given(st.integers(-10**9, 10**9), st.sampled_from(["{}", "{:,}", "${:,}", "{:,}.00", " {} ", "\\text{{{:,}}}", "{}."]))
def test_integers_are_read_however_they_are_written(integer, form):
  assert numbers.read_number(form.format(integer)) == numbers.read_number(form.format(integer), last=True) == integer


@pytest.mark.parametrize("text, content", [
  ("a \\boxed{1} b \\boxed{\\frac{1}{2}} c", "\\frac{1}{2}"), ("\\boxed 12$ is", "12"), ("\\boxed{1", None),
  ("\\boxed{{}", None), ("\\boxed{}", ""), ("bare", "bare"), ("", ""), ("\\fbox{3}", "3"), ("\\boxed {3}", "3"),
  ("\\fbox{3} or \\boxed{4}", "4"), ("\\boxed{4} or \\fbox{3}", "4"), ("\\boxed{\\boxed{3}}", "3"),
  ("in \\boxed form: \\boxed{12}", "12"), ("\\boxed{12} in \\boxed form.", "12"), ("\\boxed{12}, in \\boxed .", "12"),
  ("the \\boxed notation, \\boxed{12}", "12"), ("a \\boxed a number is \\boxed{12}", "12"), ("\\boxed x+1$", "x+1"),
  ("\\boxed{1} then \\boxed{2", None), ("{ \\boxed{1} ", "1"),
  ("\\boxed{a\nb}", "a\nb"), ("\\boxedin{1}", "\\boxedin{1}"),
])
def test_unboxed(text, content):
  assert boxes.unboxed(text) == content


def test_a_solution_that_speaks_of_boxes_has_its_answer_in_one():
  row = {"problem": "p", "solution": "In \\boxed form: $\\boxed{\\frac{1}{2}}$."}
  assert get_task("math_xml").read_row(row)["answer"] == "\\frac{1}{2}"


@pytest.mark.parametrize("text", [
  "111," * 20_000 + "1111", "111." * 20_000 + "111,", "1 \\times " * 20_000,
  "\\frac" * 20_000, "1 1/" * 20_000, "\\boxed{" * 20_000 + "}" * 20_000,
  "\\boxed{\n" * 20_000 + "}",
], ids=lambda text: text[:9])
def test_readers_take_linear_time(text):
  start = time.process_time()
  numbers.read_number(text), numbers.whole_number(text), get_task("gsm8k").accuracy(text, {"answer": "12"})
  assert time.process_time() - start < 10  # quadratic time would be minutes


# Rewards and accuracy

_VALUES = ("12", "12.00", "$12", "1,200", "$1,200.00", "13", "\\frac{24}{2}", "24/2", "\\frac12", "0.5", "-3", "...",
           "\uff11\uff12", "12 apples", "x=12", "nan", "\\text{12}", "12\\text{ cm}", "3 years", "")
_FORMS = ("{}", "\\boxed{{{}}}", "<answer>{}</answer>", "<answer>\n\\boxed{{{}}}\n</answer>", "\\fbox{{{}}}",
          "#### {}", "The answer is {}.", "\\boxed {}$",
          "\\boxed {{{}}}", "<answer>{}", "{}</answer>", "\\boxed{{{}", "so {} it is")
_said = st.builds(str.format, st.sampled_from(_FORMS), st.sampled_from(_VALUES))
_words = st.sampled_from(["<reasoning>\n", "\n</reasoning>\n", "in \\boxed form ", "in 3 years ", "\n", " ", "{", "}"])
_completions = st.lists(_said | _words | st.text(max_size=5), max_size=6).map("".join)
_golds = st.sampled_from(["12", "1200", "1,200", "13", "0.5", "\\frac{1}{2}", "-3", "2"])


@given(_completions, _golds, st.sampled_from(["gsm8k", "gsm8k_xml"]))
@settings(max_examples=100)
def test_gsm8k_reward_never_contradicts_accuracy(completion, gold, name):
  [grade] = get_task(name).grade([completion], [{"answer": gold}])
  rewarded = grade.rewards["correctness"] > 0
  assert rewarded == grade.accuracy_lenient
  assert grade.accuracy == (rewarded and final_number(completion) is not None)  # the rest the official parser ignores


@given(_completions, _golds)
@settings(max_examples=100)
def test_math_xml_reward_never_contradicts_accuracy(completion, gold):
  [grade] = get_task("math_xml").grade([completion], [{"answer": gold}])
  rewarded = grade.rewards["correctness"] > 0
  assert rewarded == grade.accuracy_lenient >= grade.accuracy
  assert grade.accuracy == rewarded or "box" not in completion


@pytest.mark.slow
def test_math_reward_never_contradicts_accuracy():
  pytest.importorskip("math_verify")
  completions = [form.format(value) for form in _FORMS for value in _VALUES]
  for gold in ("12", "\\frac{1}{2}"):
    grades = get_task("math").grade(completions, [{"answer": gold}] * len(completions))
    for grade in grades:  # accuracy compares text: what it counts is equal, yet not all that is equal counts
      assert (grade.rewards["correctness"] > 0) == grade.accuracy_lenient >= grade.accuracy


@given(st.lists(st.sampled_from(
  ["<answer>", "</answer>", "5*2+10", "(5+5)*2", "5+5*2", "= 20", "\\boxed{", "}", "\\times", " ", "\n", "so ", "."]
), max_size=8).map("".join))
def test_countdown_reward_never_contradicts_accuracy(completion):
  [grade] = get_task("countdown").grade([completion], [{"numbers": [5, 5, 2], "target": 20}])
  solved = grade.rewards["equation"] == 1.0
  assert max(solved, grade.accuracy) == grade.accuracy_lenient
  one_answer = completion.count("<answer>") == completion.count("</answer>") == 1 and "\\boxed" not in completion
  if one_answer and answers.first_answer(completion) and not {"=", "\\"} & set(completion):
    assert grade.accuracy == solved  # else one reads another place, or an equation or LaTeX that the prompt forbids


@given(st.lists(st.sampled_from(
  ["<answer>", "</answer>", "3142243142131324", "3142", "2431 ", "\n", " ", "3102200002100320", "so ", "[", "```"]
), max_size=8).map("".join))
def test_sudoku_reward_never_contradicts_accuracy(completion):
  [grade] = get_task("sudoku").grade([completion], [{"puzzle": "3102200002100320", "solution": "3142243142131324"}])
  assert max(grade.rewards["cells"], grade.accuracy) == grade.accuracy_lenient
  answer = answers.first_answer(completion)
  plain = answer and "".join(answer.split()).isdigit() and "`" not in completion
  if plain and answer == answers.last_answer(completion):
    assert grade.rewards["cells"] == grade.accuracy  # else there are several answers, or other signs in the grid


@given(_completions, st.integers(10, 13))
@settings(max_examples=30)
def test_arithmetic_and_prompts_have_one_verdict(completion, answer):
  arithmetic = get_task("arithmetic").grade_one(completion, {"answer": answer})
  assert (arithmetic.rewards["correctness"] > 0) == arithmetic.accuracy
  for extract in ("boxed", "tag", "number", "text"):
    grade = get_task("prompts", answer_column="answer", extract=extract).grade_one(completion, {"answer": str(answer)})
    assert grade.rewards["correctness"] == grade.accuracy
