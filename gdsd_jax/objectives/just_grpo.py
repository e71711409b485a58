"""JustGRPO (arXiv 2601.15165): GRPO on rollouts that are sampled strictly left to right, with exact likelihoods."""

import dataclasses

import jax.numpy as jnp

from gdsd_jax.checks import require, require_one_of
from gdsd_jax.objectives.objective import Objective, ScoredRollouts
from gdsd_jax.objectives.surrogates import clipped_loss, mean_where, ratio_metrics
from gdsd_jax.objectives.views import Drawing, Rollouts, Views

_MEANS = ("informative", "tokens", "rows")


@dataclasses.dataclass(frozen=True)
class JustGrpo(Objective):
  """Σ_bi −min(r_i A, clip(r_i, 1−ε, 1+ε) A) / (L n), with n rollouts whose A is not 0; A = (R − mean)/std.

  Token t is scored with the tokens before it clean, and it and all later ones masked: L views, and exact likelihoods of
  a sampler that goes strictly left to right (sampler.block_length=1 and as many steps as tokens), which rollouts must
  come from. All L tokens count. With one update on each batch of rollouts r is 1, and only the gradient says anything,
  as in the official code, LeapLabTHU/JustGRPO@eebe50e. DARE's port (yjyddq/DARE@83ae8a3) takes a mean over tokens, or
  over rows up to their end of text, which is then their last token, and a dual clip.
  """

  name = "just_grpo"
  num_mc, masks, advantages = None, None, "z_score"
  epsilon: float = 0.2  # clip range of the ratio
  dual_clip: float | None = None  # c, which holds the loss of A < 0 below −c A; None: no such bound
  mean_over: str = "informative"  # or "tokens"; or "rows", each up to its end, which nothing is attended to after
  temperature: float | None = None  # T of the scores; None for that of the sampler

  def __post_init__(self):
    require(0 < self.epsilon < 1, "objective.epsilon", f"must lie between 0 and 1, not {self.epsilon}")
    c = self.dual_clip
    require(c is None or c > 1, "objective.dual_clip", f"must be above 1, not {c}")
    require_one_of("objective.mean_over", self.mean_over, _MEANS)
    T = self.temperature
    require(T is None or T > 0, "objective.temperature", f"must be positive, not {T}")

  @property
  def scoring(self):
    return dataclasses.replace(Objective.scoring, temperature=self.temperature)

  @property
  def attends_after_end(self) -> bool:
    return self.mean_over != "rows"

  def views(self, key, rollouts: Rollouts, update, drawing: Drawing) -> Views:
    batch, length = rollouts.tokens.shape
    require(drawing.block_length == 1, "objective.name",
            "just_grpo needs rollouts from left to right: --config.sampler.block_length=1, and as many steps as tokens")
    masks, own = jnp.tri(length, dtype=bool).T, jnp.eye(length, dtype=bool)
    each = lambda x: jnp.broadcast_to(x, (batch, length, length))
    return Views(each(masks), scored=each(own))

  def loss(self, batch: ScoredRollouts):
    of_tokens = lambda scores: jnp.sum(jnp.where(batch.views.counted, scores.plain, 0), axis=1)
    log_ratio, advantages = of_tokens(batch.student) - of_tokens(batch.old), batch.advantages[:, None]
    loss = clipped_loss(log_ratio, advantages, self.epsilon, dual=self.dual_clip)
    if self.mean_over == "informative":
      informative = jnp.sum(advantages != 0) + 1e-5 * len(advantages) / batch.group_size
      loss = jnp.sum(loss) / (informative * loss.shape[1])
    elif self.mean_over == "tokens":
      loss = jnp.mean(loss)
    else:
      loss = jnp.mean(mean_where(loss, batch.counted, axis=1))
    return loss, ratio_metrics(log_ratio, self.epsilon)
