"""Which problems an iteration sees: a shuffled pass over the training split, then another; resumable anywhere."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class ExampleStream:
  """Examples in an order that depends on the seed and the position alone.

  Attributes:
    position: examples handed out so far; set it to resume.
  """

  def __init__(self, examples: Sequence[Mapping[str, Any]], seed: int):
    self.examples, self.seed, self.position = examples, seed, 0

  def take(self, count: int) -> list[Mapping[str, Any]]:
    """The next `count` examples."""
    taken = []
    while len(taken) < count:
      epoch, offset = divmod(self.position, len(self.examples))
      order = np.random.default_rng((self.seed, epoch)).permutation(len(self.examples))
      rows = order[offset:offset + count - len(taken)]
      taken += [self.examples[int(row)] for row in rows]
      self.position += len(rows)
    return taken
