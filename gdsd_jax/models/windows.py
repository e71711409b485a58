"""Windows of sequences: in the same place of each, or in a place of its own. Of a tree, those of all of its arrays."""

import jax
import jax.numpy as jnp


def window_of(x, start, width: int):
  """`width` entries of x [B, T, ...] from `start` on, int, int[] or int[B]: [B, width, ...]."""
  if jnp.ndim(start) == 0:
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, width, axis=1), x)
  of_row = jax.vmap(lambda row, start: jax.lax.dynamic_slice_in_dim(row, start, width))
  return jax.tree.map(lambda x: of_row(x, start), x)


def with_window(x, new, start):
  """x [B, T, ...] with new [B, width, ...] in the place of what is there from `start` on, as of `window_of`."""
  if jnp.ndim(start) == 0:
    return jax.tree.map(lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, start, axis=1), x, new)
  of_row = jax.vmap(lambda row, new, start: jax.lax.dynamic_update_slice_in_dim(row, new, start, 0))
  return jax.tree.map(lambda x, new: of_row(x, new, start), x, new)


def as_wide(chosen, x):
  """[B, width] in as many dimensions as x [B, T, ...] has."""
  return chosen.reshape(*chosen.shape, *[1] * (x.ndim - chosen.ndim))


def with_chosen(x, new, chosen, start):
  """As `with_window`, but only where `chosen`, bool[B, width], is so; `new` may be a number, too."""

  def replaced(x, new):
    now = window_of(x, start, chosen.shape[1])
    return jnp.where(as_wide(chosen, x), new, now)

  return with_window(x, jax.tree.map(replaced, x, new), start)
