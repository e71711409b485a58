"""Preferences on arithmetic, for the embedded model: the right solution of a problem is chosen, a wrong one rejected.

python -m gdsd_jax.tasks.preferences writes the file that configs/vrpo.py:tiny learns from.
"""

import json
from pathlib import Path

import numpy as np

from gdsd_jax.tasks.arithmetic import ArithmeticTask

FILE = Path(__file__).parent / "assets" / "preferences.jsonl"
COUNT = 512


def preferences(count: int = COUNT, seed: int = 0) -> list[dict[str, str]]:
  """Rows with `prompt`, `chosen` and `rejected`, of the first problems of the training split."""
  task, rng, rows = ArithmeticTask(), np.random.default_rng(seed), []
  for example in task.examples("train")[:count]:
    [message] = task.messages(example)
    wrong = task.careless_solution(example, 1.0, rng)
    rows.append({"prompt": message["content"], "chosen": task.solution(example), "rejected": wrong})
  return rows


if __name__ == "__main__":
  FILE.write_text("".join(json.dumps(row) + "\n" for row in preferences()))
