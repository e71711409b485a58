"""coupled-GRPO, of DiffuCoder (arXiv 2506.20639): GRPO on tokens scored in a full mask and in a coupled pair."""

import dataclasses

import jax
import jax.numpy as jnp

from gdsd_jax.checks import require
from gdsd_jax.objectives.objective import ScoredRollouts, TrustRegionObjective
from gdsd_jax.objectives.surrogates import grpo_loss, mean_where
from gdsd_jax.objectives.views import Drawing, Rollouts, Views


@dataclasses.dataclass(frozen=True)
class CoupledGrpo(TrustRegionObjective):
  """Σ c_i [−min(r_i A, clip(r_i, 1−ε, 1+ε) A) + β k3] / Σ c with r_i = exp(s_i − s_i^old).

  s_i = ½ (log p_i^full + w log p_i): p_i^full is the probability where the whole completion is masked, p_i that in the
  pass that masks i, of a random share ρ of the completion or its complement, and w is 1/ρ or 1/(1−ρ). A batch has one
  ρ ~ U(0.2, 0.8). As w averages more than 1, s_i is no log-probability, and ε is tighter than it looks. c_i = 1 up to
  the first end of text; A is leave-one-out. Source: apple/ml-diffucoder@f735e01.
  """

  name = "coupled_grpo"
  num_mc, masks = None, None
  epsilon: float = 0.5  # clip range of the ratio
  beta: float = 0.01  # weight of the KL to the reference
  least_share: float = 0.2  # the least share of tokens masked in the pair's first pass
  largest_share: float = 0.8  # and at most

  def __post_init__(self):
    super().__post_init__()
    require(0 < self.least_share <= self.largest_share < 1, "objective.least_share, objective.largest_share",
            f"must lie between 0 and 1, in that order, not {self.least_share}, {self.largest_share}")

  def views(self, key, rollouts: Rollouts, update, drawing: Drawing) -> Views:
    of_share, of_tokens = jax.random.split(key)
    share = jax.random.uniform(of_share, (), jnp.float32, minval=self.least_share, maxval=self.largest_share)
    everywhere = jnp.ones(rollouts.tokens.shape, bool)
    first = jax.random.uniform(of_tokens, everywhere.shape, jnp.float32) < share
    masks = jnp.stack([everywhere, first, ~first], axis=1)
    weights = jnp.stack([jnp.float32(1), 1 / share, 1 / (1 - share)])
    weights = jnp.broadcast_to(weights[:, None], (len(first), 3, 1))
    return Views(masks, scored=masks & rollouts.counted[:, None], weights=weights)

  def loss(self, batch: ScoredRollouts):
    def token_scores(scores):
      if scores is None:
        return None
      return 0.5 * jnp.sum(jnp.where(batch.views.counted, batch.views.weights * scores.plain, 0), axis=1)

    counted = batch.counted
    student, old, ref = map(token_scores, (batch.student, batch.old, batch.ref))
    over_tokens = lambda values: mean_where(values, counted)
    return grpo_loss(student, old, ref, batch.advantages[:, None], counted, over_tokens, self)
