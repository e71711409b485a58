"""What Countdown and Sudoku share: problems that are generated, and never those of the public tests."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import functools
import hashlib
import itertools
from pathlib import Path
from typing import Any, ClassVar

from gdsd_jax.tasks import base, sources

GENERATED = "generated"
VARIANTS = ("official", "small")
# Short digests of the public test problems, written by launch/digest_official_tests.py: problems are generated without
# these at hand. Four bytes take one other problem in six million for one of them, which costs nothing.
DIGESTS = Path(__file__).parent / "assets" / "official_test_digests.txt"
_DIGEST_BYTES = 4
_TEST_SHARE = 0.1  # share of the problems that are in the test split


@dataclasses.dataclass(frozen=True)
class PuzzleTask(sources.SourcedTask):
  """Puzzles with an answer in `<answer>` tags, generated unless there is a source.

  Attributes:
    train_source, test_source: "generated", or where the problems are, see `sources.open_source`.
    data_dir: folder of TFDS datasets; None for the default of TFDS.
    variant: "official", or "small", with prompts as short as models of under a million parameters need them.
  """

  train_source: str = GENERATED
  test_source: str = GENERATED
  variant: str = "official"
  tags: ClassVar[tuple[str, ...]] = ("<answer>", "</answer>")

  def __post_init__(self):
    if self.variant not in VARIANTS:
      raise ValueError(f"task.variant={self.variant!r}: unknown, known are {', '.join(VARIANTS)}")

  def examples(self, split: str) -> Sequence[Mapping[str, Any]]:
    base.check_split(split)
    return self.generated(split) if getattr(self, f"{split}_source") == GENERATED else super().examples(split)

  def generated(self, split: str) -> Sequence[Mapping[str, Any]]:
    """The problems of a split that are made here, see `generate`."""
    raise NotImplementedError


def generate(
  seed: str, split: str, size: int, make: Callable[[bytes], dict | None], key: Callable[..., str]
) -> tuple[dict[str, Any], ...]:
  """`size` problems of split "train" or "test", no two of them equal: the same on every machine and Python release.

  A problem belongs to one split alone, by the digest of its key, and is none of the public tests.

  Args:
    seed: what tells this series of problems from others.
    split: "train" or "test".
    size: number of problems.
    make: a problem made from 32 random bytes, as a dict; None where they make none.
    key: given a problem's fields, what it has in common with those that count as the same.
  """
  found = {}
  for number in itertools.count():
    problem = make(hashlib.sha256(f"{seed} {number}".encode()).digest())
    if problem is not None and _split_of(key(**problem)) == split and not is_official_test(key(**problem)):
      found[str(problem)] = problem
    if len(found) == size:
      return tuple(found.values())


def _split_of(key: str) -> str:
  return "test" if hashlib.sha256(f"split {key}".encode()).digest()[0] < 256 * _TEST_SHARE else "train"


def is_official_test(key: str) -> bool:
  """Whether the problem with that key (`countdown_problems.key`, `sudoku_problems.key`) is in a public test file."""
  return _digest(key) in _official_digests()


def write_official_digests(keys: Iterable[str]) -> None:
  """Writes the digests of the public test problems, which have these keys."""
  DIGESTS.write_text("\n".join(sorted(map(_digest, keys))) + "\n")


@functools.cache
def _official_digests() -> frozenset[str]:
  return frozenset(DIGESTS.read_text().split())


def _digest(key: str) -> str:
  return hashlib.sha256(key.encode()).digest()[:_DIGEST_BYTES].hex()
