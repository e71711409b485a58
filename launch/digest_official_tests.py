"""Writes the digests of the official test problems, by which generated problems stay apart from them.

  python launch/digest_official_tests.py 4x4_test_sudoku.csv countdown_cd3_test.jsonl

The arguments are the two files that GDSD evaluates on; the digests go to gdsd_jax/tasks/assets.
"""

import sys

from gdsd_jax.tasks import countdown, puzzles, sudoku


def main(sudoku_file: str, countdown_file: str) -> None:
  keys = [sudoku.key(**example) for example in sudoku.SudokuTask(test_source=sudoku_file).examples("test")]
  keys += [countdown.key(**example) for example in countdown.CountdownTask(test_source=countdown_file).examples("test")]
  puzzles.DIGESTS.write_text("\n".join(sorted(map(puzzles.digest, keys))) + "\n")


if __name__ == "__main__":
  if len(sys.argv) != 3:
    sys.exit("error: expected two files, 4x4_test_sudoku.csv and countdown_cd3_test.jsonl")
  main(*sys.argv[1:])
