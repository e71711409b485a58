"""What launch/compare.py found, as a page shows it."""

from collections.abc import Mapping
import json
from typing import Any

from etils import epath

from gdsd_jax.comparison.summary import labels, mean_curve, summarize
from gdsd_jax.comparison.table import BETTER, better_rows, HEADS, start_of, task_rows


def comparison_in(folder: epath.Path) -> dict[str, Any] | None:
  """What the report of a comparison in its folder holds, as `comparison` has it; None where there is none."""
  for file in sorted(folder.glob("*.json")) if folder.is_dir() else []:
    if not file.is_file():
      continue
    try:
      found = json.loads(file.read_bytes())
      if {"config", "choices", "runs"} <= found.keys():
        return comparison(found | {"summary": summarize(found)})
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
      continue  # another file, or a damaged one
  return None


def comparison(report: Mapping[str, Any]) -> dict[str, Any]:
  """Each task's curves, means over seeds with intervals, its table, and the rates tried; and who beats whom."""
  tasks, objectives = labels(report)
  heads, rows = better_rows(report)
  return {
    "heads": HEADS,
    "axis": f"reward of rollouts, mean of {report['config']['window']} steps and of all seeds, with its 95 % interval",
    "tasks": [{"name": task, "said": start_of(report, task) or "No run is done yet.",
               "rows": task_rows(report, task), "rates": _rates(report, task),
               "lines": [line for at, name in enumerate(objectives) if (line := _line(report, task, name, at))["y"]]}
              for task in tasks],
    "better": {"said": f"{BETTER}.", "heads": heads, "rows": rows},
  }


def _line(report: Mapping[str, Any], task: str, objective: str, index: int) -> dict[str, Any]:
  steps, means = mean_curve(report, task, objective)
  line = {"name": objective, "index": index, "x": list(steps), "y": [mean.value for mean in means]}
  if any(mean.low is not None for mean in means):
    line |= {"low": [mean.low for mean in means], "high": [mean.high for mean in means]}
  return line


def _rates(report: Mapping[str, Any], task: str) -> dict[str, Any]:
  """The table of learning rates that were tried, and what the runs at each ended with."""
  rates = [str(rate) for rate in sorted(report["config"].get("learning_rates") or [])]
  judged_by = str(report["config"].get("judged_by", "result")).replace("_", " ")
  rows = []
  for objective, choice in report["choices"][task].items():
    means = [choice["means"].get(rate) for rate in rates]
    rows.append([objective, *("–" if mean is None else f"{mean:.3f}" + " (chosen)" * (rate == str(choice["rate"]))
                              for rate, mean in zip(rates, means))])
  return {"said": f"Learning rates tried: the {judged_by} that each ended with", "heads": ["objective", *rates],
          "rows": rows}
