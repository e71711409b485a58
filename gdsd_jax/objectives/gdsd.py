"""The GDSD loss: the student's log-score of each rollout is drawn to the teacher's (arXiv 2605.29398)."""

import jax.numpy as jnp

from gdsd_jax.objectives.scores import score_noise, Scores
from gdsd_jax.objectives.teacher import teacher_scores


def gdsd_loss(scores: Scores, old: Scores, ref: Scores | None, advantages, completion_length: int,
              psi: float = 0.04, epsilon: float = 4e-4, beta: float = 1e-3):
  """(1/B) Σ_b Σ_m (clip(S_θ − S_old, log(1−ε), log(1+ε)) / L − ψ A_b)² + β KL.

  KL = Σ_b Σ_m ½ (S_θ − S_ref)² / (B M L), always on plain scores: under TLC the vocabulary mean of two different models
  does not cancel, and squared and multiplied by L it would explode.

  Args:
    scores: of the student; `centered` is used where it is there (GDSD-TLC), `plain` otherwise.
    old: of the student before the first update on these rollouts, on the same masks.
    ref: of the reference denoiser, on the same masks; may be None when beta is 0.
    advantages: float[B].
    completion_length: L.
    psi: guidance strength per token.
    epsilon: trust region of the log-ratio; 4e-4 suits plain scores, 0.2 centred ones.
    beta: weight of the KL to the reference.

  Returns:
    (loss, metrics): a scalar, and a dict of scalars.
  """
  if beta and ref is None:
    raise ValueError(f"ref: scores of the reference are needed when beta is {beta}")
  student, previous = _policy_scores(scores), _policy_scores(old)
  log_ratio = student - previous
  low, high = jnp.log1p(-epsilon), jnp.log1p(epsilon)
  # Student and teacher both relative to the old denoiser: its score would cancel, but not its rounding.
  teacher = teacher_scores(jnp.zeros_like(previous), advantages, psi)
  residual = jnp.clip(log_ratio, low, high) / completion_length - teacher
  loss = jnp.sum(jnp.square(residual)) / len(advantages)
  metrics = {
    "log_ratio": jnp.mean(log_ratio),
    "log_ratio_abs": jnp.mean(jnp.abs(log_ratio)),
    "clip_fraction": jnp.mean((log_ratio <= low) | (log_ratio >= high)),
    "score": jnp.mean(student) / completion_length,
    "score_noise": score_noise(student) / completion_length,
  }
  if ref is not None:
    metrics["kl"] = jnp.mean(0.5 * jnp.square(scores.plain - ref.plain)) / completion_length
    loss = loss + beta * metrics["kl"]
  return loss, metrics


def _policy_scores(scores: Scores):
  return scores.plain if scores.centered is None else scores.centered
