"""What a program of the user's sees of a run while it goes on."""

from typing import Any

from gdsd_jax.generation.rollout import GradedCompletions


class Callback:
  """Its methods are called in every process, after what they are named for; override those that you need.

  What they raise ends the run, which goes on from its latest checkpoint. `trainer.stop()` ends it after the step under
  way, which is saved.
  """

  def after_rollouts(self, trainer, step: int, completions: GradedCompletions) -> None:
    """The completions of a step are sampled and graded."""

  def after_updates(self, trainer, step: int, metrics: dict[str, Any]) -> None:
    """A step is done; `trainer.state` has its parameters, and what is added to the metrics is written down."""

  def after_evaluation(self, trainer, step: int, metrics: dict[str, Any]) -> None:
    """The validation problems were evaluated; step 0 is before the first."""
