"""Ranks: how samplers and the forward process pick so many tokens of each row in one compiled shape."""

import jax.numpy as jnp


def descending_rank(x):
  """Rank of each entry of the last axis, 0 the largest; ties in order of position. int[...], of x's shape."""
  return jnp.argsort(jnp.argsort(-x, axis=-1, stable=True), axis=-1)
