"""Whose files a folder holds: an export says what it was made from, and nothing else is overwritten."""

from collections.abc import Callable
import contextlib
from pathlib import Path
from typing import Any

NAME = ".made_from"  # in an export; a line in words
_OF_RUNS = ("metrics.jsonl", "checkpoints", "sweep.json", "generations.jsonl")
_BESIDE = {"README.md", "base_model"}  # a card of the user's own, and what a kill has left of an adapter's export


def origin_of(folder: Path) -> str | None:
  """What an export in a folder was made from; None where there is none."""
  with contextlib.suppress(OSError):
    return (folder / NAME).read_text("utf-8").strip()
  return None


def check_alone(folder: Path, origin: str) -> None:
  """Raises FileExistsError where a folder, which need not exist, holds anything but an export of the same origin."""
  if origin_of(folder) == origin:
    return
  _refuse_others(folder)
  others = sorted({file.name for file in folder.glob("[!.]*")} - _BESIDE)
  if others:
    shown = ", ".join(others[:3]) + ", …" * (len(others) > 3)
    raise FileExistsError(f"{folder} holds other files ({shown}); choose an empty folder, or another one")


def check_same(folder: Path, origin: str | None, config: str, read: Callable[[], Any], value: Any) -> None:
  """Raises FileExistsError where a folder, which need not exist, holds a run, or another model than is to be written.

  Args:
    folder: where a model or an adapter is to be written.
    origin: what it was made from, if it is an export.
    config: the file that says what a model or an adapter is.
    read: reads of the file what is there; it may raise whatever says that there is something else.
    value: what it gives of what is to be written.
  """
  if origin is not None and origin_of(folder) == origin.strip():
    return
  _refuse_others(folder)
  if (folder / config).exists():
    try:
      same = read() == value
    except (ValueError, OSError):
      same = False
    if not same:
      raise FileExistsError(f"{folder} holds another model ({config}); choose another folder")


def _refuse_others(folder: Path) -> None:
  found = [name for name in _OF_RUNS if (folder / name).exists()]
  if found:
    raise FileExistsError(f"{folder} holds a run or an evaluation ({found[0]}); choose another folder")
  if kept := origin_of(folder):
    raise FileExistsError(f"{folder} holds {kept}; choose another folder")
