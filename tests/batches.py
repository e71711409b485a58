"""Batches of rollouts that several tests score and train on."""

import jax.numpy as jnp
import numpy as np

from gdsd_jax.objectives.objective import ScoredRollouts
from gdsd_jax.objectives.views import Views
from gdsd_jax.runs.gradient import DistillationBatch, ScoringBatch


def coupled_batch(tokens, prompt_mask, masks) -> ScoringBatch:
  """Rollouts in coupled pairs of views, whose first masks are bool[N, M, L]."""
  module = np if isinstance(tokens, np.ndarray) else jnp
  attended = module.concatenate([prompt_mask, module.ones(masks[:, 0].shape, bool)], axis=1)
  return ScoringBatch(tokens, attended, Views(masks, coupled=True))


def distillation_batch(rollouts: ScoringBatch, advantages, scores, ref=None, group_size: int = 2, *, rewards=None,
                       lengths=None, old=None) -> DistillationBatch:
  """A batch whose student has these scores, and so has the old one unless it is given."""
  count, _, length = rollouts.views.masks.shape
  lengths = jnp.full(count, length, jnp.int32) if lengths is None else lengths
  return DistillationBatch(rollouts, ScoredRollouts(
    tokens=rollouts.tokens[:, -length:], lengths=lengths, rewards=advantages if rewards is None else rewards,
    advantages=advantages, confidence=jnp.ones((count, length), jnp.float32), group_size=group_size,
    views=rollouts.views, student=scores, old=scores if old is None else old, ref=ref))
