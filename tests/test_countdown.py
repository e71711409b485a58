"""Task countdown: expressions, rewards, prompts, sources, generated problems, and what the tiny recipe needs."""

from fractions import Fraction
import itertools
import json
import os
from pathlib import Path
import re
import time

from conftest import REPOSITORY, slow
from hypothesis import given, strategies as st
import numpy as np
import pytest
import recipes

from gdsd_jax import get_task
from gdsd_jax.tasks import base, countdown, puzzles

pytestmark = pytest.mark.usefixtures("quick_runs")

TASK = get_task("countdown")
EXAMPLE = {"numbers": [30, 100, 93], "target": 23}


@pytest.fixture(scope="module")
def test_file() -> Path:
  """The public test problems; tests that need them skip where they are missing."""
  folder = Path(os.environ.get("GDSD_BENCHMARKS", REPOSITORY.parent / "shared" / "data"))
  path = folder / "countdown" / "countdown_cd3_test.jsonl"
  if not path.is_file():
    pytest.skip(f"the public test problems are not at {path} (set GDSD_BENCHMARKS)")
  return path


def task_on(tmp_path, *rows, **options):
  file = tmp_path / "rows.jsonl"
  file.write_text("\n".join(map(json.dumps, rows)))
  return get_task("countdown", train_source=str(file), **options)


def reward(answer, example=EXAMPLE):
  return sum(TASK.score(f"<answer>{answer}</answer>", example).values())


# Expressions

operands = st.integers(0, 20).map(str)
texts = st.recursive(
  operands,
  lambda parts: st.one_of(
    st.tuples(parts, st.sampled_from("+-*/"), parts).map("".join),
    st.tuples(parts, st.sampled_from(["+", " - ", "*", "\t/ "]), parts).map(lambda p: f"({''.join(p)})"),
    parts.map(lambda part: f"-{part}"),
  ),
  max_leaves=8,
)


@given(texts)
def test_expressions_have_the_value_that_python_gives_them(text):
  names = {f"n{number}": Fraction(number) for number in range(21)}
  pythonic = re.sub(r"\d+", r"n\g<0>", text)
  try:
    expected = eval(pythonic, {"__builtins__": {}}, names)  # of our own making
  except ZeroDivisionError:
    expected = None
  assert countdown.evaluate(text) == expected


@pytest.mark.parametrize("text, value", [
  ("30-(100-93)", 23), (" 2 * (3+4) ", 14), ("8/4*2", 4), ("8/(4*2)", 1), ("1/3", Fraction(1, 3)), ("-5+7", 2),
  ("2--3", 5), ("2*-3", -6), ("+4", 4), ("((7))", 7), ("(1+\n2)", 3), ("0", 0), ("00", 0), ("5.", 5),
  ("5.*2.", 10), ("05.", 5), ("5\f+2", 7),
  ("1/49*49", 1),  # not in floating point
])
def test_value_of_expressions(text, value):
  assert countdown.evaluate(text) == value


@pytest.mark.parametrize("text", [
  "", " ", "()", "5 5", "5(2)", "(5)(2)", "5+", "*5", "(5", "5)", ")5(", "5+*2", "05", "1.5", ".5", "5..", "5.5.",
  "2**3", "7//2", "1/0", "1/(2-2)", "1+\n2", "5=5", "5,2", "a", "５", "²", "5+2j", "1e3", "0x1", "1_0",
  "__import__('os')", "5+2#comment", "\\frac{1}{2}",
])
def test_other_text_has_no_value(text):
  assert countdown.evaluate(text) is None


@pytest.mark.parametrize("text", [
  "9**9**9", "(" * 10**6 + "5" + ")" * 10**6, "9" * 10**6, "-" * 10**6 + "5", "5" + "+5" * 10**6, "(" * 400,
  " " * 10**6, "<answer>" * 10**5, "=" * 10**6, "1=" * 10**6, "\\boxed{" * 10**5, "9 " * 10**6, "</answer>" * 10**5,
], ids=lambda text: text[:9])
def test_hostile_answers_cost_nothing_and_never_raise(text):
  start = time.process_time()
  for completion in (text, f"<answer>{text}</answer>"):
    TASK.score(completion, EXAMPLE)
    assert TASK.accuracy(completion, EXAMPLE) == 0
  assert time.process_time() - start < 5


@given(st.lists(st.one_of(st.text(), st.sampled_from(
  ["<answer>", "</answer>", "30", "100", "93", "-", "(", ")", "/", "=", "23", "\\boxed{", "}", "\n", "**", "."]
))).map("".join))
def test_score_of_any_text_is_one_of_the_known_rewards(completion):
  assert TASK.score(completion, EXAMPLE)["equation"] in (0.0, countdown.ANSWER_REWARD, countdown.CORRECT_REWARD)
  assert TASK.accuracy(completion, EXAMPLE) in (0.0, 1.0)


