"""What losses on ratios of sequence scores share: the KL to the reference, and the metrics that they report."""

import jax.numpy as jnp

from gdsd_jax.objectives.scores import Scores


def add_kl(loss, metrics, scores: Scores, ref: Scores | None, completion_length: int, beta: float):
  """(loss + β KL, metrics with "kl"), where KL is the mean of ½ (S_θ − S_ref)² / L.

  The scores are always the plain ones: under TLC the vocabulary mean of two different models does not cancel, and
  squared and multiplied by L it would explode.

  Args:
    loss: scalar.
    metrics: dict of scalars.
    scores, ref: scores of student and reference, of one shape; without ref there is no KL.
    completion_length: L.
    beta: weight of the KL.

  Raises:
    ValueError: beta is not 0, and there is no ref.
  """
  if ref is None:
    if beta:
      raise ValueError(f"ref: scores of the reference are needed when beta is {beta}")
    return loss, metrics
  kl = jnp.mean(0.5 * jnp.square(scores.plain - ref.plain)) / completion_length
  return loss + beta * kl, {**metrics, "kl": kl}


def ratio_metrics(scores, log_ratio, clipped, completion_length: int) -> dict:
  """Means of what a ratio loss sees.

  Args:
    scores: float[B, M], the student's. Their noise is the standard deviation of a rollout's score across its M mask
      samples, averaged over rollouts: 0 when M is 1.
    log_ratio: S_θ − S_old.
    clipped: bool, where the trust region holds the ratio.
    completion_length: L; scores are reported per token.
  """
  return {
    "log_ratio": jnp.mean(log_ratio),
    "log_ratio_abs": jnp.mean(jnp.abs(log_ratio)),
    "clip_fraction": jnp.mean(clipped),
    "score": jnp.mean(scores) / completion_length,
    "score_noise": jnp.mean(jnp.std(scores, axis=1)) / completion_length,
  }
