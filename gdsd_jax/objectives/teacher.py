"""The advantage-guided teacher, whose denoiser the student distils (GDSD, arXiv 2605.29398)."""

import jax.numpy as jnp


def leave_one_out_advantages(rewards, scale_rewards: bool = False):
  """Advantage of each rollout against the others of its group: A_i = r_i − (Σ_j r_j − r_i) / (G − 1).

  Args:
    rewards: float[..., G], a group along the last axis, G at least 2.
    scale_rewards: whether to divide by the group's standard deviation (sample estimate) + 1e-4.

  Returns:
    float[..., G].

  Raises:
    ValueError: G is 1.
  """
  group_size = rewards.shape[-1]
  if group_size < 2:
    raise ValueError(f"group_size: must be at least 2 for leave-one-out advantages, not {group_size}")
  others = (jnp.sum(rewards, axis=-1, keepdims=True) - rewards) / (group_size - 1)
  advantages = rewards - others
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
  return old + teacher_log_ratio(advantages, psi)[:, None]


def teacher_log_ratio(advantages, psi: float):
  """What the teacher's log-score per token is above the old denoiser's: ψ A, [B] for advantages [B]."""
  return psi * advantages
