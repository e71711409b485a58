"""Generates 4x4 Sudoku puzzles with one solution."""

import functools

from gdsd_jax.tasks import puzzles

CELLS = 16
SPLIT_SIZES = {"train": 10_000, "test": 500}
GIVENS = 8  # as in every puzzle of the public test file


def key(puzzle: str, solution: str = "") -> str:
  """What makes two problems the same: the puzzle."""
  return puzzle


@functools.cache
def problems(split: str) -> tuple[dict[str, str], ...]:
  """Puzzles of split "train" or "test", see `puzzles.generate`, each with its only solution.

  Returns:
    dicts of `puzzle` and `solution`: 16 digits, row by row, 0 in empty cells.
  """
  return puzzles.generate("sudoku", split, SPLIT_SIZES[split], _problem, key)


def _problem(draw: bytes) -> dict[str, str] | None:
  grid = grids()[int.from_bytes(draw[:8], "big") % len(grids())]
  filled = set(sorted(range(CELLS), key=lambda cell: (draw[8 + cell], cell))[:GIVENS])
  puzzle = "".join(digit if cell in filled else "0" for cell, digit in enumerate(grid))
  return {"puzzle": puzzle, "solution": grid} if num_solutions(puzzle) == 1 else None


def num_solutions(puzzle: str) -> int:
  """How many of all grids have the givens of the puzzle."""
  fitting = (1 << len(grids())) - 1
  for cell, digit in enumerate(puzzle):
    if digit != "0":
      fitting &= _grids_with()[cell, digit]
  return fitting.bit_count()


@functools.cache
def grids() -> tuple[str, ...]:
  """All 288 grids with the digits 1 to 4 once in each row, column and box."""
  partial = [""]
  for cell in range(CELLS):
    seen = [other for other in range(cell) if _conflict(cell, other)]
    partial = [grid + digit for grid in partial for digit in "1234" if all(grid[other] != digit for other in seen)]
  return tuple(partial)


def _conflict(cell: int, other: int) -> bool:
  (row, column), (other_row, other_column) = divmod(cell, 4), divmod(other, 4)
  same_box = row // 2 == other_row // 2 and column // 2 == other_column // 2
  return row == other_row or column == other_column or same_box


@functools.cache
def _grids_with() -> dict[tuple[int, str], int]:
  """(cell, digit) -> the grids that have it there, as bits: the grids with all givens are a bitwise AND."""
  return {
    (cell, digit): sum(1 << number for number, grid in enumerate(grids()) if grid[cell] == digit)
    for cell in range(CELLS) for digit in "1234"
  }
