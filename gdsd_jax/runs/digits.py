"""Numbers as a line on the screen shows them."""

import math


def significant(value: float, digits: int = 4) -> str:
  """A number by its significant digits: 0.0004200, 12346, 1.000e-09; "0" and "nan" as they are."""
  if not math.isfinite(value) or value == 0:
    return f"{value:g}"
  if not 1e-4 <= abs(value) < 1e6:
    return f"{value:.{digits - 1}e}"
  return f"{value:.{max(digits - 1 - math.floor(math.log10(abs(value))), 0)}f}"
