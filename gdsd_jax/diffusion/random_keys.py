"""Random numbers by one key, or by a key for each row, by which what a row draws depends on no other row."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def is_of_rows(key) -> bool:
  """Whether it is a typed key for each row (and position), and not one for all."""
  return jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim > 0


def of_rows(key, rows, number):
  """A key for each row, [B], made of one key, the rows' numbers int[B], and another number of each, int[B]."""
  if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    key = jax.random.wrap_key_data(key)
  of_row = lambda row, number: jax.random.fold_in(jax.random.fold_in(key, row), number)
  return jax.vmap(of_row)(rows, number)


def split(key):
  """Two keys of one; of keys [B], two for each row: ([B], [B])."""
  if not is_of_rows(key):
    return tuple(jax.random.split(key))
  both = jax.vmap(jax.random.split)(key)
  return both[:, 0], both[:, 1]


def at_places(key, places):
  """The one key as it is; of keys [B] one for each of the row's places, int[B, K]: [B, K]."""
  if not is_of_rows(key):
    return key
  return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(key, places)


def drawn(draw: Callable, key, shape: tuple[int, ...]):
  """draw(key, shape), an array or a tree of these. By keys [B, …], which begin the shape, each key's own."""
  if not is_of_rows(key):
    return draw(key, shape)
  of_one = lambda one: draw(one, shape[key.ndim:])
  for _ in range(key.ndim):
    of_one = jax.vmap(of_one)
  return of_one(key)
