"""diffu-GRPO, of d1 (arXiv 2504.12216): GRPO on tokens that are predicted in one pass, from a masked completion."""

import dataclasses

import jax.numpy as jnp

from gdsd_jax.checks import require
from gdsd_jax.objectives.objective import ScoredRollouts, TrustRegionObjective
from gdsd_jax.objectives.surrogates import grpo_loss, mean_where
from gdsd_jax.objectives.views import Drawing, random_prompt_masks, Rollouts, Views


def whole_completion_views(key, rollouts: Rollouts, drawing: Drawing, prompt_masking: float) -> Views:
  """One view: the whole completion is masked, and each prompt token with probability `prompt_masking`."""
  batch = len(rollouts.tokens)
  prompt_masks = random_prompt_masks(key, (batch, 1, drawing.prompt_length), prompt_masking)
  masks = jnp.ones((batch, 1, rollouts.tokens.shape[1]), bool)
  return Views(masks, scored=rollouts.counted[:, None], prompt_masks=prompt_masks)


@dataclasses.dataclass(frozen=True)
class DiffuGrpo(TrustRegionObjective):
  """Σ_bi c_i [−min(r_i A, clip(r_i, 1−ε, 1+ε) A) + β k3(p_i, p_i^ref)] / Σ c.

  p_i is the probability of token i where the whole completion and 15 % of the prompt are masked, drawn anew for each
  update; r_i = p_i / p_i^old; c_i = 1 up to the first end of text. Source: dllm-reasoning/d1@837888f. A = R − mean.
  """

  name, by_view = "diffu_grpo", True
  num_mc, masks, advantages = None, None, "minus_mean"
  epsilon: float = 0.5  # clip range of the ratio
  beta: float = 0.04  # weight of the KL to the reference
  prompt_masking: float = 0.15  # probability that a prompt token is masked

  def __post_init__(self):
    super().__post_init__()
    require(0 <= self.prompt_masking < 1, "objective.prompt_masking", f"must lie in [0, 1), not {self.prompt_masking}")

  def views(self, key, rollouts: Rollouts, update, drawing: Drawing) -> Views:
    return whole_completion_views(key, rollouts, drawing, self.prompt_masking)

  def loss(self, batch: ScoredRollouts):
    counted = batch.counted
    student, old, ref = (None if scores is None else scores.plain[:, 0]
                         for scores in (batch.student, batch.old, batch.ref))
    over_tokens = lambda values: mean_where(values, counted)
    return grpo_loss(student, old, ref, batch.advantages[:, None], counted, over_tokens, self)
