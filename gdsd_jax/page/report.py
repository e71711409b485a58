"""The page of a run, of several beside each other, or of a comparison: launch/report.py writes it."""

from collections.abc import Sequence
import os
import time
from typing import Any

from etils import epath

from gdsd_jax import screen, signals
from gdsd_jax.checks import require
from gdsd_jax.page.comparisons import comparison_in
from gdsd_jax.page.configs import config_table, environment_table
from gdsd_jax.page.document import check_library, page
from gdsd_jax.page.folders import FILES, is_run, named_folders, once, read_runs, Run, runs_below
from gdsd_jax.page.metric_groups import groups_of
from gdsd_jax.page.replay import made_at
from gdsd_jax.page.rollouts import that_fit
from gdsd_jax.page.series import series_of
from gdsd_jax.page.tiles import tiles
from gdsd_jax.runs.files import is_remote, run_folder, write_whole

SECONDS = 5.0  # between two looks at a run that is watched
_MOST_POINTS = 1000  # a metric's, over all runs
_LEAST_POINTS = 150  # a metric's in each run
_ROLLOUT_BYTES = 2_000_000  # all rollouts together: a page is below 5 MB


def write_report(workdirs: Sequence[str], out: str | None, watch: bool) -> None:
  """Writes the page of what `workdirs` name, and says where it is.

  Args:
    workdirs: folders of runs, sweeps or one comparison; each may be several with commas between them.
    out: the file; None for report.html in the folder, if that is one.
    watch: whether to write it again whenever a file changes, until all runs are done or Ctrl-C ends it. Such a page
      loads itself again.

  Raises ValueError or OSError, one line.
  """
  check_library()
  folders = named_folders(workdirs)
  require(len(folders) > 0, "--workdir", "names no folder")
  require(out is not None or len(folders) == 1, "--out", "say in which file the page of several folders goes")
  file = folders[0] / "report.html" if out is None else run_folder(out, "--out")
  require(not file.is_dir(), "--out", f"{file} is a folder; name a file in it")
  require(file.suffix in (".html", ".htm"), "--out", f"{file} must end in .html")  # no other file is meant
  if out is not None and not is_remote(file):  # of a bucket one may not even ask whether it exists
    taken = next((parent for parent in file.parents if parent.exists() and not parent.is_dir()), None)
    require(taken is None, "--out", f"{taken} is a file, and can hold no {file.name}; name another folder")
  is_done = _write(folders, file, watch)
  screen.say(f"REPORT {file} ({file.stat().length / 1e6:.1f} MB)")
  if watch and not is_done:
    _watch(folders, file)


def _watch(folders: Sequence[epath.Path], file: epath.Path) -> None:
  screen.say("it is written again while the run goes on; Ctrl-C ends this")
  seen, is_done, is_away = None, False, False
  with signals.Noted(lambda: "asked to stop: the page is written a last time") as asked:
    while not asked.came and not is_done:
      looked = time.monotonic()
      while not asked.came and time.monotonic() - looked < SECONDS:
        time.sleep(0.1)
      try:
        if (now := _seen(folders)) != seen:
          seen, is_done = now, _write(folders, file, refresh=True)
        is_away = False
      except OSError as error:  # a disk of the network is away now and then, and a run may be moved
        if not is_away:
          screen.say(f"{error}; the page is written again when that is over")
        is_away = True
  _write(folders, file, refresh=False)


def _seen(folders: Sequence[epath.Path]) -> list[Any]:
  """What differs once a file of the runs, or of the comparison, has been written."""
  found = []
  for folder in folders:
    files = [run / name for run in _runs(folder) for name in FILES]
    for path in files or sorted(folder.glob("*.json")):
      try:
        found.append((os.fspath(path), path.stat().length, path.stat().mtime))
      except OSError:  # not there
        continue
  return found


def _runs(folder: epath.Path) -> list[epath.Path]:
  """The runs that a folder stands for; none if it is that of a comparison."""
  return [] if not is_run(folder) and comparison_in(folder) is not None else runs_below(folder)


def _write(folders: Sequence[epath.Path], file: epath.Path, refresh: bool) -> bool:
  """Writes the page; returns whether nothing will change any more."""
  runs = read_runs(once(run for folder in folders for run in _runs(folder)))
  found = [comparison for folder in folders if not is_run(folder) and (comparison := comparison_in(folder)) is not None]
  require(len(found) <= 1, "--workdir", "a page has room for one comparison; name one of them")
  is_done = bool(runs) and all(run.is_done for run in runs)
  data = report_data(runs, found[0] if found else None, None if is_done or not refresh else SECONDS)
  if found and not runs:
    data |= {"title": f"Comparison {folders[0].name}", "subtitle": str(folders[0])}
  file.parent.mkdir(parents=True, exist_ok=True)
  write_whole(file, page(data["title"], data))
  return is_done


def report_data(runs: Sequence[Run], comparison: dict[str, Any] | None, refresh: float | None) -> dict[str, Any]:
  """What the page is made of.

  Args:
    runs: as `read_runs` has them; none for a comparison alone.
    comparison: what `comparison_in` gives, or None.
    refresh: seconds after which the page loads itself again; None for never.
  """
  most_points = max(_LEAST_POINTS, _MOST_POINTS // max(1, len(runs)))
  told = [_told(run, most_points, _ROLLOUT_BYTES // max(1, len(runs))) for run in runs]
  names = {name for run in told for name in run["series"]}
  longest = max((len(run.rows) for run in runs), default=0)
  return {
    "kind": "report", "title": runs[0].name if len(runs) == 1 else f"{len(runs)} runs", "made": made_at(),
    "subtitle": _subtitle(runs[0]) if len(runs) == 1 else None, "refresh": refresh, "runs": told,
    "groups": groups_of(names), "config": config_table(runs), "environment": environment_table(runs),
    "comparison": comparison, "no_rollouts": _NO_ROLLOUTS,
    "thinned": f"Curves of more than {most_points} steps are means of some steps each, with their range."
               if longest > most_points else None,
  }


_NO_ROLLOUTS = ("No rollouts are kept here. A run keeps some every few steps in rollouts.jsonl; runs from before there"
                " was that file, and fine-tuning, have none.")


def _told(run: Run, most_points: int, rollout_bytes: int) -> dict[str, Any]:
  groups, without_room = that_fit(run.groups or [], rollout_bytes)
  more = [f"{without_room} of {len(run.groups)} groups of rollouts have no room here"] if without_room else []
  evaluations = [{name: value for name, value in row.items() if name == "step" or name.startswith("eval/")}
                 for row in run.rows if any(name.startswith("eval/") for name in row)]
  return {"name": run.name, **series_of(run.rows, most_points), "tiles": tiles(run), "rollouts": groups,
          "evaluations": evaluations, "notes": [*run.notes, *more]}


def _subtitle(run: Run) -> str:
  """What the run is of, in a line: the settings that a reader looks for first."""
  found = []
  for path in ("task.name", "objective.name", "model.path", "seed"):
    value = run.config
    for part in path.split("."):
      value = value.get(part) if isinstance(value, dict) else None
    if value is not None:
      found.append(f"{path.split('.')[0]} {value}")
  return " · ".join([*found, str(run.folder)])
