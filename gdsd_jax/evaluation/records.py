"""The completions of an evaluation, in a folder that a killed one resumes from, and what they add up to."""

from collections.abc import Sequence
import contextlib
import dataclasses
import json
import math
from pathlib import Path
import statistics
from typing import Any

import numpy as np

from gdsd_jax.checks import require
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.parallel.processes import is_first_process, share_work
from gdsd_jax.runs.config_dict import flatten
from gdsd_jax.runs.files import JsonLines, write_whole
from gdsd_jax.tasks.base import total_of

_SAMPLER_DEFAULTS = {field.name: field.default for field in dataclasses.fields(SamplerConfig) if field.name != "own"}
_FIELDS = ("length", "index", "prompt", "completion", "tokens", "rewards", "accuracy")


class Records:
  """The completions of an evaluation, one line each in generations.jsonl, and the settings that they belong to.

  All processes know the `rows`, (length, index) -> record; the first alone reads and writes the files.
  """

  def __init__(self, out: Path, settings: dict):
    self.out, self.path = out, out / "generations.jsonl"
    [rows] = share_work(1, lambda _: [self._open(settings)])
    self.rows = {(row["length"], row["index"]): row for row in rows}

  def _open(self, settings: dict) -> list[dict]:
    """Makes the folder ready to go on in; returns the rows that it holds."""
    try:
      self.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise OSError(f"--out: cannot make {self.out}: {error}") from error
    file, now = self.out / "settings.json", flatten(settings)
    whole = file.is_file() or not self.path.is_file()
    require(whole, "--out", f"{self.path} lacks its settings.json; choose another --out")
    try:
      saved = flatten(json.loads(file.read_text())) if file.is_file() else now
    except (ValueError, AttributeError) as error:
      raise ValueError(f"--out: {file} does not hold settings: {error}") from None
    saved = {name: default for name in now if (default := _sampler_default(name)) is not None} | saved
    different = [name for name in sorted(saved.keys() | now.keys()) if saved.get(name) != now.get(name)]
    shown = "; ".join(f"{name}: {saved.get(name)!r} → {now.get(name)!r}" for name in different)
    same = set(different) <= {"model.source"}  # the same weights may be called by another path
    require(same, "--out", f"{self.out} holds an evaluation with other settings ({shown}); choose another --out")
    if not file.is_file():
      write_whole(file, json.dumps(settings, indent=2) + "\n")
    try:
      self._file = JsonLines(self.path, parse=_completion)
    except ValueError as error:
      raise ValueError(f"--out: {error}") from None
    return self._file.rows

  def append(self, rows: list[dict]) -> None:
    """Adds records; returns once they are on the disk. Raises OSError when they cannot be."""
    try:
      if is_first_process():
        self._file.append(rows)
    except OSError as error:
      raise OSError(f"--out: {error}") from error
    self.rows |= {(row["length"], row["index"]): row for row in rows}

  def write_summary(self, summary: dict, speeds: dict[int, float | None]) -> dict:
    """Writes summary.json with the speeds (of an earlier call, where this one had nothing to generate)."""
    file = self.out / "summary.json"
    for length, values in summary["lengths"].items():
      values["tokens_per_second"] = speeds[int(length)]
      if speeds[int(length)] is None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # there may be no earlier summary
          values["tokens_per_second"] = json.loads(file.read_text())["lengths"][length]["tokens_per_second"]
    if is_first_process():
      write_whole(file, json.dumps(summary, indent=2) + "\n")
    return summary


def _sampler_default(name: str) -> Any:
  """The default of samplers.LENGTH.FIELD: fields that samplers have got since the settings were saved were at that."""
  section, _, field = name.partition(".")
  return _SAMPLER_DEFAULTS.get(field.partition(".")[2]) if section == "samplers" else None


def _completion(line: bytes) -> dict:
  """The record of a line. Raises ValueError if it is none."""
  try:
    row = json.loads(line)
    return {name: row[name] for name in _FIELDS} | {"accuracy_lenient": row.get("accuracy_lenient")}
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f"no completion: {error!r}") from None


def summarize(rows: dict[tuple[int, int], dict], settings: dict) -> dict:
  """What an evaluation found, from its `Records.rows` and settings.

  It holds `accuracy`, `accuracy_lenient`, `interval` (of the former) and `n` of `best_length`, the length with the
  highest accuracy (the shortest of equal ones; the interval does not account for that choice), which `accuracy_is`
  tells, `lengths` with the numbers of each, and `task` and `model`.
  `accuracy` is the official parser's, `accuracy_lenient` that of one which looks for the answer elsewhere, too; None
  where the task has no such. Accuracy and interval are None for a task that knows no right and wrong; the best length
  has the highest reward then.
  """
  lengths = {}
  for length in sorted({length for length, _ in rows}):
    part = [rows[key] for key in sorted(rows) if key[0] == length]
    accuracies = [row["accuracy"] for row in part if row["accuracy"] is not None]
    lengths[str(length)] = {
      "accuracy": mean(accuracies), "accuracy_lenient": mean([row.get("accuracy_lenient") for row in part]),
      "interval": confidence_interval(accuracies) if accuracies else None, "n": len(part),
      "reward": mean_reward(part),
      "rewards": {name: mean([row["rewards"][name] for row in part]) for name in part[0]["rewards"]},
      "tokens": mean([row["tokens"] for row in part]),
    }
  told = {length: values for length, values in lengths.items() if values["accuracy"] is not None}
  best = max(told or lengths, key=lambda length: lengths[length]["accuracy" if told else "reward"])
  return {
    **{name: lengths[best][name] for name in ("accuracy", "accuracy_lenient", "interval", "n")},
    "best_length": int(best),
    "accuracy_is": f"the best of {len(lengths)} lengths, chosen on these problems" if len(lengths) > 1 else "its own",
    "task": settings["task"]["name"], "model": settings["model"], "lengths": lengths,
  }


def mean(values) -> float | None:
  """The mean of the values that are there; None where none is."""
  there = [value for value in values if value is not None]
  return float(np.mean(there)) if there else None


def mean_reward(rows: Sequence[dict]) -> float:
  """The mean of the rewards that completions have in all, of those to which some applies; 0 where there is none."""
  return mean([total_of(row["rewards"]) for row in rows]) or 0.0


def shown(rows: Sequence[dict]) -> str:
  """The number that tells completions on the screen."""
  accuracy = mean([row["accuracy"] for row in rows])
  return f"reward {mean_reward(rows):.4f}" if accuracy is None else f"accuracy {accuracy:.4f}"


def confidence_interval(values) -> list[float]:
  """95 % interval [low, high] of the mean of values from 0 to 1: Wilson's where all are 0 or 1, else the normal one."""
  from scipy import stats  # takes seconds to import, and only a finished evaluation needs it

  values = np.asarray(values, np.float64)
  n, mean = len(values), values.mean()
  if np.isin(values, (0, 1)).all():
    wilson = stats.binomtest(int(values.sum()), n).proportion_ci(0.95, method="wilson")
    return [float(wilson.low), float(wilson.high)]
  half = statistics.NormalDist().inv_cdf(0.975) * values.std(ddof=1) / math.sqrt(n) if n > 1 else 1.0
  return [float(max(mean - half, 0.0)), float(min(mean + half, 1.0))]
