"""Whether the arrays of a state are finite, asked where they lie: nothing of their size is made or fetched."""

import jax
import jax.numpy as jnp


def not_finite(tree) -> str | None:
  """The path of the first array of a tree that holds an infinite number, or what is no number; None if all are finite.

  Arrays may lie over a mesh. Collective: all processes learn the same.
  """
  found = jax.tree_util.tree_leaves_with_path(tree)
  floats = [(path, leaf) for path, leaf in found if jnp.issubdtype(leaf.dtype, jnp.inexact)]
  if not floats:
    return None
  paths, leaves = zip(*floats)
  finite = jax.device_get(_are_finite(leaves))
  names = (jax.tree_util.keystr(path, simple=True, separator=".") for path, good in zip(paths, finite) if not good)
  return next(names, None)


@jax.jit
def _are_finite(leaves):
  return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves])
