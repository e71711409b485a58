"""The ESPO loss: PPO's clipped objective on the ratio of sequence scores (arXiv 2512.03759)."""

import dataclasses

import jax
import jax.numpy as jnp

from gdsd_jax.objectives.objective import ScoredRollouts, TrustRegionObjective
from gdsd_jax.objectives.scores import Scores, with_kl
from gdsd_jax.objectives.surrogates import log_ratio_metrics


def espo_loss(scores: Scores, old: Scores, ref: Scores | None, advantages, completion_length: int,
              epsilon: float = 0.2, beta: float = 0.0):
  """−(1/B) Σ_b min(r A, clip(r, 1−ε, 1+ε) A) + β Σ_b ½ (S_θ − S_ref)² / (B L), r = exp((S_θ − S_old) / L).

  S is the plain score averaged over the M mask samples. The arguments, results and errors are those of `gdsd_loss`;
  epsilon is the clip range of the ratio.
  """
  over_samples = lambda scores: jax.tree.map(lambda score: jnp.mean(score, axis=1), scores)
  student = over_samples(scores)
  log_ratio = student.plain - over_samples(old).plain
  ratio = jnp.exp(log_ratio / completion_length)
  clipped = jnp.clip(ratio, 1 - epsilon, 1 + epsilon)
  loss = -jnp.mean(jnp.minimum(ratio * advantages, clipped * advantages))
  metrics = log_ratio_metrics(log_ratio, ratio != clipped)
  return with_kl(loss, metrics, student, over_samples(ref), completion_length, beta)


@dataclasses.dataclass(frozen=True)
class Espo(TrustRegionObjective):
  """ESPO, see `espo_loss`; its authors' masks are of the whole completion, and so are ours unless masks.kind is set."""

  name = "espo"
  masks = "uniform"
  epsilon: float = 0.2  # clip range of the ratio
  beta: float = 1e-3  # weight of the KL to the reference
  weighted: bool = True  # whether tokens have the weights of the forward process

  def loss(self, batch: ScoredRollouts):
    """(loss, metrics); see `espo_loss`."""
    student, old, ref = batch.pair_scores(self.weighted)
    return espo_loss(student, old, ref, batch.advantages, batch.masks.shape[-1], self.epsilon, self.beta)
