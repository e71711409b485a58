"""What policy-gradient objectives share: clipped ratios, estimates of the KL, and means over the tokens that count."""

from collections.abc import Callable

import jax.numpy as jnp


def clipped_loss(log_ratio, advantages, low: float, high: float | None = None, dual: float | None = None):
  """PPO's −min(r A, clip(r, 1 − low, 1 + high) A), elementwise; the advantages broadcast.

  Args:
    log_ratio: log r.
    advantages: A.
    low, high: the clip range; high is low where it is None.
    dual: c of the dual clip, which holds the loss below −c A where A < 0; None for none.
  """
  ratio = jnp.exp(log_ratio)
  clipped = jnp.clip(ratio, 1 - low, 1 + (low if high is None else high))
  loss = -jnp.minimum(ratio * advantages, clipped * advantages)
  return loss if dual is None else jnp.where(advantages < 0, jnp.minimum(loss, -dual * advantages), loss)


def clipped_share(log_ratio, where, low: float, high: float | None = None):
  """Share of the elements that count, bool, whose ratio lies outside the clip range."""
  ratio = jnp.exp(log_ratio)
  return mean_where((ratio < 1 - low) | (ratio > 1 + (low if high is None else high)), where)


def k3(log_p, log_q):
  """exp(log q − log p) − (log q − log p) − 1, which is never negative; its mean over p is KL(p ‖ q)."""
  difference = log_q - log_p
  return jnp.expm1(difference) - difference


def mean_where(values, where, axis=None):
  """Mean of the elements that count, bool; 0 where there are none."""
  total = jnp.sum(jnp.where(where, values, 0), axis=axis, dtype=jnp.float32)
  count = jnp.sum(jnp.broadcast_to(where, jnp.shape(values)), axis=axis, dtype=jnp.float32)
  return total / jnp.maximum(count, 1)


def difference_where(scores, others, where):
  """scores − others where they count, bool, and 0 elsewhere: what is not scored may be as large as it likes."""
  return jnp.where(where, scores - others, 0)


def grpo_loss(student, old, ref, advantages, scored, over: Callable, objective, dual: float | None = None):
  """(loss, metrics): PPO's clipped loss on ratios of tokens, and β times the k3 estimate of the KL to the reference.

  Args:
    student, old, ref: log-probabilities of tokens, of one shape; ref is None where there is no KL.
    advantages: broadcast to it.
    scored: bool, which of them count.
    over: makes a scalar of their values, such as a mean where they count.
    objective: whose `epsilon` and `beta` hold.
    dual: see `clipped_loss`.
  """
  log_ratio = difference_where(student, old, scored)
  loss = over(clipped_loss(log_ratio, advantages, objective.epsilon, dual=dual))
  metrics = {"clip_fraction": clipped_share(log_ratio, scored, objective.epsilon)}
  if ref is not None:
    metrics["kl"] = over(k3(student, ref))
    loss = loss + objective.beta * metrics["kl"]
  return loss, metrics
