"""DMPO (arXiv 2510.08233): weighted denoising cross-entropy towards the reward-tilted policy."""

import dataclasses

import jax
import jax.numpy as jnp

from gdsd_jax.checks import require, require_one_of
from gdsd_jax.objectives.objective import Objective, ScoredRollouts
from gdsd_jax.objectives.views import Drawing, Rollouts, Views

_CENTERS = ("negative", "mean", "policy", "none")


@dataclasses.dataclass(frozen=True)
class Dmpo(Objective):
  """(1/R) Σ_j Σ_b (w_b − κ v_b) (1/n_bj) Σ_masked −log p, over R views j of a completion with n_bj masked tokens.

  Over a prompt's rollouts w = softmax(c (Δ + r/α)) and v = softmax(c (Δ − r/α)), with Δ = ℓ_ref − ℓ_old and
  ℓ = mean_j (L/n_j) Σ_masked log p, in views of their own, before the first update. The second half of the views are
  complements of the first, whose share of masked tokens is 0.1 + 0.9 U. All tokens count, also after the end of text.
  Other centres than v: the "mean" of w over the batch; softmax over the batch of ℓ_θ − ℓ_old ("policy"); "none".
  Source: yuchen-zhu-zyc/DMPO@96af1a4. In place of a mean over prompts it has a sum, as there.
  """

  name = "dmpo"
  needs_old, needs_reference, num_mc, masks, advantages = False, True, 4, None, None
  alpha: float = 0.04  # temperature of the rewards
  coefficient: float = 1.0  # c, by which the softmax's argument is multiplied; 1 for an infinite proximal step
  centering: float = 1.0  # κ, weight of the centre v
  center: str = "negative"  # or "mean", "policy", "none": what is subtracted of the weights
  antithetic: bool = True  # whether the second half of the views are complements of the first

  def __post_init__(self):
    require(self.alpha > 0, "objective.alpha", f"must be positive, not {self.alpha}")
    require_one_of("objective.center", self.center, _CENTERS)

  def views(self, key, rollouts: Rollouts, update, drawing: Drawing) -> Views:
    count = drawing.num_mc
    require(not self.antithetic or count % 2 == 0, "objective.num_mc",
            f"{count} views are no pairs; make it even, or set objective.antithetic=False")
    of_share, of_tokens = jax.random.split(key)
    batch, length = rollouts.tokens.shape
    drawn = (batch, count // 2 if self.antithetic else count, length)
    share = 0.1 + 0.9 * jax.random.uniform(of_share, (*drawn[:2], 1), jnp.float32)
    masks = jax.random.uniform(of_tokens, drawn, jnp.float32) < share
    return Views(jnp.concatenate([masks, ~masks], axis=1) if self.antithetic else masks)

  def fixed_views(self, key, rollouts: Rollouts, drawing: Drawing) -> Views:
    return self.views(key, rollouts, 0, drawing)

  def loss(self, batch: ScoredRollouts):
    before, masked = batch.fixed, batch.fixed.views.counted
    behaviour, reference = (elbo(scores.plain, masked) for scores in (before.old, before.ref))
    gap = (reference - behaviour).reshape(-1, batch.group_size)
    tilt = batch.rewards.reshape(gap.shape) / self.alpha
    weigh = lambda gap: jax.nn.softmax(self.coefficient * gap, axis=-1).reshape(-1)
    weights, scored = weigh(gap + tilt), batch.views.counted
    mean_log = elbo(batch.student.plain, scored) / batch.tokens.shape[1]
    center = jnp.float32(0)
    if self.center == "negative":
      center = weigh(gap - tilt)
    elif self.center == "mean":
      center = jnp.mean(weights)
    elif self.center == "policy":
      moved = jax.lax.stop_gradient(mean_log) * batch.tokens.shape[1] - behaviour
      center = jax.nn.softmax(moved)
    loss = -jnp.sum((weights - self.centering * center) * mean_log)
    return loss, {"largest_weight": jnp.mean(jnp.max(weights.reshape(gap.shape), axis=-1))}


def elbo(scores, masked):
  """mean_j (L/n_j) Σ_masked log p, float32[N] for [N, R, L]; a view without masked tokens counts as 0."""
  sums = jnp.sum(jnp.where(masked, scores, 0), axis=-1)
  return jnp.mean(sums * scores.shape[-1] / jnp.maximum(jnp.sum(masked, axis=-1), 1), axis=1)
