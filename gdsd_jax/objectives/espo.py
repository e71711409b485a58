"""The ESPO loss: PPO's clipped objective on the ratio of sequence scores (arXiv 2512.03759)."""

import jax
import jax.numpy as jnp

from gdsd_jax.objectives.ratios import add_kl, ratio_metrics
from gdsd_jax.objectives.scores import Scores


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

  Raises:
    ValueError: beta is not 0, and ref is None.
  """
  over_samples = lambda scores: jax.tree.map(lambda score: jnp.mean(score, axis=1), scores)
  student, previous = over_samples(scores), over_samples(old)
  log_ratio = student.plain - previous.plain
  ratio = jnp.exp(log_ratio / completion_length)
  clipped = jnp.clip(ratio, 1 - epsilon, 1 + epsilon)
  loss = -jnp.mean(jnp.minimum(ratio * advantages, clipped * advantages))
  metrics = ratio_metrics(scores.plain, log_ratio, ratio != clipped, completion_length)
  return add_kl(loss, metrics, student, over_samples(ref), completion_length, beta)
