"""One update of freshly sampled rollouts, and what it begins from: as an iteration with mu = 1 makes it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gdsd_jax.benchmark.setting import REFERENCE_NORM, Setting
from gdsd_jax.objectives.objective import ScoredRollouts
from gdsd_jax.objectives.scores import Scores
from gdsd_jax.objectives.views import Views
from gdsd_jax.parallel.mesh import batch_sharding
from gdsd_jax.runs.gradient import DistillationBatch, ScoringBatch
from gdsd_jax.runs.optimizer import make_optimizer, OptimizerConfig
from gdsd_jax.runs.state import init_state
from gdsd_jax.runs.step import distillation_step, score_rollouts


def laid_out(setting: Setting, arrays: dict[str, np.ndarray], mesh) -> tuple[ScoringBatch, jax.Array]:
  """(rollouts, advantages) over the mesh, of arrays as `ours.random_inputs` makes them."""
  arrays = jax.device_put({**arrays, "attended": np.ones(arrays["tokens"].shape, bool)}, batch_sharding(mesh))
  masks = jnp.take(arrays["masks"], jnp.arange(setting.num_mc) % arrays["masks"].shape[1], axis=1)
  rollouts = ScoringBatch(arrays["tokens"], arrays["attended"], Views(masks, coupled=True))
  return rollouts, arrays["advantages"]


class Update:
  """What follows the rollouts of an iteration: old scores unless the step makes them, the reference's, and the step."""

  def __init__(self, setting: Setting, denoiser, params, mesh, rollouts: ScoringBatch, advantages):
    self.setting, self.rollouts, self.advantages = setting, rollouts, advantages
    self.static = dict(denoiser=denoiser, objective=setting.loss, accumulation=setting.accumulation)
    self.optimizer, with_reference = make_optimizer(OptimizerConfig(), updates=1), setting.loss.needs_reference
    self.state = init_state(denoiser, params, self.optimizer, 0, with_reference, mesh)
    if self.state.reference:
      norm = REFERENCE_NORM * self.state.reference["final_norm"]
      self.state = self.state.replace(reference={**self.state.reference, "final_norm": norm})

  def score(self, params, of_reference: bool = False) -> Scores:
    return score_rollouts(params, self.rollouts, of_reference=of_reference, **self.static)

  def __call__(self) -> dict[str, Any]:
    """Updates the state; returns the numbers of the update, on the host."""
    in_step, reference = self.setting.scored_in_step(jax.default_backend()), None
    old = None if in_step else self.score(self.state.student_params)
    if self.setting.loss.needs_reference:
      reference = self.score(self.state.reference_params, of_reference=in_step)
    return self.step(old, reference)

  def step(self, old: Scores | None, reference: Scores | None) -> dict[str, Any]:
    """As a call, with scores that are known, or those of the student left to the step."""
    # Lengths and confidence are what the loss does not see.
    tokens, count = self.rollouts.tokens[:, self.setting.prompt_length:], len(self.advantages)
    scored = ScoredRollouts(
      tokens=tokens, lengths=jnp.full(count, self.setting.completion_length, jnp.int32), rewards=self.advantages,
      advantages=self.advantages, confidence=jnp.zeros(tokens.shape, jnp.float32), group_size=count,
      views=self.rollouts.views, student=old, old=old, ref=reference)
    batch = DistillationBatch(self.rollouts, scored)
    self.state, metrics = distillation_step(self.state, batch, optimizer=self.optimizer, **self.static)
    return jax.device_get({**metrics, "score": metrics["score"] * self.setting.completion_length})
