"""What an earlier run has left in a folder, kept aside before another one is written there."""

import datetime
import logging

from etils import epath

from gdsd_jax.runs import rollouts_file
from gdsd_jax.runs.files import read_rows, step_row, write_whole
from gdsd_jax.runs.weights_and_biases import ID_FILE

_log = logging.getLogger(__name__)

_ROWS = ("metrics.jsonl", rollouts_file.FILE)  # files with a "step" in each row
_LEFT = (*_ROWS, "config.json", "reward.png", "tensorboard", ID_FILE)


def set_aside(workdir: epath.Path) -> epath.Path | None:
  """Moves what is left of a run without checkpoints to a folder earlier-DATE in its own, whose path it returns.

  Where it has made no step, there is nothing to keep: None.
  """
  try:
    if not any(row["step"] for name in _ROWS for row in read_rows(workdir / name)):
      return None
  except (ValueError, TypeError, KeyError):  # no rows of ours, or damaged ones: the more they are kept
    pass
  aside = _new_folder(workdir)
  for name in _LEFT:
    left = workdir / name
    for found in left.iterdir() if left.is_dir() else [left]:  # folders of object stores cannot be moved
      if found.is_file():
        target = aside / found.relative_to(workdir)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, found.read_bytes())  # no rename: on gs:// that wants a folder, of which there are none
        found.unlink()
  return aside


def keep_rows(workdir: epath.Path, last_step: int, most: int) -> None:
  """Copies the run's rows to a folder earlier-DATE where it drops more, as it resumes, than a kill leaves behind.

  Args:
    workdir: the run's folder.
    last_step: the step that it goes on after; rows of later ones will be written again.
    most: so many rows a kill leaves at most.
  """
  if sum(row["step"] > last_step for row in read_rows(workdir / "metrics.jsonl", step_row)) > most:
    aside = _new_folder(workdir)
    for file in (workdir / name for name in _ROWS):
      if file.is_file():
        write_whole(aside / file.name, file.read_bytes())
    _log.info("the rows after step %d, whose checkpoints are gone, are kept in %s", last_step, aside)


def _new_folder(workdir: epath.Path) -> epath.Path:
  now, number = f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}", 0
  while (aside := workdir / f"earlier-{now}{f'_{number}' * bool(number)}").exists():
    number += 1
  aside.mkdir(parents=True)
  return aside
