"""Advantages of rollouts against the others of their group, by name."""

import jax.numpy as jnp

ADVANTAGES = ("leave_one_out", "minus_mean", "z_score")


def group_advantages(rewards, kind: str = "leave_one_out", scale_rewards: bool = False):
  """Advantages float[..., G] of rewards float[..., G], a group along the last axis.

  A reward that is not-a-number is that of a rollout which none applies to: the others are compared without it, and its
  advantage is 0. So are, exactly, those of a group whose rewards are all equal.

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
  applies = ~jnp.isnan(rewards)
  return _informative(rewards - jnp.mean(rewards, axis=-1, keepdims=True, where=applies), rewards, kind == "z_score")


def leave_one_out_advantages(rewards, scale_rewards: bool = False):
  """Advantage of each rollout against the others of its group: A_i = r_i − (Σ_j r_j − r_i) / (G − 1).

  What is not-a-number, and groups without spread, are as in `group_advantages`.

  Args:
    rewards: float[..., G], a group along the last axis.
    scale_rewards: whether to divide by the group's standard deviation (sample estimate) + 1e-4.

  Returns:
    float[..., G].

  Raises:
    ValueError: G is 1.
  """
  if rewards.shape[-1] < 2:
    raise ValueError(f"group_size: must be at least 2 for leave-one-out advantages, not {rewards.shape[-1]}")
  applies = ~jnp.isnan(rewards)
  total, count = (jnp.sum(x, axis=-1, keepdims=True, where=applies) for x in (rewards, applies))
  return _informative(rewards - (total - rewards) / (count - 1), rewards, scale_rewards)


def _informative(advantages, rewards, scale: bool):
  """Advantages, over their group's standard deviation if asked for, and 0 where the rewards of a group say nothing."""
  applies = ~jnp.isnan(rewards)
  if scale:
    advantages = scaled(advantages, rewards)
  # Asked of the rewards themselves: rounding leaves some 1e-8 of the advantages of equal ones, such as 0.1.
  most = jnp.max(jnp.where(applies, rewards, -jnp.inf), axis=-1, keepdims=True)
  least = jnp.min(jnp.where(applies, rewards, jnp.inf), axis=-1, keepdims=True)
  return jnp.where(applies & (most > least), advantages, 0)


def scaled(advantages, rewards):
  """Advantages over the standard deviation of their group (sample estimate) + 1e-4."""
  return advantages / (jnp.std(rewards, axis=-1, ddof=1, keepdims=True, where=~jnp.isnan(rewards)) + 1e-4)
