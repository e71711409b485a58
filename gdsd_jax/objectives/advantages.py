"""Advantages of rollouts against the others of their group, by name."""

import jax.numpy as jnp

ADVANTAGES = ("leave_one_out", "minus_mean", "z_score")


def group_advantages(rewards, kind: str = "leave_one_out", scale_rewards: bool = False):
  """Advantages float[..., G] of rewards float[..., G], a group along the last axis.

  Args:
    rewards: the groups.
    kind: "leave_one_out" (RLOO), "minus_mean" of the group, or "z_score", which divides that by the group's standard
      deviation (GRPO).
    scale_rewards: whether leave-one-out advantages are divided by the standard deviation, too.

  Raises:
    ValueError: G is 1, or there is no such kind.
  """
  if kind == "leave_one_out":
    return leave_one_out_advantages(rewards, scale_rewards)
  if kind not in ADVANTAGES:
    raise ValueError(f"objective.advantages: {kind!r} is not one of {', '.join(ADVANTAGES)}")
  advantages = rewards - jnp.mean(rewards, axis=-1, keepdims=True)
  return scaled(advantages, rewards) if kind == "z_score" else advantages


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
  return scaled(advantages, rewards) if scale_rewards else advantages


def scaled(advantages, rewards):
  """Advantages over the standard deviation of their group (sample estimate) + 1e-4."""
  return advantages / (jnp.std(rewards, axis=-1, ddof=1, keepdims=True) + 1e-4)
