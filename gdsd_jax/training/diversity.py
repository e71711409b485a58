"""How much the completions of a group differ: it falls before the spread of their rewards does (docs/metrics.md)."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

_END, _NOTHING = -1, -2  # stand for any end of text, and for what is behind it


def group_diversity(ids: Sequence[Sequence[int]], length: int, group_size: int) -> dict[str, float]:
  """Means over groups of what their completions have in common, compared as tokens through the first end of text.

  The end is a token like any other, whichever of the model's it is; what is behind it counts for nothing.

  Args:
    ids: tokens of each completion up to its end, without it; the `group_size` answers to a prompt are neighbours.
    length: L, at which a completion without an end was cut.
    group_size: G.
  """
  tokens = np.full((len(ids), length), _NOTHING, np.int32)
  for row, completion in zip(tokens, ids):
    row[:len(completion)] = completion
    row[len(completion):len(completion) + 1] = _END
  numbers = [_of_group(group) for group in tokens.reshape(-1, group_size, length)]
  return {name: float(np.mean([each[name] for each in numbers])) for name in numbers[0]}


def _of_group(tokens: np.ndarray) -> dict[str, float]:
  """The numbers of a group int32[G, L]."""
  size, there = len(tokens), tokens != _NOTHING
  equal = np.sum((tokens[:, None] == tokens) & there, axis=-1)  # [G, G] positions, of which a completion has its own
  agreement = equal / np.minimum(there.sum(axis=1)[:, None], there.sum(axis=1))
  shares = np.array(list(Counter(row.tobytes() for row in tokens).values())) / size
  return {
    "diversity": len(shares) / size,
    "group_entropy": np.sum(shares * np.log(1 / shares)),
    "token_agreement": (agreement.sum() - size) / (size * (size - 1)),
    "distinct_1": len(np.unique(tokens[there])) / np.sum(there),
  }
