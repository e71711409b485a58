"""wd1 (arXiv 2507.08838): weighted log-likelihood, without a ratio to an old policy and without a reference."""

import dataclasses

import jax
import jax.numpy as jnp

from gdsd_jax.checks import require, require_one_of
from gdsd_jax.objectives.diffu_grpo import whole_completion_views
from gdsd_jax.objectives.objective import Objective, ScoredRollouts
from gdsd_jax.objectives.views import Drawing, Rollouts, Views

_TOGETHER = ("group", "batch")


@dataclasses.dataclass(frozen=True)
class Wd1(Objective):
  """Σ_b [softmax(−A)_b − softmax(A)_b] Σ_i c_i log p_i, with p_i and c_i as in diffu-GRPO, and A = R − mean.

  The softmax is over a prompt's rollouts, and the sum is then a mean over prompts. The official code's is over all
  rollouts of a device's microbatch, whatever groups are in it (`weights_over="batch"`). Source: xiaohangt/wd1@0898985.
  """

  name, by_view = "wd1", True
  needs_old, num_mc, masks, advantages = False, None, None, "minus_mean"
  prompt_masking: float = 0.15  # probability that a prompt token is masked
  weights_over: str = "group"  # or "batch": what the softmax of the advantages is over

  def __post_init__(self):
    require(0 <= self.prompt_masking < 1, "objective.prompt_masking", f"must lie in [0, 1), not {self.prompt_masking}")
    require_one_of("objective.weights_over", self.weights_over, _TOGETHER)

  def views(self, key, rollouts: Rollouts, update, drawing: Drawing) -> Views:
    return whole_completion_views(key, rollouts, drawing, self.prompt_masking)

  def weights(self, advantages):
    """What a group's log-likelihoods weigh in the loss, float32[groups, G] for its advantages."""
    return jax.nn.softmax(-advantages, axis=-1) - jax.nn.softmax(advantages, axis=-1)

  def loss(self, batch: ScoredRollouts):
    together = batch.group_size if self.weights_over == "group" else len(batch.advantages)
    weights = self.weights(batch.advantages.reshape(-1, together))
    likelihood = jnp.sum(jnp.where(batch.counted, batch.student.plain[:, 0], 0), axis=-1)
    return jnp.sum(weights.reshape(-1) * likelihood) / len(weights), {}


@dataclasses.dataclass(frozen=True)
class Wd1Positive(Wd1):
  """wd1 without the weights of bad rollouts: −Σ_b softmax(A)_b Σ_i c_i log p_i."""

  name = "wd1_positive"

  def weights(self, advantages):
    return -jax.nn.softmax(advantages, axis=-1)
