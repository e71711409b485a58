"""Preferences on arithmetic, for the embedded model: the right solution of a problem is chosen, a wrong one rejected.

python -m gdsd_jax.tasks.preferences writes the file that configs/vrpo.py:tiny learns from.
"""

import json
from pathlib import Path

import numpy as np

from gdsd_jax.tasks.arithmetic import ArithmeticTask

FILE = Path(__file__).parent / "assets" / "preferences.jsonl"
COUNT = 480


def preferences(count: int = COUNT, seed: int = 0) -> list[dict[str, str]]:
  """Rows with `prompt`, `chosen` and `rejected`, of the first problems of the training split.

  The wrong solution is as long as the right one, so that what is learnt is which digits are right, and no length.
  """
  task, rng, rows = ArithmeticTask(), np.random.default_rng(seed), []
  for example in task.examples("train")[:count]:
    [message] = task.messages(example)
    right = wrong = task.solution(example)
    while wrong == right or len(wrong) != len(right):
      wrong = task.careless_solution(example, 1.0, rng)
    rows.append({"prompt": message["content"], "chosen": right, "rejected": wrong})
  return rows


if __name__ == "__main__":
  FILE.write_text("".join(json.dumps(row) + "\n" for row in preferences()))
