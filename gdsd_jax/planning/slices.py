"""The shapes of TPU slices that exist, by generation: libtpu compiles for others, too, and GKE waits for them."""

import math
import re

from gdsd_jax.checks import require

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SMALL = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")

# Generation -> shapes, each size of which is no smaller than the one before, but for 2x2x1. Source: the pages of the
# Cloud TPU documentation on each generation, https://docs.cloud.google.com/tpu/docs/v5e, …/v6e, …/v5p and …/v4. Those
# of tpu7x are what Google's xpk asks for (https://github.com/AI-Hypercomputer/xpk, generate_tpu_topologies).
SHAPES = {"v4": _SMALL, "v5e": _FLAT, "v5p": _SMALL, "v6e": _FLAT, "tpu7x": _SMALL}
# Generation -> chips of the largest slice of which each size is a multiple of 4, as in 4x4x8.
_LARGEST = {"v4": 4096, "v5p": 6144, "tpu7x": 9216}


def in_words(topology: str, slices: int) -> str:
  """How a slice, or several alike, is called."""
  return topology if slices == 1 else f"{slices} slices of {topology}"


def check_shape(generation: str, shape: str) -> None:
  """Raises ValueError, one line that names what exists, unless a generation of `SHAPES` has slices of this shape."""
  require(shape in SHAPES[generation] or _is_torus(generation, shape), "--topology", (
    f"{generation} has no slice {shape!r}; it has {', '.join(SHAPES[generation])}" + (
      f", and those of three ascending multiples of 4, as 4x4x8, up to {_LARGEST[generation]} chips"
      if generation in _LARGEST else "")))


def _is_torus(generation: str, shape: str) -> bool:
  found = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})x([1-9]\d{0,3})(_twisted|_untwisted)?", shape)
  if found is None or generation not in _LARGEST:
    return False
  sizes = [int(size) for size in found.groups()[:3]]
  multiples = all(size % 4 == 0 for size in sizes)
  may_twist = found[4] is None or sizes[2] == 2 * sizes[0] and sizes[1] in (sizes[0], sizes[2])
  return multiples and may_twist and sizes == sorted(sizes) and math.prod(sizes) <= _LARGEST[generation]
