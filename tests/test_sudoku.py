"""Task sudoku: rewards, accuracy, prompts, sources, generated puzzles, and what the tiny recipe needs."""

import csv
import itertools
import json
import os
from pathlib import Path
import time

from conftest import REPOSITORY
from hypothesis import given, strategies as st
import numpy as np
import pytest
import recipes

from gdsd_jax import get_task
from gdsd_jax.tasks import sudoku
from gdsd_jax.tasks.puzzles import digest, official_digests

pytestmark = pytest.mark.usefixtures("quick_runs")

TASK = get_task("sudoku")
PUZZLE, SOLUTION = "3102200002100320", "3142243142131324"
EXAMPLE = {"puzzle": PUZZLE, "solution": SOLUTION}


@pytest.fixture(scope="module")
def test_file() -> Path:
  """The public test puzzles; tests that need them skip where they are missing."""
  folder = Path(os.environ.get("GDSD_BENCHMARKS", REPOSITORY.parent / "shared" / "data"))
  path = folder / "sudoku" / "4x4_test_sudoku.csv"
  if not path.is_file():
    pytest.skip(f"the public test puzzles are not at {path} (set GDSD_BENCHMARKS)")
  return path


def with_wrong(*cells):
  return "".join(str(int(digit) % 4 + 1) if cell in cells else digit for cell, digit in enumerate(SOLUTION))


def reward(answer, example=EXAMPLE):
  return sum(TASK.score(f"<answer>{answer}</answer>", example).values())


def solutions(puzzle):
  """All solutions, by a search of its own: cell after cell, with the digits that no row, column or box has."""
  cell = puzzle.find("0")
  if cell < 0:
    return [puzzle]
  row, column = divmod(cell, 4)
  peers = [
    other for other in range(16)
    if other // 4 == row or other % 4 == column or (other // 8 == row // 2 and other % 4 // 2 == column // 2)
  ]
  allowed = set("1234") - {puzzle[other] for other in peers}
  return [grid for digit in sorted(allowed) for grid in solutions(puzzle[:cell] + digit + puzzle[cell + 1:])]


# Rewards


@pytest.mark.parametrize("answer, share", [
  (SOLUTION, 1.0),
  (f"\n[{SOLUTION}]\n", 1.0),
  (" ".join(SOLUTION), 1.0),
  (SOLUTION + "1234", 1.0),
  (with_wrong(2), 7 / 8),
  (with_wrong(0), 1.0),  # a given cell does not count
  (with_wrong(*range(16)), 0.0),
  (SOLUTION[:8], 4 / 8),
  (PUZZLE, 0.0),
  ("", 0.0),
  ("abc", 0.0),
])
def test_reward_is_the_share_of_empty_cells_filled_right(answer, share):
  assert reward(answer) == share


@pytest.mark.parametrize("completion, share", [
  (SOLUTION, 0.0), (f"<answer>{SOLUTION}", 0.0), ("", 0.0),
  (f"<answer>1</answer><answer>{SOLUTION}</answer>", 1.0), (f"<answer>{SOLUTION}</answer><answer>1</answer>", 0.0),
])
def test_reward_reads_the_last_closed_answer(completion, share):
  assert TASK.score(completion, EXAMPLE) == {"cells": share}


def test_a_row_is_as_good_as_an_example():
  row = {"Puzzle": PUZZLE, "Solution": SOLUTION}
  assert reward(SOLUTION, row) == TASK.accuracy(f"<answer>{SOLUTION}</answer>", row) == 1.0
  assert TASK.messages(row) == TASK.messages(EXAMPLE)


def test_a_full_puzzle_earns_nothing():
  assert reward(SOLUTION, {"puzzle": SOLUTION, "solution": SOLUTION}) == 0.0


@pytest.mark.parametrize("completion, accuracy", [
  (f"<answer>{SOLUTION}</answer>", 1.0),
  (f"<answer>\n{with_wrong(2, 4)}\n</answer>", 1.0 - 1 / 8),
  (f"<answer>{SOLUTION}", 1.0),
  (f"<answer></answer> {SOLUTION}", 1.0),
  (f"<answer>see ```\n{SOLUTION}\n``` above</answer>", 1.0),
  (f"the grid is {SOLUTION} </answer>", 1.0),
  (f"the grid is {SOLUTION}.", 1.0),
  (f"<answer>[{SOLUTION}]</answer>", 0.0),  # the bracket counts as a cell
  (f"<answer>{SOLUTION}</answer><answer>1</answer>", 1.0),
  ("", 0.0),
])
def test_accuracy_reads_the_grid_as_the_published_evaluation_does(completion, accuracy):
  assert TASK.accuracy(completion, EXAMPLE) == accuracy


@given(st.lists(st.one_of(st.text(), st.sampled_from(
  ["<answer>", "</answer>", SOLUTION, "3142", "```", " ", "\n", "٣", "²"]
))).map("".join))
def test_rewards_of_any_text_lie_between_0_and_1(completion):
  assert 0 <= TASK.score(completion, EXAMPLE)["cells"] <= 1 and 0 <= TASK.accuracy(completion, EXAMPLE) <= 1


@pytest.mark.parametrize("text", [
  "<answer>" * 10**5, "</answer>" * 10**5, "1" * 10**6, " " * 10**6, "```" * 10**5, f"{SOLUTION} " * 10**5,
  "<answer>```" * 10**5,
], ids=lambda text: text[:9])
def test_hostile_answers_cost_nothing_and_never_raise(text):
  start = time.process_time()
  for completion in (text, f"<answer>{text}</answer>"):
    TASK.score(completion, EXAMPLE)
    TASK.accuracy(completion, EXAMPLE)
  assert time.process_time() - start < 5


