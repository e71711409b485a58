"""SPG (arXiv 2510.09541): a lower bound of the likelihood for good rollouts, an upper one for bad ones."""

import dataclasses

import jax
import jax.numpy as jnp

from gdsd_jax.checks import require, require_one_of
from gdsd_jax.objectives.objective import Objective, ScoredRollouts
from gdsd_jax.objectives.views import Drawing, random_masks, Rollouts, Views

_BOUNDS = ("mix", "eubo", "elbo", "zero")


@dataclasses.dataclass(frozen=True)
class Spg(Objective):
  """−Σ_b A_b ℓ_b n_b / Σ n_b, where ℓ = ELBO if A > 0, else w EUBO + (1 − w) ELBO.

  With m_ij = 1 for the masked tokens of view j up to the end of text, of which there are n in a completion:
  ELBO = mean_j (Σ_i m_ij log p_ij / Σ_i m_ij); u_i = mean_j (p_ij^β m_ij n / Σ_i m_ij);
  EUBO = mean over u_i > 0 of log u_i / β. A = R − mean. Source: facebookresearch/SPG@a1c7120.

  View j masks U{1, …} random tokens of a block, all later ones, all after the end of text, and each position before the
  block, prompt and completion alike, with probability 0.15. Its block is the j-th of a random permutation, modulo the
  number of blocks with text.
  """

  name = "spg"
  needs_old, masks, advantages = False, None, "minus_mean"
  eubo_beta: float = 1.5  # β, exponent of the probabilities in the upper bound
  mix_weight: float = 0.5  # w, share of the upper bound in ℓ of rollouts with A ≤ 0
  negative: str = "mix"  # ℓ of rollouts with A ≤ 0: "mix", "eubo", "elbo", or "zero", which leaves them out
  context_masking: float = 0.15  # probability that a position before the block is masked

  def __post_init__(self):
    require(self.eubo_beta > 0, "objective.eubo_beta", f"must be positive, not {self.eubo_beta}")
    require(0 <= self.mix_weight <= 1, "objective.mix_weight", f"must lie between 0 and 1, not {self.mix_weight}")
    require_one_of("objective.negative", self.negative, _BOUNDS)
    share = self.context_masking
    require(0 <= share < 1, "objective.context_masking", f"must lie in [0, 1), not {share}")

  def views(self, key, rollouts: Rollouts, update, drawing: Drawing) -> Views:
    batch, length = rollouts.tokens.shape
    K, P, J = drawing.block_length or length, drawing.prompt_length, drawing.num_mc
    require(length // K >= J, "objective.num_mc", f"{J} must be at most the number of blocks, {length // K}")
    of_blocks, of_counts, of_tokens, of_context = jax.random.split(key, 4)
    orders = jax.vmap(lambda key: jax.random.permutation(key, length // K)[:J])(jax.random.split(of_blocks, batch))
    n = rollouts.lengths[:, None]
    block = (orders % (-(-n // K)))[..., None]  # [N, J, 1]
    position, text = jnp.arange(length), rollouts.counted[:, None]
    inside = (position // K == block) & text
    most = jnp.sum(inside, axis=-1)
    counts = jax.random.randint(of_counts, most.shape, 1, most + 1, jnp.int32)
    context = jax.random.uniform(of_context, (batch, J, P + length), jnp.float32) < self.context_masking
    before = position // K < block
    masks = random_masks(of_tokens, counts, inside) | (position // K > block) | (before & context[..., P:]) | ~text
    return Views(masks, scored=masks & text, prompt_masks=context[..., :P])

  def bounds(self, scores, scored, n):
    """(ELBO, EUBO) per token, float32[N], of scores [N, J, L] of the scored tokens of completions of n, [N]."""
    scores = jnp.where(scored, scores, 0)
    masked = jnp.maximum(jnp.sum(scored, axis=-1), 1)
    elbo = jnp.mean(jnp.sum(scores, axis=-1) / masked, axis=1)
    shares = jnp.where(scored, jnp.exp(self.eubo_beta * scores) * (n[:, None] / masked)[..., None], 0)
    means = jnp.mean(shares, axis=1)
    seen = means > 0  # neither unscored nor so improbable that it is 0 in float32
    logs = jnp.where(seen, jnp.log(jnp.where(seen, means, 1)), 0)
    return elbo, jnp.sum(logs, axis=-1) / jnp.maximum(jnp.sum(seen, axis=-1), 1) / self.eubo_beta

  def loss(self, batch: ScoredRollouts):
    n = batch.lengths.astype(jnp.float32)
    elbo, eubo = self.bounds(batch.student.plain, batch.views.counted, n)
    mixed = self.mix_weight * eubo + (1 - self.mix_weight) * elbo
    negative = {"mix": mixed, "eubo": eubo, "elbo": elbo, "zero": jnp.zeros_like(elbo)}[self.negative]
    bound = jnp.where(batch.advantages > 0, elbo, negative)
    loss = -jnp.sum(batch.advantages * bound * n) / jnp.sum(n)
    return loss, {"bound_gap": jnp.mean(eubo - elbo)}
