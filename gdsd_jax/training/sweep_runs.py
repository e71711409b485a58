"""Sweeps: the runs of a grid, each a process and a folder of its own, some at a time, and what they found."""

from collections.abc import Callable, Mapping, Sequence
import datetime
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from gdsd_jax import screen, signals
from gdsd_jax.checks import require
from gdsd_jax.parallel.processes import is_one_of_several
from gdsd_jax.runs.files import local_folder, read_rows, step_row
from gdsd_jax.runs.lock import locked
from gdsd_jax.runs.saved_config import contradictions
from gdsd_jax.signals import START_AGAIN
from gdsd_jax.training.sweep_grid import make_runs, Run
from gdsd_jax.training.sweep_progress import SweepProgress
from gdsd_jax.training.sweep_table import summarize, table

_CHILD = ("from gdsd_jax.signals import end_with_parent; end_with_parent();"
          " import gdsd_jax.launch; gdsd_jax.launch.train()")
_OURS = ("--workdir", "--jobs")  # flags that are not handed on


def run_sweep(
  config: ConfigDict, grid: Mapping[str, Sequence[str]], workdir: epath.Path, arguments: Sequence[str], jobs: int
) -> int:
  """Runs or resumes a grid of runs, and shows and writes what they found.

  Args:
    config: the recipe, with the fields that all runs share.
    grid: see `split_grid`.
    workdir: a local folder, with a folder for each run and sweep.json.
    arguments: flags of launch/train.py that all runs share.
    jobs: how many runs go on at a time.

  Returns the exit status: 0 where all runs are finished, 1 where some failed, START_AGAIN where some were stopped.
  Raises ValueError, one line, before any run is started.
  """
  require(jobs >= 1, "--jobs", f"must be at least 1, not {jobs}")
  require(not is_one_of_several(), "--config", "a sweep starts its runs by itself; among several processes, which"
          " make one run, start one setting at a time")
  folder, runs = local_folder("--workdir", os.fspath(workdir)), make_runs(config, grid)
  screen.say(f"SWEEP of {len(runs)} runs in {folder}, {jobs} at a time")
  with locked(folder):
    _keep_other_sweep(runs, folder)
    summarize(runs, dict.fromkeys(run.name for run in runs), folder)  # by sweep.json its runs know they are of one
    statuses = run_all(runs, folder, _without_ours(arguments), jobs)
    screen.say(f"{table(summarize(runs, statuses, folder))}\nsee {folder / 'sweep.json'}")
  return exit_status(statuses)


def exit_status(statuses: Mapping[str, int | None]) -> int:
  """That of a command by those of its runs, as `run_all` returns them; what is left to do is told."""
  if failed := [name for name, status in statuses.items() if status not in (0, None, START_AGAIN)]:
    screen.say(f"error: {len(failed)} of {len(statuses)} runs failed: {'; '.join(failed)}", sys.stderr)
    return 1
  if left := sum(status != 0 for status in statuses.values()):
    screen.say(f"asked to stop: {left} of {len(statuses)} runs are to go on; the same command does", sys.stderr)
  return START_AGAIN if left else 0


def _keep_other_sweep(runs: Sequence[Run], folder: Path) -> None:
  """Keeps a sweep.json that tells of other runs than these beside the new one. Raises ValueError in a run's folder."""
  is_run = (folder / "config.json").exists()
  require(not is_run, "--workdir", f"{folder} holds a run; choose another folder for the sweep")
  file = folder / "sweep.json"
  try:
    before = {row["name"] for row in json.loads(file.read_text())["runs"]} if file.exists() else set()
  except (ValueError, KeyError, TypeError):  # not ours, or damaged
    before = {None}
  if not before <= {run.name for run in runs}:
    file.rename(folder / f"sweep-{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}.json")


def _without_ours(arguments: Sequence[str]) -> list[str]:
  kept, following = [], False
  for argument in arguments:
    name, equals, _ = argument.replace("--", "-", 1).partition("=")
    ours = f"-{name}" in _OURS
    if not ours and not following:
      kept.append(argument)
    following = ours and not equals
  return kept


