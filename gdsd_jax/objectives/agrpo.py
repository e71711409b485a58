"""AGRPO (arXiv 2510.04019): an unbiased policy gradient from a few steps of each rollout, drawn by their entropy."""

import dataclasses

import jax
import jax.numpy as jnp

from gdsd_jax.checks import require, require_one_of
from gdsd_jax.objectives.objective import ScoredRollouts, TrustRegionObjective
from gdsd_jax.objectives.surrogates import clipped_loss, difference_where, k3, kl_metrics, ratio_metrics
from gdsd_jax.objectives.views import Drawing, Rollouts, Views, views_of_steps

_STEPS = ("entropy", "uniform")


@dataclasses.dataclass(frozen=True)
class Agrpo(TrustRegionObjective):
  """Σ_bmi [−min(r_i A, clip(r_i, 1−ε, 1+ε) A) + β r_i k3(p_i, p_i^ref)] (1/(T+1)) / q(t) / (M G).

  M steps t of each rollout are drawn from q, uniform over 0 … T or proportional to the entropy that the sampler had at
  the step; T is the last step that unmasked a token other than an end of text. In a step's view it and all later tokens
  are masked, and its own are scored as they were sampled: at the sampler's temperature, among the tokens that its
  filters left. r_i is the ratio to the rollout's own log-probability. The numbers that steps are drawn by are spread
  evenly over the batch. A = R − mean. Source: probablyabot/agrpo@98f1182.
  """

  name, by_view = "agrpo", True
  needs_old, num_mc, masks, advantages = False, 24, None, "minus_mean"
  epsilon: float = 0.2  # clip range of the ratio
  beta: float = 0.0  # weight of the KL to the reference
  steps_by: str = "entropy"  # or "uniform"
  temperature: float | None = None  # T of the scores; None for that of the sampler
  filtered: bool = False  # whether the sampler filters by top-k, whose tokens rollouts then remember

  def __post_init__(self):
    super().__post_init__()
    T = self.temperature
    require(T is None or T > 0, "objective.temperature", f"must be positive, not {T}")
    require_one_of("objective.steps_by", self.steps_by, _STEPS)

  @property
  def needs(self) -> frozenset[str]:
    return frozenset({"steps", "logp", "entropy"} | ({"kept"} if self.filtered else set()))

  @property
  def scoring(self):
    return dataclasses.replace(TrustRegionObjective.scoring, temperature=self.temperature, kept=self.filtered)

  def views(self, key, rollouts: Rollouts, update, drawing: Drawing) -> Views:
    batch, count = len(rollouts.tokens), drawing.num_mc
    of_order, of_numbers = jax.random.split(key)
    order = jax.random.permutation(of_order, batch * count)
    numbers = (order + jax.random.uniform(of_numbers, order.shape, jnp.float32)) / (batch * count)
    steps, weights = self.draw_steps(numbers.reshape(batch, count), rollouts, drawing)
    return views_of_steps(rollouts.steps, steps, steps + 1).replace(weights=weights[..., None])

  def draw_steps(self, numbers, rollouts: Rollouts, drawing: Drawing):
    """(steps, weights): int32 and float32[N, M], by the inverse of their distribution at numbers in [0, 1)."""
    ends = jnp.isin(rollouts.tokens, jnp.array(drawing.end_token_ids, jnp.int32))
    last = jnp.max(jnp.where(ends, 0, rollouts.steps), axis=1, keepdims=True)
    if self.steps_by == "uniform":
      steps = jnp.minimum((numbers * (last + 1)).astype(jnp.int32), last)
      return steps, jnp.ones(numbers.shape, jnp.float32)
    at = rollouts.steps[..., None] == jnp.arange(drawing.num_steps)
    of_steps = jnp.sum(jnp.where(at, rollouts.entropy[..., None], 0), axis=1) + 1e-8
    of_steps = jnp.where(jnp.arange(drawing.num_steps) <= last, of_steps, 0)
    probability = of_steps / jnp.sum(of_steps, axis=1, keepdims=True)
    below = jnp.cumsum(probability, axis=1)[:, None] <= numbers[..., None]
    steps = jnp.minimum(jnp.sum(below, axis=-1).astype(jnp.int32), last)  # the sum may round to less than 1
    return steps, 1 / ((last + 1) * jnp.take_along_axis(probability, steps, axis=1))

  def loss(self, batch: ScoredRollouts):
    scored, count = batch.views.counted, batch.masks.shape[1]
    total = count * batch.group_size
    over_tokens = lambda values: jnp.sum(jnp.where(scored, batch.views.weights * values, 0)) / total
    student = batch.student.plain
    log_ratio = difference_where(student, batch.logp[:, None], scored)
    loss = over_tokens(clipped_loss(log_ratio, batch.advantages[:, None, None], self.epsilon))
    metrics = ratio_metrics(log_ratio, self.epsilon, scored)
    if batch.ref is not None:
      difference = difference_where(batch.ref.plain, student, scored)
      kl = jnp.exp(log_ratio) * k3(0.0, difference)
      metrics |= kl_metrics(over_tokens(kl), kl, scored)
      loss = loss + self.beta * metrics["kl"]
    return loss, metrics
