"""What the runs of a comparison left in their folders, as plain numbers: everything that a report is made of."""

from collections.abc import Mapping, Sequence
import hashlib
import json
from pathlib import Path
from typing import Any

from gdsd_jax.comparison.config import ComparisonConfig
from gdsd_jax.comparison.grid import make_run, rate_runs, rate_set
from gdsd_jax.objectives.abstract import abstract_rollouts, abstract_scored
from gdsd_jax.runs.config import RunConfig
from gdsd_jax.runs.files import read_rows, step_row
from gdsd_jax.training.sweep_grid import Run
from gdsd_jax.training.sweep_runs import is_finished, rows_of
from gdsd_jax.training.updates import drawing_of

_EVALUATED = ("accuracy", "reward", "sampled_reward")


def is_done(run: Run, folder: Path) -> bool:
  """Whether a run is at its end: finished, or given up, which is a result as well."""
  return is_finished(run, folder) or gave_up(run, folder)


def gave_up(run: Run, folder: Path) -> bool:
  """Whether a run ended before its last step because none of its updates was finite any more.

  One whose rewards could not be had is none: that says nothing of its objective, and the same command tries again.
  """
  last = [row for row in rows_of(run, folder) if row["step"] > 0][-run.config.max_skipped_steps:]
  updates, most = run.config.distillation.num_iterations, min(run.config.max_skipped_steps, run.config.steps)
  return len(last) == most and all(
    row.get("skipped") == updates and row.get("reward") is not None for row in last)


def result(run: Run, folder: Path) -> dict[str, Any]:
  """A run's numbers, beside its setting and where they come from.

  `status` is finished, gave_up, or unfinished. `curve` is the mean reward of the rollouts of each step, None where
  rewards failed; `evaluations` are those on held-out problems, and that before the first step is among them.
  """
  status = "finished" if is_finished(run, folder) else "gave_up" if gave_up(run, folder) else "unfinished"
  try:
    rows = read_rows(folder / "metrics.jsonl", step_row)
  except ValueError:  # damaged: the run's own process says so
    rows = []
  steps = [row for row in rows if row["step"] > 0]
  total = lambda name: round(sum(row.get(name) or 0 for row in steps), 2)
  config = run.config
  groups = sum(row.get("groups_drawn") or config.prompts_per_step for row in steps)  # a filter may draw more
  tokens = round(groups) * config.group_size * config.sampler.completion_length
  return {
    "name": run.name, **run.setting, "status": status, **_origin(folder),
    "curve": [_rounded(row.get("reward")) for row in steps],
    "evaluations": [{"step": row["step"], **{name: _rounded(row.get(f"eval/{name}")) for name in _EVALUATED}}
                    for row in rows if row.get("eval/reward") is not None],
    "skipped": int(sum(row.get("skipped") or 0 for row in steps)),
    "seconds": total("seconds/step"), "cpu_seconds": total("seconds/cpu"), "tokens": tokens,
  }


def final(result: Mapping[str, Any], number: str) -> float | None:
  """A number of the last evaluation of a run that is done; None of another, or where it has none after its last step.

  A run that gave up counts by the last evaluation that it made, at worst that before its first step.
  """
  if result["status"] == "unfinished" or not result["evaluations"]:
    return None
  last = result["evaluations"][-1]
  return None if result["status"] == "finished" and last["step"] < len(result["curve"]) else last[number]


def choose(config: ComparisonConfig, results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
  """task -> objective -> the learning rate chosen for it, `rate`, None where its runs are not all done.

  It is that with the highest mean of `judged_by` over the sweep's seeds; of equal ones the smallest. A rate at which a
  run gave up is taken only where all are such. `means` has them all; `at_end` is whether a rate beyond those tried may
  be better. An objective with `rate_of` takes the rate of that one.
  """
  found = {}
  for task in config.tasks:
    for objective in config.objectives:
      chosen = found.setdefault(task, {})
      if (given := rate_set(config, task, objective)) is not None:
        chosen[objective] = {"rate": given, "means": {}, "at_end": False}
        continue
      runs = [result for result in results
              if (result["stage"], result["task"], result["objective"]) == ("rates", task, objective)]
      chosen[objective] = _choose(config, runs)
    for objective in config.objectives:
      if (other := config.rate_of(objective)) != objective and not chosen[objective]["rate"]:
        chosen[objective] |= {"rate": chosen[other]["rate"]}
  return found


def _choose(config: ComparisonConfig, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  rates, means, steady = sorted(config.learning_rates), {}, {}
  for rate in rates:
    of_rate = [run for run in runs if run["learning_rate"] == rate and run["seed"] in config.sweep_seeds]
    values = [final(run, config.judged_by) for run in of_rate]
    if len(values) == len(config.sweep_seeds) and None not in values:
      means[rate] = sum(values) / len(values)
      steady[rate] = all(run["status"] == "finished" for run in of_rate)
  told = {str(rate): _rounded(mean) for rate, mean in means.items()}
  if len(means) < len(rates):
    return {"rate": None, "means": told, "at_end": False}
  best = min(rates, key=lambda rate: (not steady[rate], -means[rate], rate))
  return {"rate": best, "means": told, "at_end": best in (rates[0], rates[-1])}


def collect(config: ComparisonConfig, folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """(results, choices) of all runs of a comparison whose rates are chosen so far, from its folder."""
  results = [result(run, folder / run.name) for pair in config.pairs for run in rate_runs(config, *pair)]
  choices = choose(config, results)
  for task, objective in config.pairs:
    chosen = choices[task][objective]
    any_run = make_run(config, "runs", task, objective, chosen["rate"] or config.learning_rates[0], config.seeds[0])
    chosen["inputs"] = inputs(any_run.config)
  reported = reported_runs(config, choices)
  return [*results, *(result(run, folder / run.name) for run in reported)], choices


def reported_runs(config: ComparisonConfig, choices: Mapping[str, Any]) -> list[Run]:
  """The runs that are reported, for which a rate is chosen: all tasks and objectives at one seed, then at the next."""
  return [make_run(config, "runs", task, objective, choices[task][objective]["rate"], seed)
          for seed in config.seeds for task in config.tasks for objective in config.objectives
          if choices[task][objective]["rate"] is not None]


def inputs(config: RunConfig) -> int:
  """Passes through the model by which an update's scores of one rollout are made.

  Of a coupled pair there are two, but for a model that goes block by block: it has both copies in one.
  """
  sampler, G = config.sampler, config.group_size
  length, kept = sampler.completion_length, sampler.top_k or 1
  rollouts = abstract_rollouts(config.objective, G, length, G, kept, sampler.view_steps, sampler.kind == "block")
  views = abstract_scored(config.objective, rollouts, drawing_of(config, config.rollouts.prompt_buckets[-1])).views
  return views.masks.shape[1] * (2 if views.coupled and sampler.kind != "block" else 1)


def _origin(folder: Path) -> dict[str, str | None]:
  """`config`, a hash of a run's config.json but for the provenance, and `commit`, of the code that it ran by."""
  try:
    saved = json.loads((folder / "config.json").read_text())
    provenance = saved.pop("provenance", {})
    commit = provenance.get("versions", {}).get("commit")
    return {"config": hashlib.sha256(json.dumps(saved, sort_keys=True).encode()).hexdigest()[:12], "commit": commit}
  except (OSError, ValueError, TypeError, AttributeError):  # not begun, or damaged
    return {"config": None, "commit": None}


def _rounded(number: float | None) -> float | None:
  return None if number is None else round(number, 5)
