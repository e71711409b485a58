"""4x4 Sudoku, with the prompts of GDSD and of ESPO, by name, and the rewards of both."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import itertools
import operator
import re
from typing import Any, ClassVar

from gdsd_jax.tasks import answers, base, official_prompts, puzzles
from gdsd_jax.tasks.sources import text_of

CELLS = 16
SPLIT_SIZES = {"train": 10_000, "validation": 500, "test": 500}  # generated puzzles
GIVENS = 8  # as in every puzzle of the public test file


@dataclasses.dataclass(frozen=True)
class SudokuTask(puzzles.PuzzleTask):
  """4x4 puzzles, asked for as 16 digits in `<answer>` tags; the small variant asks without instructions.

  An example has `puzzle` and `solution` (str), 16 digits row by row, 0 in empty cells. Rows have `Puzzle` and
  `Solution`; for prompts and rewards they will do, too.
  """

  required: ClassVar[tuple[str, ...]] = ("Puzzle", "Solution")
  name: ClassVar[str] = "sudoku"

  def generated(self, split: str) -> Sequence[Mapping[str, Any]]:
    return puzzles.generate(self.name, split, SPLIT_SIZES[split], _problem, key)

  def read_row(self, row: Mapping[str, Any]) -> dict[str, str]:
    puzzle, solution = text_of(row, "Puzzle"), text_of(row, "Solution")
    if not re.fullmatch(r"[0-4]{16}", puzzle) or "0" not in puzzle:
      raise ValueError(f"column 'Puzzle' must be 16 digits of 0 to 4, some of them 0, it is {puzzle!r:.80}")
    kept = all(given in ("0", digit) for given, digit in zip(puzzle, solution))
    if not kept or solution not in grids():
      raise ValueError(f"column 'Solution' must be the puzzle {puzzle} filled by the rules, it is {solution!r:.80}")
    return {"puzzle": puzzle, "solution": solution}

  def messages(self, example: Mapping[str, Any]) -> list[dict[str, str]]:
    puzzle, _ = _puzzle_of(example)
    content = puzzle if self.asked == puzzles.BARE else official_prompts.SUDOKU[self.asked].format(puzzle=puzzle)
    return [{"role": "user", "content": content}]

  def evaluation_messages(self, example: Mapping[str, Any]) -> list[dict[str, str]]:
    if self.asked == puzzles.BARE:
      return self.messages(example)
    puzzle, _ = _puzzle_of(example)
    return [{"role": "user", "content": official_prompts.SUDOKU_EVALUATION.format(puzzle=puzzle)}]

  def reference_answer(self, example: Mapping[str, Any]) -> str:
    return _puzzle_of(example)[1]

  def grade_one(self, completion: str, example: Mapping[str, Any]) -> base.Grade:
    """The share of the empty cells that are filled right.

    The reward counts the digits of the last closed answer. Accuracy counts the characters of the grid in the places of
    the official parser, where a bracket or comma takes a cell, and where an answer that the model never ended counts
    only as 16 digits in a row, be they the puzzle's. The lenient accuracy is the better of the reward and what the
    accuracy would be had the model ended its answer.
    """
    ended = getattr(completion, "ended", True)
    answer = answers.last_answer(completion) or ""
    digits = "".join(itertools.islice(filter(str.isdigit, answer), CELLS))
    cells, official = (_share_right(grid, example) for grid in (digits, _grid_in(completion, ended)))
    lenient = max(cells, _share_right(_grid_in(completion, True), example))
    return base.Grade({"cells": cells}, official, lenient)

  def solution(self, example: Mapping[str, Any]) -> str:
    return f"<answer>{example['solution']}</answer>"

  def careless_solution(self, example: Mapping[str, Any], slips: float, rng) -> str:
    """A solution as a careless solver gives it: each empty cell is wrong with probability `slips`."""
    grid = list(example["solution"])
    for cell, digit in enumerate(grid):
      if example["puzzle"][cell] == "0" and rng.random() < slips:
        grid[cell] = str(rng.choice([other for other in "1234" if other != digit]))
    return f"<answer>{''.join(grid)}</answer>"


def _share_right(grid: str, example: Mapping[str, Any]) -> float:
  puzzle, solution = _puzzle_of(example)
  empty = [cell for cell, given in enumerate(puzzle) if given == "0"]
  right = sum(grid[cell:cell + 1] == solution[cell] for cell in empty)
  return right / len(empty) if empty else 0.0


def _puzzle_of(example: Mapping[str, Any]) -> tuple[str, str]:
  return tuple(example[name] for name in (("puzzle", "solution") if "puzzle" in example else ("Puzzle", "Solution")))


def _grid_in(text: str, ended: bool) -> str:
  """The grid of a completion, without blanks; the rules are those of the official evaluation, in its order.

  `ended`: whether the model ended it. The official code sees the end of text, which closes an open answer.
  """
  _, _, after = text.partition("<answer>")
  fenced = after.split("```")[1:-1]
  answer, closed, _ = after.partition("</answer>")
  _, _, rest = text.partition("</answer>")
  candidates = [block for block in fenced if re.fullmatch(r"[\d\s]+", block)][:1]
  candidates += [answer if closed or ended else "", rest]
  alone = re.search(r"(\d{16})\s*</answer>", text), re.search(r"\b(\d{16})\b", text)
  candidates += [match[1] for match in alone if match]
  return next(("".join(candidate.split()) for candidate in candidates if candidate.strip()), "")


# Generated puzzles


def key(puzzle: str, solution: str = "") -> str:
  """What makes two problems the same: the puzzle."""
  return puzzle


def _problem(draw: bytes) -> dict[str, str] | None:
  """A puzzle with one solution alone, and that solution."""
  grid = grids()[int.from_bytes(draw[:8], "big") % len(grids())]
  filled = set(sorted(range(CELLS), key=lambda cell: (draw[8 + cell], cell))[:GIVENS])
  puzzle = "".join(digit if cell in filled else "0" for cell, digit in enumerate(grid))
  return {"puzzle": puzzle, "solution": grid} if num_solutions(puzzle) == 1 else None


def num_solutions(puzzle: str) -> int:
  """How many of all grids have the givens of the puzzle."""
  fitting = [_grids_with()[cell, digit] for cell, digit in enumerate(puzzle) if digit != "0"]
  return functools.reduce(operator.and_, fitting, (1 << len(grids())) - 1).bit_count()


@functools.cache
def grids() -> tuple[str, ...]:
  """All 288 grids with the digits 1 to 4 once in each row, column and box."""
  places = [{("row", cell // 4), ("column", cell % 4), ("box", cell // 8, cell % 4 // 2)} for cell in range(CELLS)]
  partial = [""]
  for cell in range(CELLS):
    seen = [other for other in range(cell) if places[cell] & places[other]]
    partial = [grid + digit for grid in partial for digit in "1234" if all(grid[other] != digit for other in seen)]
  return tuple(partial)


@functools.cache
def _grids_with() -> dict[tuple[int, str], int]:
  """(cell, digit) -> the grids that have it there, as bits: the grids with all givens are a bitwise AND."""
  return {(cell, digit): sum(1 << number for number, grid in enumerate(grids()) if grid[cell] == digit)
          for cell in range(CELLS) for digit in "1234"}
