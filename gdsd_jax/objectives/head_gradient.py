"""The LM head's own part in the backward pass of token scores: it is folded over the vocabulary once more.

Where the head is frozen and no gradient flows through a centre, nothing here is run.
"""

import jax
import jax.numpy as jnp

from gdsd_jax.models.lm_head import accumulator, LMHead, multiply, over_vocabulary, Share


def weight_gradient(head: LMHead, hidden, targets, others, top_tokens, missing, center):
  """Gradient by the head's weight, shaped like it, added to `head.gradient`: logits are made again, chunk by chunk.

  `missing` and `center` are the cotangents of plain scores, times 1 − p_y, and of centred ones; the rest is as in
  `_Pass`.
  """

  def compute(share: Share, rows):
    flat = lambda x, trailing=0: None if x is None else x.reshape(-1, *x.shape[x.ndim - trailing:])
    hidden, targets, others, top_tokens, missing, center = rows
    hidden, top_tokens = flat(hidden, 1), flat(top_tokens, 1)
    targets, others, missing, center = (flat(x)[:, None] for x in (targets, others, missing, center))

    def step(gradient, weight, start):
      first, size = share.first + start, weight.shape[1]
      of_logits = -missing * jnp.exp(multiply(hidden, weight) - others)
      is_target = first + jnp.arange(size) == targets
      of_logits = jnp.where(is_target, missing + center, of_logits)
      if top_tokens is not None:
        of_logits -= center / top_tokens.shape[1] * _membership(top_tokens - first, size)
      columns = share.sum_over_rows(multiply(hidden.T, of_logits.astype(hidden.dtype))).astype(gradient.dtype)
      axis, columns = share.head.axis, columns.T if head.tied else columns
      before = jax.lax.dynamic_slice_in_dim(gradient, start, size, axis)
      return jax.lax.dynamic_update_slice_in_dim(gradient, before + columns, start, axis)

    before = share.head.gradient
    return share.fold(hidden.dtype, step, jnp.zeros_like(share.head.weight) if before is None else before)

  return over_vocabulary(compute, head, (hidden, targets, others, top_tokens, missing, center), gives_weight=True)


def mean_of_columns(head: LMHead, tokens, like):
  """Mean of the head's columns of each row's tokens, [B, ..., D] for int[B, ..., k], summed in the dtype of `like`."""

  def compute(share: Share, tokens):
    flat = tokens.reshape(-1, tokens.shape[-1]) - share.first

    def step(total, weight, start):
      return total + multiply(_membership(flat - start, weight.shape[1]).astype(like.dtype), weight.T)

    total = share.fold(like.dtype, step, jnp.zeros((len(flat), like.shape[-1]), accumulator(like.dtype)))
    return share.sum(total).reshape(*tokens.shape[:-1], -1) / tokens.shape[-1]

  return over_vocabulary(compute, head, tokens)


def _membership(tokens, size: int):
  """1 at each of a row's tokens that lie in 0 … size, else 0: int[R, k] -> float32[R, size]."""
  places = jnp.where((tokens >= 0) & (tokens < size), tokens, size)  # a negative index would count from the end
  return jnp.zeros((len(tokens), size), jnp.float32).at[jnp.arange(len(tokens))[:, None], places].set(1, mode="drop")
