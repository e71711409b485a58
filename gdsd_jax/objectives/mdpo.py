"""MDPO (arXiv 2508.13148): GRPO on the full predictions of single denoising steps, each with a reward of its own."""

import dataclasses

import jax
import jax.numpy as jnp

from gdsd_jax.checks import require
from gdsd_jax.objectives.advantages import group_advantages
from gdsd_jax.objectives.objective import ScoredRollouts, TrustRegionObjective
from gdsd_jax.objectives.surrogates import clipped_loss, difference_where, kl_metrics, ratio_metrics
from gdsd_jax.objectives.views import Drawing, Rollouts, Views


@dataclasses.dataclass(frozen=True)
class Mdpo(TrustRegionObjective):
  """mean_b Σ_t Σ_masked conf_i [−λ_t min(r_i A_t, clip(r_i, 1−ε, 1+ε) A_t) + β ½ (log p_i^ref/p_i)²] / (n_t + 1e-4).

  R_t is the reward of the prediction of all tokens at step t; A_t is the z-score over the group of
  R_t − R_{t−1} + 1 + the mean of the later R, which in the last step is R_t itself. A rollout trains its M steps of the
  largest |A_t|: in the view before step t all n_t masked tokens are scored as they were predicted there, not as they
  came to be, and weighed by that prediction's confidence; λ_t = L/(n_t + 1e-4). Source: autonomousvision/mdpo@e6ae439.
  """

  name, by_view = "mdpo", True
  num_mc, masks, advantages, needs = 8, None, None, frozenset({"steps", "predictions"})
  epsilon: float = 0.2  # clip range of the ratio
  beta: float = 0.02  # weight of the KL to the reference
  temperature: float | None = None  # T of the scores; None for that of the sampler

  def __post_init__(self):
    super().__post_init__()
    T = self.temperature
    require(T is None or T > 0, "objective.temperature", f"must be positive, not {T}")

  @property
  def scoring(self):
    return dataclasses.replace(TrustRegionObjective.scoring, temperature=self.temperature)

  def views(self, key, rollouts: Rollouts, update, drawing: Drawing) -> Views:
    predictions = rollouts.predictions
    count, num_mc = predictions.rewards.shape[1], drawing.num_mc
    require(num_mc <= count, "objective.num_mc", f"{num_mc} must be at most the {count} steps of a rollout")
    advantages = step_advantages(predictions.rewards, rollouts.group_size)
    _, steps = jax.lax.top_k(jnp.abs(advantages), num_mc)
    of_steps = lambda values: jnp.take_along_axis(values, steps.reshape(*steps.shape, *[1] * (values.ndim - 2)), axis=1)
    masks = rollouts.steps[:, None] >= steps[..., None]
    weights = of_steps(advantages)[..., None] * jnp.ones(masks.shape, jnp.float32)
    return Views(masks, weights=jnp.stack([weights, of_steps(predictions.confidence)], axis=-1),
                 targets=of_steps(predictions.tokens))

  def loss(self, batch: ScoredRollouts):
    scored, student = batch.views.counted, batch.student.plain
    advantages, confidence = batch.views.weights[..., 0], batch.views.weights[..., 1]
    masked = jnp.sum(scored, axis=-1) + 1e-4
    over_rows = lambda values: jnp.mean(jnp.sum(
      jnp.sum(jnp.where(scored, confidence * values, 0), axis=-1) / masked, axis=1))
    log_ratio = difference_where(student, batch.old.plain, scored)
    surrogate = clipped_loss(log_ratio, advantages, self.epsilon)
    loss = over_rows(scored.shape[-1] / masked[..., None] * surrogate)
    metrics = ratio_metrics(log_ratio, self.epsilon, scored)
    if batch.ref is not None:
      kl = 0.5 * jnp.square(batch.ref.plain - student)
      metrics |= kl_metrics(over_rows(kl), kl, scored)
      loss = loss + self.beta * metrics["kl"]
    return loss, metrics


def step_advantages(rewards, group_size: int):
  """A_t of MDPO, float32[N, S], from the rewards of the predictions of N rollouts at S steps."""
  steps = rewards.shape[1]
  before = jnp.concatenate([jnp.zeros_like(rewards[:, :1]), rewards[:, :-1]], axis=1)
  from_end = jnp.cumsum(rewards[:, ::-1], axis=1)[:, ::-1]
  later = ((from_end - rewards) / jnp.maximum(jnp.arange(steps)[::-1], 1)).at[:, -1].set(rewards[:, -1])
  scores = rewards - before + 1 + later
  groups = jnp.moveaxis(scores.reshape(-1, group_size, steps), 1, -1)
  return jnp.moveaxis(group_advantages(groups, "z_score"), -1, 1).reshape(scores.shape)
