"""UniGRPO, of MMaDA (arXiv 2505.15809): GRPO on the masked tokens, whose share is spread evenly over the updates."""

import dataclasses

import jax
import jax.numpy as jnp

from gdsd_jax.checks import require_one_of
from gdsd_jax.objectives.objective import ScoredRollouts, TrustRegionObjective
from gdsd_jax.objectives.surrogates import grpo_loss, mean_where
from gdsd_jax.objectives.views import Drawing, random_masks, Rollouts, Views

_DIVISORS = ("scored", "length")


@dataclasses.dataclass(frozen=True)
class UniGrpo(TrustRegionObjective):
  """mean_b (1/n_b) Σ_i [−min(r_i A, clip(r_i, 1−ε, 1+ε) A) + β k3(p_i, p_i^ref)] over the n_b masked tokens that count.

  A rollout's share of masked tokens is random for the first update on it, and the later ones are spread evenly from
  there, modulo 1; the prompt is clean. Tokens count up to the first end of text; A is a z-score. Its authors' RL code
  is not released: this is the paper's formula, with the ratio of averaged log-likelihoods read as that of tokens.
  """

  name, by_view = "unigrpo", True
  num_mc, masks, advantages = None, None, "z_score"
  epsilon: float = 0.2  # clip range of the ratio
  beta: float = 0.01  # weight of the KL to the reference
  divided_by: str = "scored"  # or "length": whether a rollout's sum is over its scored tokens, or its length

  def __post_init__(self):
    super().__post_init__()
    require_one_of("objective.divided_by", self.divided_by, _DIVISORS)

  def views(self, key, rollouts: Rollouts, update, drawing: Drawing) -> Views:
    batch, length = rollouts.tokens.shape
    of_share, of_tokens = jax.random.split(key)
    share = (jax.random.uniform(of_share, (batch,), jnp.float32) + update / drawing.updates) % 1
    counts = jnp.clip(jnp.round(share * length).astype(jnp.int32), 1, length)
    masks = random_masks(of_tokens, counts, jnp.ones((batch, length), bool))[:, None]
    return Views(masks, scored=masks & rollouts.counted[:, None])

  def loss(self, batch: ScoredRollouts):
    scored = batch.views.counted[:, 0]
    share = jnp.sum(scored, axis=1, dtype=jnp.float32) / batch.lengths if self.divided_by == "length" else 1
    over_rows = lambda values: jnp.mean(mean_where(values, scored, axis=1) * share)
    student, old, ref = (None if scores is None else scores.plain[:, 0]
                         for scores in (batch.student, batch.old, batch.ref))
    return grpo_loss(student, old, ref, batch.advantages[:, None], scored, over_rows, self)
