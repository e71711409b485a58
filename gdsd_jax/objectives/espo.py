"""The ESPO loss: PPO's clipped objective on the ratio of sequence scores (arXiv 2512.03759)."""

import jax.numpy as jnp

from gdsd_jax.objectives.scores import score_noise, Scores


def espo_loss(scores: Scores, old: Scores, ref: Scores | None, advantages, completion_length: int,
              epsilon: float = 0.2, beta: float = 0.0):
  """−(1/B) Σ_b min(r A, clip(r, 1−ε, 1+ε) A) + β Σ_b ½ (S_θ − S_ref)² / (B L), r = exp((S_θ − S_old) / L).

  S is the plain score averaged over the M mask samples.

  Args:
    scores, old, ref, advantages, completion_length: as for `gdsd_loss`.
    epsilon: clip range of the ratio.
    beta: weight of the KL to the reference.

  Returns:
    (loss, metrics): a scalar, and a dict of scalars.
  """
  if beta and ref is None:
    raise ValueError(f"ref: scores of the reference are needed when beta is {beta}")
  student, previous = jnp.mean(scores.plain, axis=1), jnp.mean(old.plain, axis=1)
  log_ratio = student - previous
  ratio = jnp.exp(log_ratio / completion_length)
  clipped = jnp.clip(ratio, 1 - epsilon, 1 + epsilon)
  loss = -jnp.mean(jnp.minimum(ratio * advantages, clipped * advantages))
  metrics = {
    "log_ratio": jnp.mean(log_ratio),
    "log_ratio_abs": jnp.mean(jnp.abs(log_ratio)),
    "clip_fraction": jnp.mean(ratio != clipped),
    "score": jnp.mean(student) / completion_length,
    "score_noise": score_noise(scores.plain) / completion_length,
  }
  if ref is not None:
    metrics["kl"] = jnp.mean(0.5 * jnp.square(student - jnp.mean(ref.plain, axis=1))) / completion_length
    loss = loss + beta * metrics["kl"]
  return loss, metrics
