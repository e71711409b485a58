"""Knows the public test problems of Sudoku and Countdown by digest, so that generated problems are none of them.

The digests are short and in a file of their own, so that problems can be generated, and kept apart from the tests that
results are published on, without those tests at hand. Four bytes take some problem for a test problem that is none,
one in six million, which costs nothing. The file was written by
`python launch/digest_official_tests.py 4x4_test_sudoku.csv countdown_cd3_test.jsonl`, the files that GDSD evaluates
on.
"""

from collections.abc import Iterable
import functools
import hashlib
from pathlib import Path

FILE = Path(__file__).parent / "assets" / "official_test_digests.txt"
_BYTES = 4


def is_official_test(key: str) -> bool:
  """Whether the problem with that key (`sudoku_problems.key`, `countdown_problems.key`) is in a public test file."""
  return _digest(key) in _digests()


@functools.cache
def _digests() -> frozenset[str]:
  return frozenset(FILE.read_text().split())


def _digest(key: str) -> str:
  return hashlib.sha256(key.encode()).digest()[:_BYTES].hex()


def write(keys: Iterable[str]) -> None:
  """Writes the digests of the problems with these keys."""
  FILE.write_text("\n".join(sorted(map(_digest, keys))) + "\n")
