"""Weights quantised while they are read: of a leaf, one layer at a time is in memory as the files have it."""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp

from gdsd_jax.models.quantised import quantise, QuantizeConfig

_TOKENS = 2**14  # of the vocabulary that are read at a time


def read_quantised(leaf: str, spec, config: QuantizeConfig, index: tuple[slice, ...], read: Callable):
  """The part `index` of a leaf, slices of what it is in the files, as a QArray on the default device.

  `spec` has the leaf's shape and dtype, and `read` gives a part of it as an array.
  """
  shape = tuple(part.stop - part.start for part in index)
  as_quantised = functools.partial(quantise, leaf, config=config)
  zeros = lambda part: jnp.zeros(part.shape, part.dtype)
  whole = jax.tree.map(zeros, jax.eval_shape(as_quantised, jax.ShapeDtypeStruct(shape, spec.dtype)))
  # Each layer, or each token of the vocabulary, is quantised by itself.
  axis, step = (int(leaf == "head"), _TOKENS) if leaf in ("head", "embedding") else (0, 1)
  for start in range(index[axis].start, index[axis].stop, step):
    part = list(index)
    part[axis] = slice(start, min(start + step, index[axis].stop))
    whole = _with_part(whole, read(index=tuple(part)), start - index[axis].start, leaf, config)
  return whole


@functools.partial(jax.jit, static_argnames=("leaf", "config"), donate_argnames=("whole",))
def _with_part(whole, part, start, leaf: str, config: QuantizeConfig):
  put = lambda into, new: jax.lax.dynamic_update_slice_in_dim(into, new, start, axis=0)  # of what is quantised
  return jax.tree.map(put, whole, quantise(leaf, part, config))
