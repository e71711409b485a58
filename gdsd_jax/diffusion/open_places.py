"""Only those places of a block that a step may commit go through the LM head: in the mean, half of them do.

How many these are is known when the program runs, and so it is one of a few programs, each of another size.
"""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp

from gdsd_jax.models.windows import as_wide

_FEWEST = 8  # places of a row that are computed together at least


def at_open_places(compute: Callable, is_open, of_block):
  """compute(of_places, places) at the open places of a block: a tree of arrays [B, K, ...], elsewhere without meaning.

  Args:
    compute: of arrays [B, N, ...] at the places int[B, N], a tree of arrays [B, N, ...]; what it gives for a place does
      not depend on those that are not open. In each row N is the number of open ones in the row that has the most,
      rounded up to a quarter, a half or three quarters of the block, of at least 8 places, or to all of it.
    is_open: bool[B, K].
    of_block: a tree of arrays [B, K, ...].
  """
  width = is_open.shape[1]
  sizes = [width, *(count for parts in (3, 2, 1) if _FEWEST <= (count := math.ceil(width * parts / 4)) < width)]
  first = jnp.argsort(~is_open, axis=1, stable=True)
  back = jnp.argsort(first, axis=1)
  in_order = lambda x, places: jnp.take_along_axis(x, as_wide(places, x), axis=1)

  def at(count: int, of_block):
    places = first[:, :count]
    found = compute(jax.tree.map(lambda x: in_order(x, places), of_block), places)
    padded = lambda x: jnp.pad(x, [(0, 0), (0, width - count), *[(0, 0)] * (x.ndim - 2)])
    return jax.tree.map(lambda x: in_order(padded(x), back), found)

  needed = jnp.max(jnp.sum(is_open, axis=1))
  branch = sum((needed <= count).astype(jnp.int32) for count in sizes[1:])
  return jax.lax.switch(branch, [lambda of_block, count=count: at(count, of_block) for count in sizes], of_block)