# Prompts


def test_official_prompt_ends_in_the_puzzle():
  (message,) = TASK.messages(EXAMPLE)
  assert message["role"] == "user"
  assert message["content"].startswith("\nPlease solve the following 4x4 Sudoku puzzle. The puzzle is provided as a")
  assert message["content"].endswith(f"</answer>\n\n\nNow, solve the following Sudoku puzzle: {PUZZLE}\n")


def test_small_prompt_is_the_puzzle_alone():
  assert get_task("sudoku", variant="small").messages(EXAMPLE)[0]["content"] == PUZZLE


def test_unknown_variant_is_named():
  with pytest.raises(ValueError, match=r"^task.variant='9x9': unknown, known are official, small$"):
    get_task("sudoku", variant="9x9")


# Sources


def task_on(tmp_path, puzzle, solution):
  file = tmp_path / "rows.jsonl"
  file.write_text(json.dumps({"Puzzle": puzzle, "Solution": solution}))
  return get_task("sudoku", train_source=str(file))


@pytest.mark.parametrize("puzzle, solution, message", [
  (PUZZLE[1:], SOLUTION, "column 'Puzzle' must be 16 digits of 0 to 4, some of them 0, it is '1022"),
  (SOLUTION, SOLUTION, "column 'Puzzle' must be 16 digits"),
  (3102200002100320, SOLUTION, "column 'Puzzle' must be text"),
  (PUZZLE, PUZZLE, "column 'Solution' must be the puzzle"),
  (PUZZLE, with_wrong(0), "column 'Solution' must be the puzzle"),
  (PUZZLE, with_wrong(2), "column 'Solution' must be the puzzle"),
])
def test_bad_rows_are_named(tmp_path, puzzle, solution, message):
  with pytest.raises(ValueError, match=rf"^task.train_source: \S+, line 1: {message}"):
    task_on(tmp_path, puzzle, solution).examples("train")


def test_public_test_file_is_read(test_file):
  examples = get_task("sudoku", test_source=str(test_file)).examples("test")
  assert len(examples) == 500 and examples[0] == EXAMPLE


# Generated puzzles


def puzzles(split):
  return {example["puzzle"] for example in TASK.examples(split)}


def test_there_are_288_grids():
  assert sorted(sudoku.grids()) == solutions("0" * 16)


def test_generated_puzzles_have_their_solution_alone():
  for example in TASK.examples("test"):
    assert solutions(example["puzzle"]) == [example["solution"]]


@pytest.mark.parametrize("puzzle", [PUZZLE, "0" * 16, "1" + "0" * 15, "12" + "0" * 14, "1231" + "0" * 12, SOLUTION])
def test_number_of_solutions(puzzle):
  assert sudoku.num_solutions(puzzle) == len(solutions(puzzle))


def test_generated_puzzles_have_as_many_givens_as_the_public_test(test_file):
  with open(test_file) as file:
    public = {16 - row["Puzzle"].count("0") for row in csv.DictReader(file)}
  assert {16 - puzzle.count("0") for puzzle in puzzles("train") | puzzles("test")} == public


def test_generated_splits_share_no_puzzle():
  for one, other in itertools.combinations(sudoku.SPLIT_SIZES, 2):
    assert not puzzles(one) & puzzles(other)


def test_generated_puzzles_are_none_of_the_public_test(test_file):
  public = {example["puzzle"] for example in get_task("sudoku", test_source=str(test_file)).examples("test")}
  assert not public & (puzzles("train") | puzzles("validation") | puzzles("test"))


def test_every_public_test_puzzle_is_known_by_digest(test_file):
  examples = get_task("sudoku", test_source=str(test_file)).examples("test")
  assert official_digests().issuperset(digest(sudoku.key(**example)) for example in examples)


@pytest.mark.parametrize("split", sudoku.SPLIT_SIZES)
def test_no_two_generated_puzzles_are_equal(split):
  assert len(puzzles(split)) == len(TASK.examples(split)) == sudoku.SPLIT_SIZES[split]


def test_solutions_earn_the_full_reward():
  for example in TASK.examples("test"):
    assert TASK.score(TASK.solution(example), example) == {"cells": 1.0}


def test_careless_solutions_keep_the_givens():
  rng = np.random.default_rng(0)
  for example in itertools.islice(TASK.examples("train"), 50):
    grid = TASK.careless_solution(example, 0.5, rng).removeprefix("<answer>").removesuffix("</answer>")
    assert all(given in ("0", digit) for given, digit in zip(example["puzzle"], grid, strict=True))


def test_careless_solutions_have_the_asked_share_of_wrong_cells():
  rng = np.random.default_rng(0)
  shares = [TASK.score(TASK.careless_solution(e, 0.25, rng), e)["cells"] for e in TASK.examples("train")[:500]]
  assert np.mean(shares) == pytest.approx(0.75, abs=0.03)


# The tiny recipe


@pytest.fixture(scope="module")
def recipe():
  return recipes.load("gdsd_sudoku")


def test_embedded_model_fits_the_recipe(recipe):
  recipes.check_embedded_model(recipe)


@pytest.mark.slow
def test_recipe_runs(recipe, tmp_path):
  recipes.check_runs(recipe, tmp_path)
