"""The LM head's own part in the backward pass of token scores: it is folded over the vocabulary once more.

Where the head is frozen and no gradient flows through a centre, nothing here is run.
"""

import jax
import jax.numpy as jnp

from gdsd_jax.models.lm_head import accumulator, LMHead, multiply, over_vocabulary, Share


def weight_gradient(head: LMHead, hidden, targets, others, top_tokens, missing, center):
  """Gradient by the head's weight, shaped like it: logits are made again, chunk by chunk.

  With hidden states [B, S, ..., D] the logits of one of the S parts at a time are in memory. `missing` and `center` are
  the cotangents of plain scores, times 1 − p_y, and of centred ones; the rest is as in `_Pass`.
  """
  row_axis, parts = targets.ndim, targets.shape[1] if targets.ndim > 2 else 1

  def by_part(x):
    """[B, S, ..., *row] as [S, rows, *row]."""
    row = x.shape[row_axis:]
    return jnp.swapaxes(x.reshape(len(x), parts, -1, *row), 0, 1).reshape(parts, -1, *row)

  def compute(share: Share, rows):
    rows = jax.tree.map(by_part, rows)

    def step(gradient, weight, start):
      first, size = share.first + start, weight.shape[1]

      def add_part(columns, part):
        hidden, targets, others, top_tokens, missing, center = part
        of_logits = -missing[:, None] * jnp.exp(multiply(hidden, weight) - others[:, None])
        is_target = first + jnp.arange(size) == targets[:, None]
        of_logits = jnp.where(is_target, (missing + center)[:, None], of_logits)
        if top_tokens is not None:
          of_logits -= center[:, None] / top_tokens.shape[1] * _membership(top_tokens - first, size)
        return columns + multiply(hidden.T, of_logits.astype(hidden.dtype)), None

      columns, _ = jax.lax.scan(add_part, jnp.zeros(weight.shape, accumulator(weight.dtype)), rows)
      columns = share.sum_over_batch(columns).astype(gradient.dtype)
      columns = columns.T if head.tied else columns
      return jax.lax.dynamic_update_slice_in_dim(gradient, columns, start, axis=0 if head.tied else 1)

    return share.fold(hidden.dtype, step, jnp.zeros_like(share.head.weight))

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