@given(st.lists(st.integers(1, 12), min_size=3, max_size=3), st.integers(1, 60))
def test_solve_finds_an_expression_of_the_numbers(numbers, target):
  solution = countdown.solve(numbers, target)
  if solution is not None:
    assert countdown.uses_each_once(solution, numbers) and countdown.evaluate(solution) == target


@pytest.mark.parametrize("numbers, target", [([30, 100, 93], 23), ([2, 3, 4], 24), ([1, 5, 7], 35), ([6, 3, 4], 8)])
def test_solve_finds_what_can_be_reached(numbers, target):
  assert countdown.solve(numbers, target) is not None


def test_solve_returns_none_for_what_cannot_be_reached():
  assert countdown.solve([1, 1, 1], 100) is None


# Rewards


@pytest.mark.parametrize("answer, value", [
  ("30-(100-93)", 1.0), ("\n30 - 100 + 93\n", 1.0), ("30-100-93", 0.1), ("30-(100-93)=23", 0.1), ("23", 0.1),
  ("30-7", 0.1), ("30-(100-93)+30-30", 0.1), ("30-(100-093)", 0.1), ("", 0.1), ("none", 0.1),
])
def test_reward_of_an_answer(answer, value):
  assert reward(answer) == value


def test_a_number_given_twice_must_be_used_twice():
  example = {"numbers": [5, 5, 2], "target": 20}
  assert (reward("(5+5)*2", example), reward("5*2*2", example)) == (1.0, 0.1)


@pytest.mark.parametrize("row", [
  {"input": "30,100,93", "output": "23"}, {"nums": [30, 100, 93], "target": 23},
  {"nums": "[30, 100, 93]", "target": "23"}, {"numbers": ["30", "100", "93"], "target": "23"},
  {"numbers": np.array([30, 100, 93]), "target": 23.0},
])
def test_a_row_is_as_good_as_an_example(row):
  assert reward("30-(100-93)", row) == 1.0
  assert TASK.messages(row) == TASK.messages(EXAMPLE)


def test_target_may_be_a_fraction():
  assert reward("1/2", {"numbers": [1, 2], "target": 0.5}) == 1.0


def test_python_beyond_the_four_operations_earns_the_tags_alone():
  assert reward("2**3*1", {"numbers": [2, 3, 1], "target": 8}) == countdown.ANSWER_REWARD
  assert reward("1.5*2", {"numbers": [1, 5, 2], "target": 3}) == countdown.ANSWER_REWARD


@pytest.mark.parametrize("completion, accuracy", [
  ("<answer>30-(100-93)</answer>", 1.0),
  ("<answer>30-100+93 = 23</answer>", 1.0),
  ("<answer>= 30-100+93 = 23</answer>", 1.0),
  ("<answer>30-100+93 =?</answer>", 0.0),
  ("so \\boxed{30-(100-93)}", 1.0),
  ("\\boxed{30+93\\times 100} <answer>30-100+93</answer>", 0.0),
  ("30-100+93", 1.0),
  ("I think 30-100+93 = 23", 1.0),
  ("I think 30-100+93", 0.0),
  ("<answer>30-100+93</answer> or <answer>1</answer>", 1.0),
  ("<answer>30-100+93", 0.0),
  ("", 0.0),
])
def test_accuracy_reads_the_expression_as_the_published_evaluation_does(completion, accuracy):
  assert TASK.accuracy(completion, EXAMPLE) == accuracy


def test_latex_operators_count_for_accuracy():
  assert TASK.accuracy("\\boxed{8 \\div 4 \\cdot 2}", {"numbers": [8, 4, 2], "target": 4}) == 1.0


# Prompts


def test_official_prompt_ends_in_the_problem_and_its_example():
  (message,) = TASK.messages(EXAMPLE)
  assert message["role"] == "user"
  assert message["content"].startswith("\nRespond in the following format:\n<reasoning>\n...\n</reasoning>\n<answer>\n")
  assert "Using only the numbers [30, 100, 93], create an arithmetic expression that" in message["content"]
  assert message["content"].endswith("a valid answer is: <answer>\n2*4-3\n</answer>")


def test_small_prompt_is_the_problem_alone():
  assert get_task("countdown", variant="small").messages(EXAMPLE)[0]["content"] == "30 100 93 = 23"


def test_unknown_variant_is_named():
  with pytest.raises(ValueError, match=r"^task.variant='tiny': unknown, known are official, small$"):
    get_task("countdown", variant="tiny")


# Sources


def test_rows_of_both_layouts_are_read(tmp_path):
  task = task_on(tmp_path, {"input": "30,100,93", "output": "23"}, {"nums": [4, 2, 1], "target": 7})
  assert task.examples("train") == [EXAMPLE, {"numbers": [4, 2, 1], "target": 7}]


