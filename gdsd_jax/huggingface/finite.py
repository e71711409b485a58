"""Weights as they come from a file: those that are not finite are refused, since a run would only skip its steps."""

import numpy as np

from gdsd_jax.checks import require

_CHUNK = 2**22  # numbers that are looked at together: what is made of them stays in a CPU's cache


def require_finite(weight: np.ndarray, field: str, said: str, may_be_zero: bool = True) -> None:
  """Raises ValueError if the `said` weight is not finite, or if it is zero throughout and may not be.

  Zeros throughout are what a file has where it was never written to the end. The weight is read once, in the dtype that
  it has; nothing of its size is made.
  """
  bits = weight.reshape(-1).view(f"u{weight.itemsize}")
  infinite = np.array(np.inf, weight.dtype).view(bits.dtype)
  # Without their signs, floats are ordered as the integers of their bits are: infinity, then what is not a number.
  unsigned = bits.dtype.type(np.iinfo(bits.dtype).max >> 1)
  largest = max((int(np.max(bits[i:i + _CHUNK] & unsigned)) for i in range(0, len(bits), _CHUNK)), default=0)
  require(largest < infinite, field, f"{said} has values that are infinite or not a number: the file was damaged, or"
                                     " the training that made it had failed; get it again")
  require(may_be_zero or largest > 0, field, f"{said} is zero throughout, as in a file that was never written to its"
                                             " end; get it again")
