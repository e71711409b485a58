"""CJ-GRPO (arXiv 2509.23924): GRPO on every step of the rollout's own trajectory."""

import dataclasses

import jax.numpy as jnp

from gdsd_jax.checks import require
from gdsd_jax.objectives.objective import ScoredRollouts, TrustRegionObjective
from gdsd_jax.objectives.surrogates import grpo_loss, mean_where
from gdsd_jax.objectives.views import Drawing, Rollouts, Views, views_of_steps


@dataclasses.dataclass(frozen=True)
class CjGrpo(TrustRegionObjective):
  """mean over steps of the mean over a step's tokens of −min(r_i A, clip(r_i, 1−ε, 1+ε) A) + β k3(p_i, p_i^ref).

  A step's view is the state before it, and scored are the tokens that it unmasks, after the end of text, too. A dual
  clip, which DARE's port has at 3, holds the loss of A < 0 below −c A. A = R − mean. A step counts where it unmasked
  something. It costs as many passes as there are steps. Source: yjyddq/EOSER-ASS-RL@5affb4e; the port is
  yjyddq/DARE@83ae8a3.
  """

  name, by_view = "cj_grpo", True
  num_mc, masks, advantages, needs = None, None, "minus_mean", frozenset({"steps"})
  epsilon: float = 0.5  # clip range of the ratio
  beta: float = 0.04  # weight of the KL to the reference
  dual_clip: float | None = None  # c, which holds the loss of A < 0 below −c A; None: no such bound

  def __post_init__(self):
    super().__post_init__()
    c = self.dual_clip
    require(c is None or c > 1, "objective.dual_clip", f"must be above 1, not {c}")

  def views(self, key, rollouts: Rollouts, update, drawing: Drawing) -> Views:
    steps = jnp.arange(drawing.num_steps)
    return views_of_steps(rollouts.steps, steps, steps + 1)

  def loss(self, batch: ScoredRollouts):
    scored, ref = batch.views.counted, None if batch.ref is None else batch.ref.plain
    happened = jnp.any(scored, axis=(0, 2))
    over_steps = lambda values: mean_where(mean_where(values, scored, axis=(0, 2)), happened)
    advantages = batch.advantages[:, None, None]
    return grpo_loss(batch.student.plain, batch.old.plain, ref, advantages, scored, over_steps, self, self.dual_clip)
