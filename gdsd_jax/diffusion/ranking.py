"""Ranks: how samplers and the forward process pick so many tokens of each row in one compiled shape; and what may not
be picked."""

import jax.numpy as jnp


def descending_rank(x):
  """Rank of each entry of the last axis, 0 the largest; ties in order of position. int[...], of x's shape.

  NaN ranks behind all numbers but −inf, which marks what may not be picked: where a model gives nothing else, samplers
  still come to an end.
  """
  x = jnp.where(jnp.isnan(x), jnp.finfo(x.dtype).min, x)
  return jnp.argsort(jnp.argsort(-x, axis=-1, stable=True), axis=-1)


def without(logits, token: int):
  """Logits [..., V] with −inf for one token."""
  return jnp.where(jnp.arange(logits.shape[-1]) == token, -jnp.inf, logits)
