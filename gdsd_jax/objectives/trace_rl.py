"""TraceRL (arXiv 2509.06949): PPO on the tokens of each step of the rollout's own trace, several steps merged."""

import dataclasses

import jax.numpy as jnp

from gdsd_jax.checks import require, require_at_least
from gdsd_jax.objectives.objective import ScoredRollouts, TrustRegionObjective
from gdsd_jax.objectives.surrogates import clipped_loss, difference_where, k3, largest_where, mean_where, ratio_metrics
from gdsd_jax.objectives.views import Drawing, Rollouts, Views, views_of_steps


@dataclasses.dataclass(frozen=True)
class TraceRl(TrustRegionObjective):
  """mean over rows of [mean over scored of −min(r_i A, clip(r_i, 1−ε, 1+ε) A) + β Σ_scored k3(p_i, p_i^old)].

  A rollout's steps are merged, `shrink` of those that unmasked something at a time. Each merged step is a row: its
  tokens and all later ones are masked, and its own are scored. Rows with nothing to score do not count. The KL is to
  the old policy, and a sum where the surrogate is a mean, as in the official code, Gen-Verse/dLLM-RL@10b4fd1. There,
  pad tokens beyond the first `pads_scored` are not scored; here that goes for what follows the first end of text.
  A is a z-score.
  """

  name, by_view = "trace_rl", True
  num_mc, masks, advantages, needs = None, None, "z_score", frozenset({"steps"})
  needs_reference = False  # the KL is to the old policy
  epsilon: float = 0.2  # clip range of the ratio
  beta: float = 0.01  # weight of the KL to the old policy
  shrink: int = 8  # steps that are merged
  after_end: bool = True  # whether tokens after the first end of text are scored

  def __post_init__(self):
    super().__post_init__()
    require_at_least(self, "objective.", shrink=1)

  def views(self, key, rollouts: Rollouts, update, drawing: Drawing) -> Views:
    in_blocks = rollouts.blocks is not None and drawing.num_steps > 1
    require(not in_blocks or self.shrink < drawing.num_steps, "objective.shrink", f"{self.shrink} merges all"
            f" {drawing.num_steps} steps that a block of this sampler takes, and no trace is left; give less")
    happened = jnp.any(rollouts.steps[:, :, None] == jnp.arange(drawing.num_steps), axis=1)  # [N, steps]
    order = jnp.cumsum(happened, axis=1) - 1  # of each step among those that unmasked something
    # What no step unmasked, since it was filled in after an early stop, is masked in every row and scored in none.
    merged = jnp.take_along_axis(
      order // self.shrink, rollouts.steps, axis=1, mode="fill", fill_value=drawing.num_steps)
    rows = jnp.arange(-(-min(drawing.num_steps, rollouts.tokens.shape[1]) // self.shrink))
    views = views_of_steps(merged, rows, rows + 1)
    return views if self.after_end else views.replace(scored=views.scored & rollouts.counted[:, None])

  def loss(self, batch: ScoredRollouts):
    scored = batch.views.counted
    log_ratio = difference_where(batch.student.plain, batch.old.plain, scored)
    surrogate = clipped_loss(log_ratio, batch.advantages[:, None, None], self.epsilon)
    rows = jnp.any(scored, axis=-1)
    policy = mean_where(mean_where(surrogate, scored, axis=-1), rows)
    of_rows = jnp.sum(jnp.where(scored, k3(log_ratio, 0.0), 0), axis=-1)
    kl = mean_where(of_rows, rows)
    metrics = ratio_metrics(log_ratio, self.epsilon, scored)
    return policy + self.beta * kl, {**metrics, "kl_old": kl, "largest_kl_old": largest_where(of_rows)}
