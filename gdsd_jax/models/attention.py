"""Attention of queries to keys and values: the one place that chooses how it is computed."""

import jax
from jax.sharding import Mesh


def attend(query, key, value, mask, mesh: Mesh | None):
  """Softmax attention, bidirectional, scaled by the root of the head's width; the softmax is in float32.

  Args:
    query: [B, T, N, H], rotated.
    key, value: [B, S, K, H], the key rotated; each serves N / K query heads.
    mask: bool[B, S] of the keys that may be attended to, or None for all.
    mesh: that the arrays are laid out over, or None.

  Returns:
    [B, T, N, H].
  """
  mask = None if mask is None else mask[:, None, None, :]
  return jax.nn.dot_product_attention(query, key, value, mask=mask)
