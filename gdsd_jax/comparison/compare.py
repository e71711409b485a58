"""A comparison from its config to its report: the runs that choose learning rates, then those that are reported."""

from collections.abc import Mapping
import json
from pathlib import Path
import sys
from typing import Any

from gdsd_jax.checks import require
from gdsd_jax.comparison.config import ComparisonConfig
from gdsd_jax.comparison.grid import make_run, rate_runs, rate_set
from gdsd_jax.comparison.report import report_folder
from gdsd_jax.comparison.results import choose, is_done, reported_runs, result
from gdsd_jax.parallel.processes import is_one_of_several
from gdsd_jax.runs.lock import locked
from gdsd_jax.runs.saved_config import contradictions
from gdsd_jax.screen import say
from gdsd_jax.signals import START_AGAIN
from gdsd_jax.training.sweep_progress import SweepProgress
from gdsd_jax.training.sweep_runs import exit_status, run_all


def run_comparison(config: ComparisonConfig, as_given: Mapping[str, Any], folder: Path, jobs: int) -> int:
  """Runs or resumes a comparison in its folder, and reports it.

  Args:
    config: what is compared.
    as_given: its fields as the report tells them.
    folder: a folder for each run, below rates/ and runs/, and the report.
    jobs: how many runs go on at a time.

  Returns the exit status: 0 where all runs are done, 1 where some failed, START_AGAIN where some were stopped. Raises
  ValueError, one line, before any run is started.
  """
  require(jobs >= 1, "--jobs", f"must be at least 1, not {jobs}")
  require(not is_one_of_several(), "--config", "a comparison starts its runs by itself; it is no run of several"
                                               " processes")
  sweeps = [run for pair in config.pairs for run in rate_runs(config, *pair)]
  for pair in config.pairs:  # what does not fit is told now
    run = make_run(config, "runs", *pair, rate_set(config, *pair) or config.learning_rates[0], config.seeds[0])
    steps = run.config.steps
    require(config.window <= steps, "window", f"must be at most the {steps} steps of a run, not {config.window}")
    require(config.judged_by != "sampled_reward" or run.config.sampler.temperature > 0, "judged_by",
            f"must be reward or accuracy, since task {pair[0]} has sampler.temperature=0 and no sampled reward")
  _refuse_others(sweeps, folder)
  total = len(sweeps) + len(config.pairs) * len(config.seeds)
  say(f"COMPARISON of {len(config.objectives)} objectives on {len(config.tasks)} tasks in {folder}: {len(sweeps)}"
      f" runs to choose learning rates, {total - len(sweeps)} to report, {jobs} at a time")
  with locked(folder):
    progress = SweepProgress(total, jobs)
    all_chosen, statuses = True, run_all(sweeps, folder, [], jobs, progress, is_done)
    if not {None, START_AGAIN} & set(statuses.values()):
      choices = choose(config, [result(run, folder / run.name) for run in sweeps])
      all_chosen = tell_rates(choices, config.judged_by)
      reported = reported_runs(config, choices)
      _refuse_others(reported, folder)
      progress.total = len(sweeps) + len(reported)
      statuses |= run_all(reported, folder, [], jobs, progress, is_done)
    say(f"{report_folder(config, as_given, folder)}\nsee {folder / config.report}.json")
  status = exit_status(statuses)
  return status if all_chosen else 1


def _refuse_others(runs, folder: Path) -> None:
  require(not (folder / "config.json").exists(), "--workdir", f"{folder} holds a run; choose another folder")
  for run in runs:
    try:
      different = contradictions(json.loads((folder / run.name / "config.json").read_text()), run.config)
    except (OSError, ValueError, AttributeError):  # none, or damaged: its own process says so
      continue
    require(not different, "--workdir", f"{folder / run.name} is a run with another config ({'; '.join(different)});"
                                        " restore these fields or choose another --workdir")


def tell_rates(choices: Mapping[str, Mapping[str, Mapping[str, Any]]], judged_by: str) -> bool:
  """Shows the learning rates, and warns of those at an end of what was tried; returns whether all are chosen."""
  for task, of_task in choices.items():
    for objective, chosen in of_task.items():
      means = ", ".join(f"{rate}: {mean:.3f}" for rate, mean in chosen["means"].items())
      if chosen["rate"] is None:
        said = f"no learning rate, since runs failed or tell no {judged_by}; found are {means or 'none'}"
        say(f"warning: {objective} on {task}: {said}", sys.stderr)
      elif means:
        end = "; the best is at an end of learning_rates: another beyond may be better" * chosen["at_end"]
        say(f"{objective} on {task}: learning rate {chosen['rate']:g} ({means}){end}")
  return all(chosen["rate"] for of_task in choices.values() for chosen in of_task.values())
