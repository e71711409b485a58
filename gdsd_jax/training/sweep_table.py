"""What a sweep found: for each setting the validation reward and accuracy, as means over seeds."""

from collections.abc import Mapping, Sequence
import json
from pathlib import Path
import statistics
from typing import Any

from gdsd_jax.runs.files import read_rows, step_row, write_whole
from gdsd_jax.training.sweep_grid import Run

_NUMBERS = ("final_reward", "final_accuracy", "best_reward", "best_accuracy")


def found(folder: Path) -> dict[str, float | None]:
  """A run's last evaluation on validation problems after a step, and that with the highest reward; None without one."""
  rows = read_rows(folder / "metrics.jsonl", step_row)
  rows = [row for row in rows if row["step"] > 0 and row.get("eval/reward") is not None]
  if not rows:
    return dict.fromkeys(_NUMBERS)
  chosen = {"final": rows[-1], "best": max(rows, key=lambda row: row["eval/reward"])}
  numbers = [(which, name) for which in chosen for name in ("reward", "accuracy")]
  return {f"{which}_{name}": chosen[which].get(f"eval/{name}") for which, name in numbers}


def summarize(runs: Sequence[Run], statuses: Mapping[str, int | None], workdir: Path) -> dict[str, Any]:
  """Writes sweep.json, and returns what it holds.

  Its `runs` are all of them, each with its numbers and `status`, 0 where it is finished. `settings` are those that
  differ in more than the seed, each with `seeds`, and the mean and standard deviation of every number over its
  finished runs; None where there are too few.
  """
  told = [{"name": run.name, **run.setting, "status": statuses[run.name], **found(workdir / run.name)} for run in runs]
  groups: dict[str, list[dict[str, Any]]] = {}
  for run, row in zip(runs, told):
    setting = {path: value for path, value in run.setting.items() if path != "seed"}
    groups.setdefault(json.dumps(setting), []).append(row)
  settings = []
  for setting, rows in groups.items():
    numbers = {name: [row[name] for row in rows if row["status"] == 0 and row[name] is not None] for name in _NUMBERS}
    spread = {name: {"mean": statistics.mean(of) if of else None, "std": statistics.stdev(of) if len(of) > 1 else None}
              for name, of in numbers.items()}
    settings.append({**json.loads(setting), "seeds": sum(row["status"] == 0 for row in rows), **spread})
  summary = {"runs": told, "settings": settings}
  write_whole(workdir / "sweep.json", json.dumps(summary, indent=2) + "\n")
  return summary


def table(summary: Mapping[str, Any]) -> str:
  """The settings of a summary, a line each: mean ± standard deviation over the seeds, n − 1 in its denominator."""
  fields = [name for name in summary["settings"][0] if name not in _NUMBERS]
  lines = [[*fields, *(name.replace("_", " ") for name in _NUMBERS)]]
  for setting in summary["settings"]:
    lines.append([*(str(setting[name]) for name in fields), *(_shown(setting[name]) for name in _NUMBERS)])
  widths = [max(map(len, column)) for column in zip(*lines)]
  return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def _shown(number: Mapping[str, float | None]) -> str:
  if number["mean"] is None:
    return "–"
  return f"{number['mean']:.3f}" + ("" if number["std"] is None else f" ± {number['std']:.3f}")