def test_problems_of_other_than_three_numbers_are_left_out_and_counted(tmp_path, caplog):
  task = task_on(tmp_path, {"nums": [1, 2, 3, 4], "target": 10}, {"nums": [4, 2, 1], "target": 7})
  with caplog.at_level("INFO"):
    assert [example["target"] for example in task.examples("train")] == [7]
  assert "task.train_source: 1 of 2 problems are left out, which have other than 3 numbers" in caplog.text


@pytest.mark.parametrize("row, message", [
  ({"numbers": [1, 2, 3]},
   "must have columns 'numbers' or 'nums', and 'target', or 'input' and 'output', it has numbers"),
  ({"nums": "abc", "target": 1}, "invalid literal"),
  ({"nums": None, "target": 1}, "numbers must be a list or text such as '30,100,93', the target"),
  ({"nums": [1, 2, 3], "target": [2]}, "numbers must be a list or text such as '30,100,93', the target"),
  ({"nums": [1, 2, -3], "target": 1}, "numbers must be whole and not negative, they are"),
  ({"nums": [1, 2, 3.5], "target": 1}, "numbers must be whole and not negative, they are"),
  ({"nums": [1, 2, 3], "target": float("nan")}, "cannot convert float NaN"),
  ({"nums": [], "target": 1}, "no problem of 3 numbers"),
  ({"input": 7, "output": "1"}, "numbers must be a list or text such as '30,100,93', the target"),
])
def test_bad_rows_are_named(tmp_path, row, message):
  with pytest.raises(ValueError, match=rf"^task.train_source: .*{message}"):
    task_on(tmp_path, row).examples("train")


def test_public_test_file_is_read(test_file):
  examples = get_task("countdown", test_source=str(test_file)).examples("test")
  assert len(examples) == 256 and examples[0] == EXAMPLE


# Generated problems


@pytest.fixture(scope="module", params=["small", slow("official")])
def task(request):
  return get_task("countdown", variant=request.param)


def keys(examples):
  return {countdown.key(**example) for example in examples}


def test_generated_splits_share_no_problem(task):
  for one, other in itertools.combinations(base.SPLITS, 2):
    assert not keys(task.examples(one)) & keys(task.examples(other))


def test_generated_problems_are_none_of_the_public_test(task, test_file):
  public = keys(get_task("countdown", test_source=str(test_file)).examples("test"))
  assert not public & keys([example for split in base.SPLITS for example in task.examples(split)])


def test_every_public_test_problem_is_known_by_digest(test_file):
  examples = get_task("countdown", test_source=str(test_file)).examples("test")
  assert puzzles.official_digests().issuperset(map(puzzles.digest, keys(examples)))


def test_generated_problems_lie_in_the_range_of_the_public_test(task):
  for example in task.examples("train"):
    assert all(1 <= number <= 100 for number in example["numbers"]) and 1 <= example["target"] <= 100


def test_no_two_generated_problems_are_equal(task):
  for split in base.SPLITS:
    assert len({(*example["numbers"], example["target"]) for example in task.examples(split)}) == len(
      task.examples(split))


def test_solutions_earn_the_full_reward(task):
  for example in task.examples("test")[:100]:
    assert task.score(task.solution(example), example) == {"equation": 1.0}


def test_generated_problems_never_change():
  assert TASK.examples("train")[:2] == [
    {"numbers": [45, 24, 19], "target": 40}, {"numbers": [14, 86, 53], "target": 47},
  ]


@pytest.mark.parametrize("slips, share", [(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)])
def test_careless_solutions_are_wrong_as_often_as_asked(slips, share):
  task = get_task("countdown", variant="small")
  rng = np.random.default_rng(0)
  right = [task.accuracy(task.careless_solution(e, slips, rng), e) for e in task.examples("train")[:500]]
  assert np.mean(right) == pytest.approx(share, abs=0.05)


# The tiny recipe


@pytest.fixture(scope="module")
def recipe():
  return recipes.load("gdsd_countdown")


def test_embedded_model_fits_the_recipe(recipe):
  recipes.check_embedded_model(recipe)


@pytest.mark.slow
def test_recipe_runs(recipe, tmp_path):
  recipes.check_runs(recipe, tmp_path)


@pytest.mark.parametrize("text", ["<answer>3×4+5</answer>", "\\boxed{5 + 4·3 = 17}", "<answer>3*4−(−5)</answer>"])
def test_signs_that_people_write_are_right_to_the_lenient_accuracy_alone(text):
  grade = get_task("countdown").grade_one(text, {"numbers": [3, 4, 5], "target": 17})
  assert (grade.rewards["equation"] < 1, grade.accuracy, grade.accuracy_lenient) == (True, 0, 1)
