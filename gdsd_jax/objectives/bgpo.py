"""BGPO (arXiv 2510.11683): a clipped surrogate on each sample of the ELBO by itself, linear for good rollouts."""

import dataclasses

import jax
import jax.numpy as jnp

from gdsd_jax.checks import require
from gdsd_jax.objectives.objective import Objective, ScoredRollouts
from gdsd_jax.objectives.surrogates import log_ratio_metrics
from gdsd_jax.objectives.views import Drawing, random_masks, Rollouts, Views


def stratified_views(key, rollouts: Rollouts, count: int, within=None) -> Views:
  """J views in which n = 1 + (k − 1 + j N / J) mod N of N tokens are masked, k ~ U{1, …, N}, with the weights N/n.

  `within`, bool[N, L], are the tokens that may be; None for all.
  """
  within = jnp.ones(rollouts.tokens.shape, bool) if within is None else within
  of_first, of_tokens = jax.random.split(key)
  N = jnp.sum(within, axis=1, keepdims=True)
  first = jax.random.randint(of_first, N.shape, 0, N, jnp.int32)
  counts = 1 + (first + jnp.arange(count) * N // count) % N
  masks = random_masks(of_tokens, counts, jnp.broadcast_to(within[:, None], (*counts.shape, within.shape[1])))
  return Views(masks, weights=(N / counts).astype(jnp.float32)[..., None])


@dataclasses.dataclass(frozen=True)
class Bgpo(Objective):
  """mean_bj −min(r A, clip(r, 1−ε, 1+ε) A), for A < 0 at most −c A; r = 1 + Δ if A > 0, and exp(Δ) otherwise.

  Δ = ℓ_j − ℓ_j^old with ℓ_j = (1/n_j) Σ_masked log p, of one of the views j with n_j masked tokens, whose numbers are
  stratified. All tokens count, also after the end of text. A = (R − mean)/std. Read in DARE's port,
  yjyddq/DARE@83ae8a3, which takes exp(log(1 + Δ)): not a number for Δ ≤ −1, where this is 1 + Δ itself.
  """

  name, by_view = "bgpo", True
  num_mc, masks, advantages = 16, None, "z_score"
  epsilon: float = 0.2  # clip range of the ratio
  dual_clip: float = 3.0  # c, which holds the loss of A < 0 below −c A

  def __post_init__(self):
    require(0 < self.epsilon < 1, "objective.epsilon", f"must lie between 0 and 1, not {self.epsilon}")
    require(self.dual_clip > 1, "objective.dual_clip", f"must be above 1, not {self.dual_clip}")

  def views(self, key, rollouts: Rollouts, update, drawing: Drawing) -> Views:
    return stratified_views(key, rollouts, drawing.num_mc)

  def loss(self, batch: ScoredRollouts):
    def level(scores):
      masked = batch.views.counted
      return jnp.sum(jnp.where(masked, batch.views.weights * scores.plain, 0), axis=-1) / masked.shape[-1]

    moved, advantages = level(batch.student) - level(batch.old), batch.advantages[:, None]
    ratio = jnp.where(advantages > 0, 1 + moved, jnp.exp(moved))
    clipped = jnp.clip(ratio, 1 - self.epsilon, 1 + self.epsilon)
    loss = -jnp.minimum(ratio * advantages, clipped * advantages)
    loss = jnp.where(advantages < 0, jnp.minimum(loss, -self.dual_clip * advantages), loss)
    return jnp.mean(loss), log_ratio_metrics(moved, ratio != clipped)
