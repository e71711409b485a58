"""GDPO (arXiv 2510.08554): one ratio a sequence, of ELBOs by Gauss–Legendre quadrature in the noise level."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from gdsd_jax.checks import require_at_least
from gdsd_jax.objectives.objective import ScoredRollouts, TrustRegionObjective
from gdsd_jax.objectives.surrogates import clipped_loss, kl_metrics, mean_where, ratio_metrics
from gdsd_jax.objectives.views import Drawing, random_masks, Rollouts, Views


@dataclasses.dataclass(frozen=True)
class Gdpo(TrustRegionObjective):
  """mean_b −min(r A, clip(r, 1−ε, 1+ε) A) + β mean_b mean_i k3_i ρ_i, r = exp((E − E_old)/L).

  E = Σ_q (w_q / (t_q K)) Σ_masked log p over Q nodes t_q of [0, 1] with weights w_q, and K = num_mc draws of masks at
  each, of round(t_q L) tokens. A position's part in E takes a log-probability's place in k3, whose difference is held
  within ±20 and whose value within ±10; ρ_i is the ratio to the student itself, 1, for the gradient. A = R − mean.
  Source: a co-author's open request, NVIDIA-NeMo/RL#3550 at b8b545f.
  """

  name = "gdpo"
  num_mc, masks, advantages = 1, None, "minus_mean"
  epsilon: float = 0.5  # clip range of the ratio
  beta: float = 0.0  # weight of the KL to the reference
  nodes: int = 3  # Q, nodes of the quadrature over time: as many views
  truncated: bool = False  # whether a completion ends at its first end of text, and what follows attends to nothing

  def __post_init__(self):
    super().__post_init__()
    require_at_least(self, "objective.", nodes=1)

  @property
  def attends_after_end(self) -> bool:
    return not self.truncated

  def views(self, key, rollouts: Rollouts, update, drawing: Drawing) -> Views:
    (batch, length), draws = rollouts.tokens.shape, drawing.num_mc
    points, weights = np.polynomial.legendre.leggauss(self.nodes)
    times, weights = np.repeat((points + 1) / 2, draws), np.repeat(weights / 2 / draws, draws)
    within = rollouts.counted if self.truncated else jnp.ones((batch, length), bool)
    within = jnp.broadcast_to(within[:, None], (batch, len(times), length))
    counts = jnp.maximum(jnp.round(times * jnp.sum(within, axis=-1)).astype(jnp.int32), 1)
    masks = random_masks(key, counts, within)
    weights = (weights / times).astype(np.float32)
    return Views(masks, weights=jnp.broadcast_to(weights[:, None], (batch, len(times), 1)))

  def loss(self, batch: ScoredRollouts):
    masked = batch.views.counted
    by_position = lambda scores: jnp.sum(jnp.where(masked, batch.views.weights * scores.plain, 0), axis=1)
    student = by_position(batch.student)
    valid = batch.counted if self.truncated else jnp.ones(batch.tokens.shape, bool)
    log_ratio = jnp.sum(student - by_position(batch.old), axis=-1) / jnp.sum(valid, axis=-1)
    loss = jnp.mean(clipped_loss(log_ratio, batch.advantages, self.epsilon))
    metrics = ratio_metrics(log_ratio, self.epsilon)
    if batch.ref is not None:
      difference = jnp.clip(by_position(batch.ref) - student, -20, 20)
      to_itself = jnp.exp(student - jax.lax.stop_gradient(student))
      kl = jnp.clip(jnp.expm1(difference) - difference, -10, 10) * to_itself
      metrics |= kl_metrics(jnp.mean(mean_where(kl, valid, axis=1)), kl, valid)
      loss = loss + self.beta * metrics["kl"]
    return loss, metrics
