"""What Countdown and Sudoku share: problems that are generated, and never those of the public tests."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import hashlib
import itertools
from pathlib import Path
from typing import Any, ClassVar

from gdsd_jax.checks import require
from gdsd_jax.tasks import base, official_prompts
from gdsd_jax.tasks.sources import SourcedTask

GENERATED = "generated"
VARIANTS = ("official", "small")
BARE = "bare"  # the prompt that is the problem alone
# Short digests of the public test problems, written by launch/digest_official_tests.py: problems are generated without
# these at hand. Four bytes take one other problem in six million for one of them, which costs nothing.
DIGESTS = Path(__file__).parent / "assets" / "official_test_digests.txt"
_HELD_OUT = 0.1  # share of the problems that are held out, half of them for validation and half for test


@dataclasses.dataclass(frozen=True)
class PuzzleTask(SourcedTask):
  """Puzzles with an answer in `<answer>` tags, made by `generated(split)` unless they have a source."""

  train_source: str = GENERATED  # a source as that of any task, or "generated": problems are made here
  test_source: str = GENERATED  # likewise, none of which is in the official test files
  variant: str = "official"  # or "small", whose generated problems models of under a million parameters can learn
  # How problems are asked in training: "gdsd" or "espo" (tasks/official_prompts.py), or "bare", the problem alone. None
  # is "bare" for the small variant, and "espo" for the official one. Evaluation asks as the official one does, which
  # has one prompt for all, or by the problem alone, where training does.
  prompt: str | None = None
  tags: ClassVar[tuple[str, ...]] = ("<answer>", "</answer>")

  def __post_init__(self):
    require(self.variant in VARIANTS, f"task.variant={self.variant!r}", f"unknown, known are {', '.join(VARIANTS)}")
    official_prompts.check_name(self.prompt, (*official_prompts.NAMES, BARE))
    stored = {self.train_source, self.test_source} != {GENERATED}
    require(stored or not self.columns, "task.columns", "generated problems have none; name a source of problems")

  @property
  def asked(self) -> str:
    """The name of the training prompt."""
    return self.prompt or (BARE if self.variant == "small" else "espo")

  @property
  def has_validation(self) -> bool:
    return self.source("validation") is not None

  def source(self, split: str) -> str | None:
    """Where a split is: validation is generated as training is, unless it is told where it is."""
    generated = split == "validation" and self.train_source == GENERATED
    return getattr(self, f"{split}_source") or (GENERATED if generated else None)

  def examples(self, split: str) -> Sequence[Mapping[str, Any]]:
    base.check_split(split, self.has_validation)
    return self.generated(split) if self.source(split) == GENERATED else super().examples(split)


@functools.cache
def generate(
  name: str, split: str, size: int, make: Callable[..., dict | None], key: Callable[..., str], *options
) -> tuple[dict[str, Any], ...]:
  """`size` different problems of a split, the same on every machine and Python release.

  `make(draw, *options)` makes a problem of 32 random bytes, or None. Problems with the same `key(**problem)` count as
  the same: they belong to one split alone, by the digest of their key, and are none of the public tests.
  """
  found, series = {}, " ".join(map(str, (name, *options)))
  for number in itertools.count():
    problem = make(hashlib.sha256(f"{series} {number}".encode()).digest(), *options)
    if problem is not None:
      its_key = key(**problem)
      share, half, *_ = hashlib.sha256(f"split {its_key}".encode()).digest()
      its_split = "train" if share >= 256 * _HELD_OUT else "validation" if half % 2 else "test"
      if its_split == split and digest(its_key) not in official_digests():
        found[str(problem)] = problem
    if len(found) == size:
      return tuple(found.values())


@functools.cache
def official_digests() -> frozenset[str]:
  """The digests of the problems in the public test files."""
  return frozenset(DIGESTS.read_text().split())


def digest(key: str) -> str:
  """What `DIGESTS` has of a problem with that key, see `countdown.key` and `sudoku.key`."""
  return hashlib.sha256(key.encode()).hexdigest()[:8]
