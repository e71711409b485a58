"""Warnings that nothing can be learnt: told at the first such step, and again when there were ten times as many."""

from collections.abc import Callable
import dataclasses
import logging

import numpy as np

from gdsd_jax.generation.rollout import GradedCompletions

_log = logging.getLogger(__name__)

_AGAIN = 10  # times as many steps, before there is another word


@dataclasses.dataclass(frozen=True)
class _Sign:
  """What may be wrong with the rollouts of a step, and what is said of it."""

  found: Callable[[GradedCompletions, int], bool]  # of a step's rollouts and the size of its groups
  said: str


def _all_empty(scored: GradedCompletions, group_size: int) -> bool:
  del group_size
  return not any(text.strip() for text in scored.completions)


def _all_cut(scored: GradedCompletions, group_size: int) -> bool:
  del group_size
  return bool(np.all(scored.lengths >= scored.sampled.rollout.tokens.shape[1]))


def _all_equal(scored: GradedCompletions, group_size: int) -> bool:
  return bool(np.all(scored.spreads(group_size) == 0))


_SIGNS = (  # what comes first explains what comes behind it
  _Sign(_all_empty, "every completion was empty: look at the model, its chat template and sampler"),
  _Sign(_all_cut, "every completion was cut at sampler.completion_length, none came to its end: raise it, or look at"
                  " the model and its chat template"),
  _Sign(_all_equal, "all rewards of each group were equal, so that nothing was learnt: if that goes on, look at the"
                    " rewards and the difficulty of the problems, or raise group_size or sampler.temperature"),
)


class IdleSteps:
  """Counts the steps whose rollouts teach nothing, and warns at the first, the tenth, the hundredth, and so on.

  In a healthy run all rewards of each group are equal now and then, the more so the better it has learnt.
  """

  def __init__(self, group_size: int):
    self.group_size, self._steps = group_size, 0
    self._seen, self._next = [0] * len(_SIGNS), [1] * len(_SIGNS)  # steps of each sign, and at which there is a word

  def see(self, step: int, scored: GradedCompletions) -> None:
    """Takes the rollouts of a step into account."""
    self._steps += 1
    wrong = next((i for i, sign in enumerate(_SIGNS) if sign.found(scored, self.group_size)), None)
    if wrong is None:
      return
    self._seen[wrong] += 1
    if self._seen[wrong] == self._next[wrong]:
      self._next[wrong] *= _AGAIN
      steps = f"{self._seen[wrong]} of the last {self._steps} steps" if self._seen[wrong] > 1 else f"step {step}"
      _log.warning("WARNING: in %s %s", steps, _SIGNS[wrong].said)
