"""VRPO, of LLaDA 1.5 (arXiv 2505.19223): direct preference optimization on ELBOs with shared masks."""

import dataclasses

import jax
import jax.numpy as jnp

from gdsd_jax.checks import require
from gdsd_jax.objectives.bgpo import stratified_views
from gdsd_jax.objectives.objective import Objective, ScoredRollouts
from gdsd_jax.objectives.views import Drawing, Rollouts, Views


@dataclasses.dataclass(frozen=True)
class Vrpo(Objective):
  """−mean log σ(β [(ℓ − ℓ_ref)_chosen − (ℓ − ℓ_ref)_rejected]); of neighbours the one with the larger reward is chosen.

  ℓ = mean_j (L/n_j) Σ_masked log p over M views j with n_j masked tokens, whose numbers are stratified; policy and
  reference share them. The paper's ℓ is that of a whole sequence; DARE's port (yjyddq/DARE@83ae8a3) divides it by L.
  """

  name = "vrpo"
  needs_old, needs_reference, num_mc, masks, advantages = False, True, 8, None, None
  beta: float = 0.2  # by which the margin is multiplied
  per_token: bool = False  # whether ℓ is divided by L
  truncated: bool = False  # whether a completion ends at its first end of text, and what follows attends to nothing

  def __post_init__(self):
    require(self.beta > 0, "objective.beta", f"must be positive, not {self.beta}")

  @property
  def attends_after_end(self) -> bool:
    return not self.truncated

  def views(self, key, rollouts: Rollouts, update, drawing: Drawing) -> Views:
    within = rollouts.counted if self.truncated else None
    return stratified_views(key, rollouts, drawing.num_mc, within)

  def loss(self, batch: ScoredRollouts):
    margin = self.margins(batch)
    return jnp.mean(self.losses(margin)), {"margin": jnp.mean(margin), "preference_accuracy": jnp.mean(margin > 0)}

  def losses(self, margins):
    """−log σ(β margin), elementwise."""
    return -jax.nn.log_sigmoid(self.beta * margins)

  def margins(self, batch: ScoredRollouts) -> jax.Array:
    """(ℓ − ℓ_ref)_chosen − (ℓ − ℓ_ref)_rejected of each pair of neighbours, float32[N/2]."""

    def gain(scores):
      sums = jnp.sum(jnp.where(batch.views.counted, batch.views.weights * scores.plain, 0), axis=-1)
      return jnp.mean(sums, axis=1) / (batch.tokens.shape[1] if self.per_token else 1)

    gains = (gain(batch.student) - gain(batch.ref)).reshape(-1, 2)
    first, second = batch.rewards.reshape(-1, 2).T
    return jnp.sign(first - second) * (gains[:, 0] - gains[:, 1])
