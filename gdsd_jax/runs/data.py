"""Which problems an iteration sees: a shuffled pass over the training split, then another; resumable anywhere."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
import logging
from typing import Any

import numpy as np

_log = logging.getLogger(__name__)


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


def warn_of_shared(train: Iterable[Hashable], validation: Sequence[Hashable], what: str, field: str) -> None:
  """Warns where examples that are validated on are trained on, too, as where a source holds copies of its rows.

  `train` and `validation` are what examples are told apart by, `what` their name, and `field` what gives others.
  """
  held_out = set(validation)
  shared = held_out.intersection(train)
  count = sum(each in shared for each in validation)
  if count:
    _log.warning("WARNING: %d of the %d validation %s are trained on, too, so that what is told of them says little of"
                 " others: the source holds copies; take these out, or give others by %s", count, len(validation), what,
                 field)
