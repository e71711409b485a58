"""Folders that users name, and what the runs in them have left: complete, half-written, or of an older version."""

from collections.abc import Iterable, Sequence
import dataclasses
import json
from typing import Any

from etils import epath

from gdsd_jax.checks import require
from gdsd_jax.page.rollouts import group_of
from gdsd_jax.runs.files import absolute, read_rows, require_folder, run_folder

LARGEST_STEP = 2**53  # that JavaScript counts exactly
_MOST_COMMAS = 10  # in the name of a sweep's run: of many paths not all ways to join them are tried
FILES = ("config.json", "metrics.jsonl", "rollouts.jsonl")


@dataclasses.dataclass(frozen=True)
class Run:
  """What is in a run's folder.

  Attributes:
    folder: where it is.
    name: how the page calls it.
    rows: a row of numbers a step, in their order; what is no number is None.
    config, provenance: those of its config.json; empty where there is none.
    groups: those of its rollouts.jsonl, as `group_of` has them; None where there is no such file.
    notes: what is damaged or missing, a line each.
  """

  folder: epath.Path
  name: str
  rows: list[dict[str, Any]]
  config: dict[str, Any]
  provenance: dict[str, Any]
  groups: list[dict[str, Any]] | None
  notes: list[str]

  @property
  def is_done(self) -> bool:
    """Whether its last step is there."""
    steps = self.config.get("steps")
    return bool(self.rows) and isinstance(steps, int) and self.rows[-1]["step"] >= steps


def named_folders(values: Iterable[str]) -> list[epath.Path]:
  """The folders of several --workdir, each a path or several with commas between them.

  A path with a comma in it, as sweeps name their runs, is meant where there is one. Raises ValueError as `run_folder`,
  and where there is nothing before or behind a comma.
  One that is named twice is there once.
  """
  found = []
  for value in values:
    parts, at = value.split(","), 0
    while at < len(parts):
      ends = range(min(len(parts), at + 1 + _MOST_COMMAS), at + 1, -1)
      end = next((end for end in ends if _is_folder(",".join(parts[at:end]))), at + 1)
      path = ",".join(parts[at:end])
      require(path.strip() != "" or len(parts) == 1, "--workdir", f"{value!r} has a comma with no folder beside it;"
              " leave that comma out")
      found.append(run_folder(path))
      at = end
  return once(found)


def once(folders: Iterable[epath.Path]) -> list[epath.Path]:
  """Each folder once, in their order, however its path is written."""
  found: dict[epath.Path, epath.Path] = {}
  for folder in folders:
    found.setdefault(absolute(folder), folder)
  return list(found.values())


def _is_folder(text: str) -> bool:
  try:
    return run_folder(text).is_dir()
  except ValueError:
    return False


def is_run(folder: epath.Path) -> bool:
  """Whether a folder is that of a run, which has rows or the config of one: models have a config.json, too."""
  return (folder / "metrics.jsonl").is_file() or "steps" in _config(folder / "config.json", [])


def runs_below(folder: epath.Path) -> list[epath.Path]:
  """The runs in the folder of a sweep, in order; the folder itself where it is one.

  Raises OSError, one line, where there is none.
  """
  require_folder(folder)
  if is_run(folder):
    return [folder]
  found = sorted(child for child in folder.iterdir() if not child.name.startswith("earlier-") and is_run(child))
  if not found:
    raise FileNotFoundError(f"--workdir: {folder} holds no run: there is neither metrics.jsonl nor the config of one")
  return found


def read_runs(folders: Sequence[epath.Path]) -> list[Run]:
  """What each folder has. Raises OSError where a file cannot be read."""
  return [_read(folder, name) for folder, name in zip(folders, _names(folders))]


def _names(folders: Sequence[epath.Path]) -> list[str]:
  """The ends of the paths, as long as they need to be different."""
  parts = [absolute(folder).parts for folder in folders]  # "." has none
  for count in range(1, max(map(len, parts), default=0) + 1):
    names = ["/".join(each[-count:]) for each in parts]
    if len(set(names)) == len(names):
      return names
  return [str(folder) for folder in folders]


def _read(folder: epath.Path, name: str) -> Run:
  notes: list[str] = []
  rows = {row["step"]: row for row in _lines(folder / "metrics.jsonl", _numbers, notes)}  # a step's last counts
  if not (folder / "metrics.jsonl").is_file():
    notes.append("metrics.jsonl is missing: the run has made no step yet, or the file is gone")
  config = _config(folder / "config.json", notes)
  provenance = config.pop("provenance", None)
  provenance = provenance if isinstance(provenance, dict) else {}
  file = folder / "rollouts.jsonl"
  groups = _lines(file, group_of, notes) if file.is_file() else None
  return Run(folder, name, [rows[step] for step in sorted(rows)], config, provenance, groups, notes)


def _config(file: epath.Path, notes: list[str]) -> dict[str, Any]:
  if not file.is_file():
    notes.append("config.json is missing")
    return {}
  try:
    found = json.loads(file.read_bytes())
  except (ValueError, RecursionError):
    found = None
  if not isinstance(found, dict):
    notes.append("config.json is damaged")
    return {}
  return found


def _lines(file: epath.Path, read, notes: list[str]) -> list[dict[str, Any]]:
  """What `read` makes of each line; those of which it makes None are left out, and counted in a note."""

  def parse(line: bytes):
    try:
      return read(json.loads(line))
    except (ValueError, RecursionError):
      return None

  rows = read_rows(file, parse)
  damaged = [number for number, row in enumerate(rows, start=1) if row is None]
  if damaged:
    notes.append(f"{file.name}: {len(damaged)} of {len(rows)} lines are left out, which are damaged; the first is line"
                 f" {damaged[0]}")
  return [row for row in rows if row is not None]


def _numbers(row: Any) -> dict[str, Any] | None:
  if not isinstance(row, dict) or type(row.get("step")) is not int or abs(row["step"]) > LARGEST_STEP:
    return None
  return {name: value if _is_number(value) else None for name, value in row.items()
          if value is None or _is_number(value) or isinstance(value, float)}


def _is_number(value: Any) -> bool:
  """Whether it is a number, and not so large that the sum of a run's would be infinite."""
  return type(value) in (int, float) and abs(value) < 1e300
