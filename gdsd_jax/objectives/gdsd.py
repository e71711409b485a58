"""The GDSD loss: the student's log-score of each rollout is drawn to the teacher's (arXiv 2605.29398)."""

import jax.numpy as jnp

from gdsd_jax.objectives.ratios import add_kl, ratio_metrics
from gdsd_jax.objectives.scores import Scores
from gdsd_jax.objectives.teacher import teacher_log_ratio


def gdsd_loss(scores: Scores, old: Scores, ref: Scores | None, advantages, completion_length: int,
              psi: float = 0.04, epsilon: float = 4e-4, beta: float = 1e-3):
  """(1/B) Σ_b Σ_m (clip(S_θ − S_old, log(1−ε), log(1+ε)) / L − ψ A_b)² + β Σ_b Σ_m ½ (S_θ − S_ref)² / (B M L).

  The student's score per token, S_θ / L, is drawn to the teacher's, `teacher_scores(S_old / L, A, ψ)`, which is
  S_old / L + ψ A. The old score is a part of both and cancels in their distance. So the loss compares log-ratios to the
  old denoiser: the student's, (S_θ − S_old) / L, and the teacher's, ψ A. On paper that is the same; in floats
  S_old / L + ψ A would have rounded ψ A to the digits of a score that is some hundred times as large.

  Args:
    scores: the student's; the loss uses `centered` where it is there (GDSD-TLC) and `plain` otherwise, the KL `plain`.
    old: scores of the student before the first update on these rollouts, on the same masks.
    ref: scores of the reference denoiser on the same masks; may be None when beta is 0.
    advantages: float[B].
    completion_length: L.
    psi: guidance strength per token.
    epsilon: trust region of the log-ratio; 4e-4 suits plain scores, 0.2 centred ones.
    beta: weight of the KL to the reference.

  Returns:
    (loss, metrics): a scalar, and a dict of scalars.

  Raises:
    ValueError: beta is not 0, and ref is None.
  """
  log_ratio = scores.policy - old.policy
  low, high = jnp.log1p(-epsilon), jnp.log1p(epsilon)
  student = jnp.clip(log_ratio, low, high) / completion_length
  teacher = teacher_log_ratio(advantages, psi)[:, None]
  loss = jnp.sum(jnp.square(student - teacher)) / len(advantages)
  metrics = ratio_metrics(scores.policy, log_ratio, (log_ratio <= low) | (log_ratio >= high), completion_length)
  return add_kl(loss, metrics, scores, ref, completion_length, beta)
