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


def log_ratio_metrics(log_ratio, clipped, where=True) -> dict:
  """What is told of the ratios that a loss clips: their logs where they count, bool, and the share that is clipped."""
  return {
    "log_ratio": mean_where(log_ratio, where),
    "log_ratio_abs": mean_where(jnp.abs(log_ratio), where),
    "largest_log_ratio": largest_where(log_ratio, where),
    "clip_fraction": mean_where(clipped, where),
  }


def ratio_metrics(log_ratio, epsilon: float, where=True) -> dict:
  """`log_ratio_metrics` of ratios that are clipped to 1 ± ε."""
  ratio = jnp.exp(log_ratio)
  return log_ratio_metrics(log_ratio, (ratio < 1 - epsilon) | (ratio > 1 + epsilon), where)


def kl_metrics(kl, values, where=True) -> dict:
  """The KL to the reference as the loss has it, and the largest of the values that it is made of, where they count."""
  return {"kl": kl, "largest_kl": largest_where(values, where)}


def k3(log_p, log_q):
  """exp(log q − log p) − (log q − log p) − 1, which is never negative; its mean over p is KL(p ‖ q)."""
  difference = log_q - log_p
  return jnp.expm1(difference) - difference


def mean_where(values, where, axis=None):
  """Mean of the elements that count, bool; 0 where there are none."""
  total = jnp.sum(jnp.where(where, values, 0), axis=axis, dtype=jnp.float32)
  count = jnp.sum(jnp.broadcast_to(where, jnp.shape(values)), axis=axis, dtype=jnp.float32)
  return total / jnp.maximum(count, 1)


def largest_where(values, where=True):
  """The largest magnitude of the elements that count, bool; 0 where there are none."""
  return jnp.max(jnp.where(where, jnp.abs(values), 0))


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
  metrics = ratio_metrics(log_ratio, objective.epsilon, scored)
  if ref is not None:
    kl = k3(0.0, difference_where(ref, student, scored))
    metrics |= kl_metrics(over(kl), kl, scored)
    loss = loss + objective.beta * metrics["kl"]
  return loss, metrics
