"""d2-StepMerge (arXiv 2509.21474): GRPO on the trace of a rollout, cut into segments of steps."""

import dataclasses

import jax.numpy as jnp

from gdsd_jax.checks import require, require_at_least
from gdsd_jax.objectives.objective import ScoredRollouts, TrustRegionObjective
from gdsd_jax.objectives.surrogates import grpo_loss
from gdsd_jax.objectives.views import Drawing, random_prompt_masks, Rollouts, Views, views_of_steps


@dataclasses.dataclass(frozen=True)
class D2(TrustRegionObjective):
  """Σ_bi c_i [−min(r_i A, clip(r_i, 1−ε, 1+ε) A) + β k3(p_i, p_i^ref)] / Σ c, each token in its segment's view.

  Segment n of N begins at step ⌊n S / N⌋ of S. Its input is the state at its begin, with 15 % of the prompt masked; its
  tokens are those unmasked in it. c_i = 1 up to the first end of text; A = R − mean. Source: kuleshov-group/d2@381b9f1.
  """

  name, by_view = "d2", True
  num_mc, masks, advantages, needs = None, None, "minus_mean", frozenset({"steps"})
  epsilon: float = 0.5  # clip range of the ratio
  beta: float = 0.04  # weight of the KL to the reference
  segments: int = 16  # N, parts of the rollout's steps, each of which is a view
  prompt_masking: float = 0.15  # probability that a prompt token is masked

  def __post_init__(self):
    super().__post_init__()
    require(0 <= self.prompt_masking < 1, "objective.prompt_masking", f"must lie in [0, 1), not {self.prompt_masking}")
    require_at_least(self, "objective.", segments=1)

  def views(self, key, rollouts: Rollouts, update, drawing: Drawing) -> Views:
    require(self.segments <= drawing.num_steps, "objective.segments",
            f"{self.segments} must be at most the {drawing.num_steps} steps of a rollout (sampler.steps)")
    bounds = jnp.arange(self.segments + 1) * drawing.num_steps // self.segments
    views = views_of_steps(rollouts.steps, bounds[:-1], bounds[1:])
    shape = len(rollouts.tokens), self.segments, drawing.prompt_length
    return views.replace(scored=views.scored & rollouts.counted[:, None],
                         prompt_masks=random_prompt_masks(key, shape, self.prompt_masking))

  def loss(self, batch: ScoredRollouts):
    scored, ref = batch.views.counted, None if batch.ref is None else batch.ref.plain
    over_tokens = lambda values: jnp.sum(jnp.where(scored, values, 0)) / jnp.sum(batch.counted)
    advantages = batch.advantages[:, None, None]
    return grpo_loss(batch.student.plain, batch.old.plain, ref, advantages, scored, over_tokens, self)
