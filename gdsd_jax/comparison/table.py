"""The tables of a comparison, in markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from gdsd_jax.comparison.summary import labels

BEGIN, END = "<!-- made by launch/compare.py --report: begin -->", "<!-- end -->"
HEADS = ("objective", "rate", "seeds", "sampled reward", "greedy accuracy", "mean reward of training", "largest drop",
         "collapsed", "CPU s/step", "inputs")
BETTER = ("Probability that a run of the column's objective ends with a higher sampled reward than one of the row's,"
          " mean over the tasks")


def tables(report: Mapping[str, Any]) -> str:
  """A table for each task, objectives by their final sampled reward, and one of who beats whom over all tasks."""
  said = []
  for task in labels(report)[0]:
    start = start_of(report, task)
    said += [f"**{task}**{': ' * bool(start)}{start}", "", *_table(HEADS, task_rows(report, task)), ""]
  heads, rows = better_rows(report)
  return "\n".join([*said, f"{BETTER}:", "", *_table(heads, rows)])


def start_of(report: Mapping[str, Any], task: str) -> str:
  """What a task's runs begin with and sample; empty where none is done."""
  before = next((of["before"][0] for of in report["summary"][task].values() if of["before"][0] is not None), None)
  tokens = max((run["tokens"] for run in report["runs"] if run["task"] == task), default=0)
  return "" if before is None else f"sampled reward {before:.3f} before training; {tokens:,} tokens sampled a run"


def task_rows(report: Mapping[str, Any], task: str) -> list[list[str]]:
  """The cells of a task's table under HEADS, objectives by their final sampled reward."""
  summary, seeds = report["summary"][task], len(report["config"]["seeds"])
  order = sorted(labels(report)[1], key=lambda name: -(summary[name]["sampled_reward"][0] or 0))
  return [_row(name, summary[name], seeds, report["choices"][task][name]["at_end"]) for name in order]


def better_rows(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
  """(heads, rows) of the table that BETTER tells of."""
  objectives, summary = labels(report)[1], report["summary"]["all"]
  ours = report["config"].get("over_others") or objectives
  rows = [[rival, *(_probability(summary[name]["better_than"].get(rival)) for name in ours)] for rival in objectives]
  return ["over", *ours], rows


def _row(name: str, of: Mapping[str, Any], seeds: int, at_end: bool) -> list[str]:
  number = lambda value, form: "–" if value is None else format(value, form)
  return [
    name, number(of["learning_rate"], "g") + " (end)" * at_end,
    f"{of['seeds']}" + f" of {seeds}" * (of["seeds"] < seeds),
    *(_interval(of[column]) for column in ("sampled_reward", "accuracy", "mean_reward", "largest_drop")),
    number(of["collapsed"], ".0%"), number(of["cpu_seconds_a_step"], ".2f"), number(of["inputs"], "d"),
  ]


def _interval(interval: Sequence[float | None]) -> str:
  value, low, high = interval
  if value is None:
    return "–"
  return f"{value:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")


def _probability(interval: Sequence[float | None] | None) -> str:
  if interval is None or interval[0] is None:
    return "–"
  value, low, high = interval
  return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  line = lambda cells: f"| {' | '.join(cells)} |"
  return [line(heads), line(["---"] * len(heads)), *map(line, rows)]


def placed(text: str, document: str | None) -> str:
  """A document with the tables between its two marks in place of what was there; a new one where there is none."""
  if document is None:
    return f"{BEGIN}\n{text}\n{END}\n"
  before, _, rest = document.partition(BEGIN)
  return f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}"
