"""What the losses converge to, against the closed-form teacher on a vocabulary small enough to enumerate.

See `gdsd_jax/exact/fixed_point.py`.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gdsd_jax.exact.fixed_point import minimise, problem, teacher, VOCABULARY
from gdsd_jax.objectives.advantages import ADVANTAGES, group_advantages, leave_one_out_advantages
from gdsd_jax.objectives.gdsd import gdsd_loss, teacher_scores
from gdsd_jax.objectives.scores import Scores


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def student_of(logits, advantages, psi, center_top_k):
  student, norm = minimise(logits, advantages, psi, center_top_k)
  assert norm < 1e-5
  return student


@pytest.mark.parametrize("psi", [0.05, 0.2])
def test_tlc_with_the_full_centre_converges_to_the_closed_form_teacher(psi):
  logits, advantages = problem()
  student = student_of(logits, advantages, psi, center_top_k=VOCABULARY)
  assert jnp.max(jnp.abs(student - teacher(logits, advantages, psi))) < 1e-3 * psi
  assert jnp.max(jnp.abs(student - jax.nn.softmax(logits))) > 0.05 * psi  # and that is not where it began


def test_plain_gdsd_misses_the_teacher_by_the_square_of_psi():
  logits, advantages = problem()
  psis = np.array([0.02, 0.04, 0.08])
  distances = [
    float(jnp.linalg.norm(student_of(logits, advantages, psi, None) - teacher(logits, advantages, psi))) for psi in psis
  ]
  slope = np.polyfit(np.log(psis), np.log(distances), 1)[0]
  assert abs(slope - 2) < 0.2


def test_teacher_scores_are_the_closed_form_up_to_a_constant():
  logits, advantages = problem()
  old = jax.nn.log_softmax(logits)
  scores = teacher_scores(old[:, None], advantages, 0.3)[:, 0]
  constant = scores - jnp.log(teacher(logits, advantages, 0.3))
  chex.assert_trees_all_close(constant, jnp.full(VOCABULARY, constant[0]), atol=1e-12)


def test_the_loss_is_the_distance_to_the_teachers_scores():
  """The loss leaves the old score out of both; here it is in both, in float64."""
  rng, length, psi = np.random.default_rng(0), 8, 0.04
  old, advantages = jnp.asarray(rng.normal(size=(4, 2)) - 50), jnp.asarray(rng.normal(size=4))
  student = old + jnp.asarray(rng.normal(size=(4, 2)))
  loss = lambda student: gdsd_loss(Scores(student), Scores(old), None, advantages, length, psi, 0.999, beta=0.0)[0]
  teacher = teacher_scores(old / length, advantages, psi)
  inside = jnp.clip(student, old + jnp.log1p(-0.999), old + jnp.log1p(0.999))
  chex.assert_trees_all_close(loss(student), jnp.sum(jnp.square(inside / length - teacher)) / 4, rtol=1e-12)
  assert loss(teacher * length) < 1e-25


def test_leave_one_out_advantages_are_the_formula():
  rewards = np.random.default_rng(1).normal(size=(3, 5))
  expected = np.array([[r - np.delete(row, i).mean() for i, r in enumerate(row)] for row in rewards])
  chex.assert_trees_all_close(leave_one_out_advantages(jnp.asarray(rewards)), expected, atol=1e-12)
  scaled = expected / (rewards.std(axis=1, ddof=1, keepdims=True) + 1e-4)
  chex.assert_trees_all_close(leave_one_out_advantages(jnp.asarray(rewards), scale_rewards=True), scaled, atol=1e-12)


@pytest.mark.parametrize("kind", ADVANTAGES)
def test_a_group_without_spread_has_no_advantages_at_all(kind):
  """Rounding leaves 1e-8 of them where all rewards are 0.1, and some losses count the rollouts whose are not 0."""
  for size in range(2, 20):
    rewards = jnp.full((4, size), jnp.array([[0.1], [0.3], [1.1], [0.7]]), jnp.float32)
    assert not group_advantages(rewards, kind).any()
    spread = rewards.at[:, 0].add(0.5)
    assert (group_advantages(spread, kind) != 0).all()


@pytest.mark.parametrize("kind", ADVANTAGES)
def test_a_rollout_that_no_reward_applies_to_is_left_out_of_its_group(kind):
  rewards = jnp.array([[1.0, jnp.nan, 0.25, 0.5], [jnp.nan, 2.0, jnp.nan, jnp.nan], [jnp.nan] * 4], jnp.float32)
  others = group_advantages(rewards[:1, jnp.array([0, 2, 3])], kind)[0]
  expected = jnp.array([[others[0], 0, others[1], others[2]], [0] * 4, [0] * 4])
  chex.assert_trees_all_close(group_advantages(rewards, kind), expected, rtol=1e-6)


def test_a_group_of_one_is_refused():
  with pytest.raises(ValueError, match="group_size"):
    leave_one_out_advantages(jnp.ones((3, 1)))
