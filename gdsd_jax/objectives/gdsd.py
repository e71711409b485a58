"""Guided Denoiser Self-Distillation: the advantage-guided teacher, and the loss towards it (arXiv 2605.29398)."""

import jax.numpy as jnp

from gdsd_jax.objectives.scores import ratio_metrics, Scores, with_kl


def leave_one_out_advantages(rewards, scale_rewards: bool = False):
  """Advantage of each rollout against the others of its group: A_i = r_i − (Σ_j r_j − r_i) / (G − 1).

  Args:
    rewards: float[..., G], a group along the last axis.
    scale_rewards: whether to divide by the group's standard deviation (sample estimate) + 1e-4.

  Returns:
    float[..., G].

  Raises:
    ValueError: G is 1.
  """
  group_size = rewards.shape[-1]
  if group_size < 2:
    raise ValueError(f"group_size: must be at least 2 for leave-one-out advantages, not {group_size}")
  advantages = rewards - (jnp.sum(rewards, axis=-1, keepdims=True) - rewards) / (group_size - 1)
  if scale_rewards:
    advantages = advantages / (jnp.std(rewards, axis=-1, ddof=1, keepdims=True) + 1e-4)
  return advantages


def teacher_scores(old, advantages, psi: float):
  """Log-scores of the teacher p*(x0|xt) ∝ p_old(x0|xt) exp(ψ A(x0)), up to its normaliser: old + ψ A.

  Args:
    old: float[B, M], scores of the old denoiser per token (S_old / L), as ψ is.
    advantages: float[B].
    psi: guidance strength per token.

  Returns:
    float[B, M].
  """
  return old + psi * advantages[:, None]


def gdsd_loss(scores: Scores, old: Scores, ref: Scores | None, advantages, completion_length: int,
              psi: float = 0.04, epsilon: float = 4e-4, beta: float = 1e-3):
  """(1/B) Σ_b Σ_m (clip(S_θ − S_old, log(1−ε), log(1+ε)) / L − ψ A_b)² + β Σ_b Σ_m ½ (S_θ − S_ref)² / (B M L).

  The student's score per token, S_θ / L, is drawn to the teacher's, `teacher_scores(S_old / L, A, ψ)`. The old score is
  a part of both and cancels in their distance, so the loss compares log-ratios to the old denoiser: the student's,
  (S_θ − S_old) / L, with the teacher's, `teacher_scores(0, A, ψ)`. On paper that is the same. In floats S_old / L + ψ A
  would have rounded ψ A to the digits of a score that is some hundred times as large.

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
  low, high = jnp.log1p(jnp.float32(-epsilon)), jnp.log1p(jnp.float32(epsilon))
  student = jnp.clip(log_ratio, low, high) / completion_length
  loss = jnp.sum(jnp.square(student - teacher_scores(0, advantages, psi))) / len(advantages)
  metrics = ratio_metrics(scores.policy, log_ratio, (log_ratio <= low) | (log_ratio >= high), completion_length)
  return with_kl(loss, metrics, scores, ref, completion_length, beta)
