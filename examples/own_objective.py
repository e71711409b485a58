"""Objectives of one's own: PPO on the ratios of single tokens, as a class, and a policy gradient, as a function.

  gdsd-train --config=gdsd_math:tiny --config.objective.name=examples/own_objective.py:TokenPPO \
    --config.objective.beta=0.01 --config.masks.kind=uniform
  gdsd-train --config=gdsd_math:tiny --config.objective.name=examples/own_objective.py:policy_gradient \
    --config.objective.epsilon=None --config.objective.scale=2.0
"""

import dataclasses

import jax.numpy as jnp

import gdsd_jax


@dataclasses.dataclass(frozen=True)
class TokenPPO(gdsd_jax.Objective):
  """−min(r A, clip(r) A) + β k3(p, p_ref), averaged over tokens up to the end of text; r = p / p_old of a token."""

  epsilon: float = 0.2  # the recipe sets this field, as --config.objective.epsilon would
  beta: float = 0.04

  @property
  def needs_reference(self):
    return self.beta > 0

  def loss(self, batch):
    student, old = batch.student.plain, batch.old.plain  # log-probabilities, float32[N, M, L]
    advantages = batch.advantages[:, None, None]
    ratio = jnp.exp(student - old)
    clipped = jnp.clip(ratio, 1 - self.epsilon, 1 + self.epsilon)
    loss = -mean(jnp.minimum(ratio * advantages, clipped * advantages), batch)
    metrics = {"clip_fraction": mean(ratio != clipped, batch)}
    if self.beta > 0:
      difference = batch.ref.plain - student
      metrics["kl"] = mean(jnp.expm1(difference) - difference, batch)
      loss = loss + self.beta * metrics["kl"]
    return loss, metrics


def policy_gradient(batch, *, scale: float = 1.0):
  """−A log p, averaged over tokens up to the end of text."""
  return -scale * mean(batch.advantages[:, None, None] * batch.student.plain, batch)


def mean(values, batch):
  """The mean of [N, M, L] values over what counts, bool[N, L]."""
  counted = jnp.broadcast_to(batch.counted[:, None], batch.masks.shape)
  return jnp.sum(counted * values) / jnp.sum(counted)
