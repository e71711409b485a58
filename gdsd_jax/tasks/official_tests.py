"""Knows the public test problems of Sudoku and Countdown by digest, so that generated problems are none of them.

The digests are short and in a file of their own, so that problems can be generated, and kept apart from the tests that
results are published on, without those tests at hand. Four bytes take some problem for a test problem that is none,
one in six million, which costs nothing. The file was written by
`python -m gdsd_jax.tasks.official_tests 4x4_test_sudoku.csv countdown_cd3_test.jsonl`, the files that GDSD evaluates
on.
"""

import functools
import hashlib
from pathlib import Path
import sys

_FILE = Path(__file__).parent / "assets" / "official_test_digests.txt"
_BYTES = 4


def is_official_test(key: str) -> bool:
  """Whether the problem with that key (`sudoku_problems.key`, `countdown_problems.key`) is in a public test file."""
  return _digest(key) in _digests()


@functools.cache
def _digests() -> frozenset[str]:
  return frozenset(_FILE.read_text().split())


def _digest(key: str) -> str:
  return hashlib.sha256(key.encode()).digest()[:_BYTES].hex()


def main(sudoku_file: str, countdown_file: str) -> None:
  """Writes the digests of the problems in GDSD's two test files."""
  from gdsd_jax.tasks import countdown, countdown_problems, sudoku, sudoku_problems

  keys = [sudoku_problems.key(**example) for example in sudoku.SudokuTask(test_source=sudoku_file).examples("test")]
  keys += [
    countdown_problems.key(**example)
    for example in countdown.CountdownTask(test_source=countdown_file).examples("test")
  ]
  _FILE.write_text("\n".join(sorted(map(_digest, keys))) + "\n")


if __name__ == "__main__":
  main(*sys.argv[1:])
