"""The picture of a comparison: learning curves with bands over seeds, and what they ended at."""

from collections.abc import Mapping
import io
from typing import Any

from gdsd_jax.comparison.summary import labels, mean_curve


def picture(report: Mapping[str, Any]) -> bytes:
  """A PNG: for each task the smoothed reward of rollouts by step, and the last sampled reward of held-out problems.

  Lines and dots are means over seeds, bands and bars 95 % intervals.
  """
  import matplotlib
  from matplotlib.figure import Figure
  from matplotlib.ticker import MaxNLocator

  (tasks, objectives), window = labels(report), report["config"]["window"]
  figure = Figure(figsize=(4.5 * len(tasks), 6.5), layout="constrained")
  ratios = {"height_ratios": [3, 0.5 + len(objectives) / 5]}
  axes = figure.subplots(2, len(tasks), squeeze=False, gridspec_kw=ratios)
  of_places = matplotlib.colormaps["tab10" if len(objectives) <= 10 else "tab20"]
  colors = {name: of_places(i) for i, name in enumerate(objectives)}
  for column, task in enumerate(tasks):
    for name in objectives:
      _curve(axes[0, column], *mean_curve(report, task, name), colors[name], name)
    axes[0, column].set(title=task, xlabel="step", ylabel=f"reward of rollouts, mean of {window} steps")
    axes[0, column].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0, column].grid(alpha=0.3)
    _ends(axes[1, column], report["summary"][task], colors)
  if axes[0, -1].lines:
    axes[0, -1].legend(fontsize="small", loc="best")
  image = io.BytesIO()
  figure.savefig(image, format="png", dpi=110)
  return image.getvalue()


def _curve(axes, steps, intervals, color, name: str) -> None:
  if not intervals:
    return
  axes.plot(steps, [interval.value for interval in intervals], color=color, label=name, linewidth=1.5)
  banded = [(step, interval.low, interval.high) for step, interval in zip(steps, intervals) if interval.low is not None]
  if banded:
    axes.fill_between(*zip(*banded), color=color, alpha=0.12, linewidth=0)


def _ends(axes, summary: Mapping[str, Any], colors) -> None:
  order = sorted((name for name in summary if summary[name]["sampled_reward"][0] is not None),
                 key=lambda name: summary[name]["sampled_reward"][0])
  for row, name in enumerate(order):
    value, low, high = summary[name]["sampled_reward"]
    if low is not None:
      axes.plot([low, high], [row, row], color=colors[name], linewidth=2)
    axes.plot([value], [row], "o", color=colors[name])
  axes.set(yticks=range(len(order)), yticklabels=order, xlabel="last sampled reward on held-out problems")
  axes.tick_params(axis="y", labelsize="small")
  axes.grid(alpha=0.3, axis="x")
