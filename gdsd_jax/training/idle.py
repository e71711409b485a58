"""Warnings that nothing can be learnt: told when it lasts, and again when it has lasted ten times as long.

A healthy run is silent. Now and then all rewards of a group are equal there, but not in all groups of many steps.
"""

from collections.abc import Callable
import dataclasses
import logging

import numpy as np

from gdsd_jax.generation.rollout import GradedCompletions

_log = logging.getLogger(__name__)

_STEPS, _GROUPS = 3, 64  # in a row: the least of both before there is a word
_AGAIN = 10  # times as long, before there is another


@dataclasses.dataclass(frozen=True)
class _Sign:
  """What may be wrong with the rollouts of a step, and what is said where it lasts."""

  found: Callable[[GradedCompletions, int], bool]  # of a step's rollouts and the size of its groups
  said: str
  sure: bool = False  # whether one step of it is enough for a word


def _all_equal(scored: GradedCompletions, group_size: int) -> bool:
  return bool(np.all(np.ptp(scored.total_reward.reshape(-1, group_size), axis=1) == 0))


def _all_empty(scored: GradedCompletions, group_size: int) -> bool:
  del group_size
  return not any(text.strip() for text in scored.completions)


def _all_cut(scored: GradedCompletions, group_size: int) -> bool:
  del group_size
  return bool(np.all(scored.lengths >= scored.sampled.rollout.tokens.shape[1])) and not _all_empty(scored, 0)


_SIGNS = (
  _Sign(_all_empty, "every completion was empty; look at the model, its chat template and sampler", sure=True),
  _Sign(_all_cut, "every completion was cut at sampler.completion_length, none came to its end; raise it, or look at"
                  " the model and its chat template"),
  _Sign(_all_equal, "all rewards of each group were equal, so that nothing was learnt from them; look at the rewards"
                    " and the difficulty of the problems, or raise group_size or sampler.temperature"),
)


class IdleSteps:
  """Counts the steps in a row whose rollouts have something wrong, and warns of it.

  The first word comes after 3 steps and 64 groups in a row; of empty completions after one step. Where it lasts,
  another comes after ten times as many steps. A run that ends before, and had no other steps, is told at its end.
  """

  def __init__(self, group_size: int):
    self.group_size, self._steps = group_size, 0
    self._lasted = [0] * len(_SIGNS)  # steps in a row until now, of each sign
    self._next = [0] * len(_SIGNS)  # after how many there is another word; 0: there was none

  def see(self, scored: GradedCompletions) -> None:
    """Takes the rollouts of a step into account."""
    self._steps += 1
    least = max(_STEPS, -(-_GROUPS * self.group_size // len(scored.completions)))
    for i, sign in enumerate(_SIGNS):
      if not sign.found(scored, self.group_size):
        self._lasted[i] = self._next[i] = 0
        continue
      self._lasted[i] += 1
      if self._lasted[i] >= (self._next[i] or (1 if sign.sure else least)):
        self._warn(i)

  def end(self) -> None:
    """Tells what was wrong with all steps, if there were too few of them to tell it before."""
    for i, lasted in enumerate(self._lasted):
      if lasted and lasted == self._steps and not self._next[i]:
        self._warn(i)

  def _warn(self, i: int) -> None:
    steps = self._lasted[i]
    _log.warning("WARNING: in %s %s", f"the last {steps} steps" if steps > 1 else "the last step", _SIGNS[i].said)
    self._next[i] = _AGAIN * steps
