"""The k largest of many numbers, exact, without a sort of all of them."""

import jax
import jax.numpy as jnp

_GROUP = 16  # members of a group


def largest_so_far(best, logits, first):
  """The k largest logits and their tokens, a pair [R, k], of `best`, such a pair, and logits [R, C] from `first` on."""
  return jax.lax.platform_dependent(best, logits, first, cpu=at_once, default=by_groups)


def at_once(best, logits, first):
  """`largest_so_far` on a CPU, whose `top_k` holds each number against the least of those that it has.

  With the best before the rest, hardly another gets in.
  """
  values, tokens = best
  count = values.shape[1]
  found, places = jax.lax.top_k(jnp.concatenate([values, logits], axis=1), count)
  of_best = jnp.take_along_axis(tokens, jnp.minimum(places, count - 1), axis=1)
  return found, jnp.where(places < count, of_best, places - count + first).astype(jnp.int32)


def by_groups(best, logits, first):
  """`largest_so_far` where `top_k` sorts."""
  count = best[0].shape[1]
  values, columns = largest(logits, min(count, logits.shape[1]))
  found = values, (first + columns).astype(jnp.int32)
  return largest_of(*(jnp.concatenate(pair, axis=1) for pair in zip(best, found)), count)


def largest_of(logits, tokens, k: int):
  """(logits [R, k], tokens int[R, k]): the k largest of logits [R, n], with their tokens."""
  logits, places = jax.lax.top_k(logits, k)
  return logits, jnp.take_along_axis(tokens, places, axis=1)


def largest(logits, k: int):
  """(logits [R, k], columns int[R, k]): the k largest of each row [R, C], descending.

  They lie in the k groups of columns with the largest maxima. To find these and sort their members is several times
  faster than to sort the row.
  """
  rows, columns = logits.shape
  if columns % _GROUP or columns <= 2 * k * _GROUP:
    return jax.lax.top_k(logits, k)
  # A group takes columns at even distances, so that the maximum over its members is one of long vectors.
  groups = logits.reshape(rows, _GROUP, -1)
  _, best = jax.lax.top_k(jnp.max(groups, axis=1), k)
  members = jnp.take_along_axis(groups, best[:, None], axis=2).reshape(rows, -1)
  values, places = jax.lax.top_k(members, k)
  member, group = jnp.divmod(places, k)
  return values, member * groups.shape[2] + jnp.take_along_axis(best, group, axis=1)