def rows_of(run: Run, folder: Path) -> list[dict[str, Any]]:
  """The rows of a run's metrics; none where its folder has another run or none, or is damaged."""
  try:
    saved, rows = json.loads((folder / "config.json").read_text()), read_rows(folder / "metrics.jsonl", step_row)
    return [] if contradictions(saved, run.config) else [row for row in rows if row["step"] >= 0]
  except (OSError, ValueError, KeyError, TypeError, AttributeError):  # its own process says so
    return []


def is_finished(run: Run, folder: Path) -> bool:
  """Whether a run is in its folder with all its steps and their checkpoint, so that its process need not be started."""
  rows, steps = rows_of(run, folder), run.config.steps
  return bool(rows) and rows[-1]["step"] == steps and (folder / "checkpoints" / str(steps)).is_dir()


def run_all(runs: Sequence[Run], workdir: Path, arguments: Sequence[str], jobs: int,
            progress: SweepProgress | None = None, is_done: Callable[[Run, Path], bool] = is_finished,
            ) -> dict[str, int | None]:
  """Runs or resumes what is not finished, `jobs` at a time; what a run prints is in output.log of its folder.

  Args:
    runs: see `make_runs`.
    workdir: folder of the sweep, with a folder for each run.
    arguments: flags of launch/train.py that all runs share.
    jobs: how many go on at a time.
    progress: counts them; None for one that begins here. Where it has stopped already, no run is started.
    is_done: whether a run need not be started, by what is in its folder.

  Returns the exit status of each run by its name: 0 finished, START_AGAIN asked to stop, None not started. SIGTERM and
  Ctrl-C are handed on to the runs, which save the step under way; no other is started then, and `progress` has stopped.
  """
  progress = progress or SweepProgress(len(runs), jobs)
  statuses, running, waiting = dict.fromkeys((run.name for run in runs), None), {}, list(runs)
  screen.open_line()
  stopping, ended = False, (-signal.SIGTERM, -signal.SIGINT)  # by the signal, before they could take it
  with signals.Noted(lambda: "asked to stop: the runs save what they have done; Ctrl-C again leaves at once") as asked:
    while running or (waiting and not asked.came and not progress.stopped):
      while waiting and len(running) < jobs and not asked.came:
        run = waiting.pop(0)
        if is_done(run, workdir / run.name):
          statuses[run.name] = 0
          progress.finished_before()
          screen.say(f"{run.name}: finished before")
        else:
          progress.started(run.name)
          running[_start(run, workdir / run.name, arguments)] = run
      if asked.came and not stopping:
        stopping = True
        for process in running:
          process.terminate()
      for process in [process for process in running if process.poll() is not None]:
        run, status = running.pop(process), process.returncode
        statuses[run.name] = START_AGAIN if stopping and status in ended else status
        screen.say(_told(run, statuses[run.name], workdir / run.name))
        if is_done(run, workdir / run.name):
          statuses[run.name] = 0
        if not stopping:
          screen.say(progress.ended(run.name, statuses[run.name] == 0, [run.name for run in running.values()]))
      screen.show_line(progress.said([run.name for run in running.values()]) * bool(running), "")
      time.sleep(0.1)
  progress.stopped |= asked.came
  return statuses


def _start(run: Run, folder: Path, arguments: Sequence[str]) -> subprocess.Popen:
  folder.mkdir(parents=True, exist_ok=True)
  # -P: the current folder hides no library.
  command = [sys.executable, "-P", "-c", _CHILD, *arguments, *run.flags, f"--workdir={folder}"]
  with (folder / "output.log").open("a") as output:
    process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                               env=os.environ | {"PYTHONUNBUFFERED": "1"})
  screen.say(f"{run.name}: started, see {folder / 'output.log'}")
  return process


def _told(run: Run, status: int, folder: Path) -> str:
  if status == 0:
    return f"{run.name}: finished"
  if status == START_AGAIN:
    return f"{run.name}: stopped; the same command goes on from there"
  lines = (folder / "output.log").read_text(errors="replace").splitlines()
  last = next((line for line in reversed(lines) if line.strip()), "")
  return f"{run.name}: FAILED with status {status}: {last[:500]}"
