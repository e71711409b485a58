"""The summary of a comparison, made of its results alone: a report's JSON has all that it needs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gdsd_jax.comparison.results import final
from gdsd_jax.comparison.statistics import (
  collapsed,
  Interval,
  largest_drop,
  mean_interval,
  mean_probability,
  probability_of_improvement,
  smoothed,
)

NUMBERS = ("sampled_reward", "accuracy", "mean_reward", "largest_drop")


def reported(report: Mapping[str, Any], task: str, objective: str) -> list[Mapping[str, Any]]:
  """The runs of an objective on a task that are reported and done: at the rate that is chosen, of the seeds named."""
  rate, seeds = report["choices"][task][objective]["rate"], report["config"]["seeds"]
  return [run for run in report["runs"]
          if (run["stage"], run["task"], run["objective"], run["learning_rate"]) == ("runs", task, objective, rate)
          and run["seed"] in seeds and run["status"] != "unfinished"]


def mean_curve(report: Mapping[str, Any], task: str, objective: str) -> tuple[range, list[Interval]]:
  """(steps, means with their intervals) of the smoothed reward of the runs that are reported, at each step some have.

  A run that gave up is not among the later ones.
  """
  window = report["config"]["window"]
  curves = [smoothed(run["curve"], window) for run in reported(report, task, objective)]
  count = max(map(len, curves), default=0)
  means = [mean_interval([curve[at] for curve in curves if at < len(curve)]) for at in range(count)]
  return range(window, window + count), means


def labels(report: Mapping[str, Any]) -> tuple[list[str], list[str]]:
  """(tasks, objectives) of a report."""
  tasks = list(report["choices"])
  return tasks, list(report["choices"][tasks[0]])


def summarize(report: Mapping[str, Any]) -> dict[str, Any]:
  """What a report says of each task and objective; intervals are [value, low, high], None where there is too little.

  `sampled_reward` and `accuracy` are of the last evaluation; `mean_reward` is of all steps' rollouts, `largest_drop`
  the largest fall of the smoothed curve below its best so far; `collapsed` is the share of runs that did, see
  `statistics.collapsed`. `better_than` has the probability that a run's last sampled reward is above that of a rival's
  run. `all` has that as a mean over the tasks.
  """
  (tasks, objectives), found = labels(report), {}
  for task in tasks:
    runs = {objective: reported(report, task, objective) for objective in objectives}
    finals = {objective: _finals(of, "sampled_reward") for objective, of in runs.items()}
    found[task] = {}
    for objective, of in runs.items():
      better = {rival: probability_of_improvement(finals[objective], finals[rival])
                for rival in objectives if rival != objective}
      found[task][objective] = _summary(report, task, objective, of) | {"better_than": better}
  found["all"] = {
    objective: {"better_than": {
      rival: mean_probability([found[task][objective]["better_than"][rival] for task in tasks])
      for rival in objectives if rival != objective}} for objective in objectives}
  return _rounded(found)


def _summary(report: Mapping[str, Any], task: str, objective: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  window, steps = report["config"]["window"], sum(len(run["curve"]) for run in runs)
  falls = [fall for run in runs if (fall := largest_drop(smoothed(run["curve"], window))) is not None]
  means = [float(np.mean(known)) for run in runs if (known := [value for value in run["curve"] if value is not None])]
  return {
    "learning_rate": report["choices"][task][objective]["rate"],
    "seeds": len(runs), "missing": len(report["config"]["seeds"]) - len(runs),
    "before": mean_interval([row["sampled_reward"] for run in runs for row in run["evaluations"]
                             if row["step"] == 0 and row["sampled_reward"] is not None]),
    "sampled_reward": mean_interval(_finals(runs, "sampled_reward")),
    "accuracy": mean_interval(_finals(runs, "accuracy")),
    "mean_reward": mean_interval(means), "largest_drop": mean_interval(falls),
    "collapsed": sum(collapsed(run, window) for run in runs) / len(runs) if runs else None,
    "seconds_a_step": sum(run["seconds"] for run in runs) / steps if steps else None,
    "cpu_seconds_a_step": sum(run["cpu_seconds"] for run in runs) / steps if steps else None,
    "tokens": sum(run["tokens"] for run in runs), "inputs": report["choices"][task][objective].get("inputs"),
  }


def _finals(runs: Sequence[Mapping[str, Any]], number: str) -> list[float]:
  return [value for run in runs if (value := final(run, number)) is not None]


def _rounded(found: Any) -> Any:
  if isinstance(found, Interval):
    return [_rounded(number) for number in found]
  if isinstance(found, dict):
    return {name: _rounded(value) for name, value in found.items()}
  return round(found, 4) if isinstance(found, float) and found >= 0.01 else found
