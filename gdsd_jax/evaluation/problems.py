"""Which of a task's test problems are evaluated."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gdsd_jax.checks import require

# The seed of the official evaluation (GaryBall/GDSD, math_eval/eval.py), which draws 256 of Sudoku's 500 puzzles.
OFFICIAL_SEED = 42


def choose(test: Sequence[Mapping[str, Any]], size: int | None, first: int | None) -> tuple[list[Mapping], str]:
  """(problems, which they are in words): `size` of them as the official evaluation draws them, the `first` of these.

  None is all. Raises ValueError where there are not so many.
  """
  require(first is None or first >= 1, "--num_examples", f"must be at least 1, not {first}")
  count = len(test)
  require(size is None or size <= count, "eval.test_size",
          f"{size} are more than the {count} test problems; --config.eval.test_size=None takes all")
  chosen, said = range(count), f"all {count} test problems"
  if size is not None:
    chosen = np.random.RandomState(OFFICIAL_SEED).choice(count, size, replace=False).tolist()
    said = f"{size} of the {count} test problems, drawn by numpy's seed {OFFICIAL_SEED} as the official evaluation does"
  if first is not None and first < len(chosen):
    chosen, said = chosen[:first], f"the first {first} of {said}"
  return [test[i] for i in chosen], said
