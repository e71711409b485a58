"""What is told of scores beside the loss, in a step's metrics (docs/metrics.md); no gradient goes through any of it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from gdsd_jax.objectives.objective import ScoredRollouts
from gdsd_jax.objectives.scores import Scores, token_weights
from gdsd_jax.objectives.surrogates import largest_where, mean_where
from gdsd_jax.objectives.views import Rollouts, Views


def per_token(scores, views: Views, blocks=None):
  """The score of a completion per token in each of its views, and where a view has one.

  A coupled pair's is ½ Σ w_i s_i / L with the weights of the forward process; with uniform masks and log-probabilities
  s_i it is an unbiased estimate of the ELBO. That of another view is the mean over the tokens that are scored there.

  Args:
    scores: float32[N, V, L], of tokens.
    views: V views of N rollouts.
    blocks: the rollouts', see `Rollouts`.

  Returns:
    (float32[N, V], bool[N, V]).
  """
  if views.coupled:
    return 0.5 * jnp.mean(token_weights(views.masks, blocks) * scores, axis=-1), jnp.ones(scores.shape[:2], bool)
  return mean_where(scores, views.counted, axis=-1), jnp.any(views.counted, axis=-1)


def score_metrics(batch: ScoredRollouts) -> dict[str, jax.Array]:
  """Means over rollouts and views of the student's scores per token, and how far the views of a rollout differ."""
  student = batch.student
  scores, told = per_token(student.policy, batch.views, batch.blocks)
  mean = mean_where(scores, told, axis=1)
  metrics = {
    "score": mean_where(scores, told),
    "largest_score": largest_where(scores, told),
    "score_noise": jnp.mean(jnp.sqrt(mean_where(jnp.square(scores - mean[:, None]), told, axis=1))),
  }
  if student.centered is not None and student.plain is not None:
    metrics["score_plain"] = mean_where(*per_token(student.plain, batch.views, batch.blocks))
  return metrics


def policy_entropy(scores: Sequence[Scores], views: Sequence[Views]) -> jax.Array | None:
  """Mean entropy in nats of the distribution over a token, the policy's own, of the tokens that are scored in views.

  With coupled pairs these are all tokens of the completions, each in the one state of a pair in which it is masked: in
  states of the forward process, which are like those that the sampler visited, and not only the last one before a token
  was committed. None where the scores need no logits, and so tell no entropy.
  """
  entropies = [each.entropy for each in scores]
  return None if entropies[0] is None else _mean(entropies, [each.counted for each, _ in zip(views, scores)])


@jax.jit
def _mean(arrays, where):
  return mean_where(jnp.stack(arrays), jnp.stack(where))


@jax.jit
def mismatch(rollouts: Rollouts, scores: Sequence[Scores], views: Sequence[Views]) -> dict[str, jax.Array]:
  """The log-probability of each rollout's own trajectory beside what its views estimate, both per token.

  The first is the mean of `rollouts.logp` over the tokens that any of the views scores, the second that of
  `per_token` over the views. What moves a policy gradient is how their difference varies within a group: its spread
  there, and the correlation of the two, over all groups after each is centred.

  Args:
    rollouts: N rollouts that remember `logp`.
    scores: those of their tokens under one policy, for each set of views.
    views: sets of views of these rollouts; those beyond the sets of scores are not looked at.
  """
  views = views[:len(scores)]
  found = [per_token(each.plain, seen, rollouts.blocks) for each, seen in zip(scores, views)]
  elbo = mean_where(*(jnp.concatenate(parts, axis=1) for parts in zip(*found)), axis=1)
  scored = jnp.any(jnp.concatenate([seen.counted for seen in views], axis=1), axis=1)
  trajectory = mean_where(rollouts.logp, scored, axis=1)

  def centred(values):
    groups = values.reshape(-1, rollouts.group_size)
    return groups - jnp.mean(groups, axis=1, keepdims=True)

  one, other, gap = centred(elbo), centred(trajectory), elbo - trajectory
  return {
    "trajectory_logp": jnp.mean(trajectory),
    "elbo": jnp.mean(elbo),
    "elbo_gap": jnp.mean(gap),
    "elbo_gap_std": jnp.mean(jnp.sqrt(jnp.mean(jnp.square(centred(gap)), axis=1))),
    "elbo_correlation": jnp.sum(one * other) / jnp.sqrt(jnp.sum(jnp.square(one)) * jnp.sum(jnp.square(other))),
  }
