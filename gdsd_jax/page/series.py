"""The numbers of a run as lines of a chart: a series each, long ones thinned."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

_DIGITS = 5


def series_of(rows: Sequence[Mapping[str, Any]], most_points: int) -> dict[str, Any]:
  """`axes`, lists of steps, and `series`: name -> `axis`, which of these it has, `y`, and if thinned `low` and `high`.

  A series has the steps whose rows tell it; None is where that was no number. One with more than `most_points` has a
  point for some steps each, their mean, and their smallest and largest number.
  """
  told: dict[str, tuple[list[int], list[float | None]]] = {}
  for row in rows:
    for name, value in row.items():
      if name != "step":
        steps, values = told.setdefault(name, ([], []))
        steps.append(row["step"])
        values.append(value)
  axes: list[list[int]] = []
  series = {}
  for name, (steps, values) in told.items():
    if all(value is None for value in values):
      continue
    line = _thinned(steps, values, most_points)
    steps = line.pop("x")
    if steps not in axes:
      axes.append(steps)
    series[name] = {"axis": axes.index(steps), **line}
  return {"axes": axes, "series": series}


def _thinned(steps: Sequence[int], values: Sequence[float | None], most_points: int) -> dict[str, list]:
  if len(steps) <= most_points:
    return {"x": list(steps), "y": [_rounded(value) for value in values]}
  apart = math.ceil(len(steps) / most_points)
  line = {"x": [], "y": [], "low": [], "high": []}
  for at in range(0, len(steps), apart):
    known = [value for value in values[at:at + apart] if value is not None]
    line["x"].append(steps[min(at + apart // 2, len(steps) - 1)])
    for name, value in (("y", sum(known) / len(known) if known else None), ("low", min(known, default=None)),
                        ("high", max(known, default=None))):
      line[name].append(_rounded(value))
  return line


def _rounded(value: float | None) -> float | None:
  return None if value is None else float(f"{value:.{_DIGITS}g}")
