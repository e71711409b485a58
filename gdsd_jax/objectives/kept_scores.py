"""Scores of tokens among those that a sampler's filters left, a few of the vocabulary."""

import jax
import jax.numpy as jnp

from gdsd_jax.models.lm_head import LMHead


def kept_scores(head: LMHead, hidden, targets, kept):
  """log softmax over the kept tokens, float32[B, ..., L], for hidden states [B, ..., L, D] and targets int[B, ..., L].

  kept: int[B, ..., L, K] tokens, -1 for none; the target is among them. A position at a time goes through the head, so
  that no more than its K columns are made.
  """
  rows = lambda x, trailing: jnp.moveaxis(x.reshape(-1, *x.shape[x.ndim - trailing:]), 1, 0)

  @jax.checkpoint
  def of_position(position):
    hidden, targets, kept = position  # [R, D], [R], [R, K]
    columns = head.columns(jnp.maximum(kept, 0)).astype(jnp.float32)
    logits = jnp.einsum("rd,rkd->rk", hidden.astype(jnp.float32), columns)
    logits = jnp.where(kept >= 0, logits, -jnp.inf)
    of_target = jnp.sum(jnp.where(kept == targets[:, None], logits, 0), axis=-1)
    return of_target - jax.nn.logsumexp(logits, axis=-1)

  scores = jax.lax.map(of_position, (rows(hidden, 2), rows(targets, 1), rows(kept, 2)))
  return jnp.moveaxis(scores, 0, 1).reshape(targets.shape)
