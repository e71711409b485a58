"""Windows of sequences: in the same place of each, or in a place of its own."""

import jax
import jax.numpy as jnp


def window_of(x, start, width: int):
  """`width` entries of x [B, T, ...] from `start` on, int, int[] or int[B]: [B, width, ...]."""
  if jnp.ndim(start) == 0:
    return jax.lax.dynamic_slice_in_dim(x, start, width, axis=1)
  return jax.vmap(lambda row, start: jax.lax.dynamic_slice_in_dim(row, start, width))(x, start)


def with_window(x, new, start):
  """x [B, T, ...] with new [B, width, ...] in the place of what is there from `start` on, as of `window_of`."""
  if jnp.ndim(start) == 0:
    return jax.lax.dynamic_update_slice_in_dim(x, new, start, axis=1)
  return jax.vmap(lambda row, new, start: jax.lax.dynamic_update_slice_in_dim(row, new, start, 0))(x, new, start)
