"""The report of a comparison: its JSON, and the tables and the picture that are made of it."""

from collections.abc import Mapping
import json
from pathlib import Path
from typing import Any

from gdsd_jax.checks import require
from gdsd_jax.comparison.config import ComparisonConfig
from gdsd_jax.comparison.picture import picture
from gdsd_jax.comparison.results import collect
from gdsd_jax.comparison.summary import summarize
from gdsd_jax.comparison.table import BEGIN, END, placed, tables
from gdsd_jax.runs.files import require_folder, write_whole


def report_folder(config: ComparisonConfig, as_given: Mapping[str, Any], folder: Path) -> str:
  """Reports what is done so far of a comparison in its folder; returns the tables. Raises OSError where it is none."""
  require_folder(folder)
  results, choices = collect(config, folder)
  return _write({"config": as_given, "choices": choices, "runs": results}, folder / f"{config.report}.json")


def report_file(file: Path) -> str:
  """Makes tables and picture of a report again, beside it; returns the tables. Raises ValueError or OSError."""
  try:
    text = file.read_text()
  except OSError as error:
    raise OSError(f"--report: cannot read {file}: {error.strerror}") from None
  try:
    found = json.loads(text)
    found = {name: found[name] for name in ("config", "choices", "runs")}
    summarize(found)
  except (ValueError, LookupError, TypeError, AttributeError) as error:
    raise ValueError(f"--report: {file} is no report of a comparison: {type(error).__name__} {error}") from None
  return _write(found, file)


def _write(report: dict[str, Any], file: Path) -> str:
  document = file.with_suffix(".md")
  before = document.read_text() if document.exists() else None
  require(before is None or {BEGIN, END} <= set(before.splitlines()), "--report",
          f"{document} is there, and lacks the two lines between which tables belong: {BEGIN} and {END}")
  report["summary"] = summarize(report)
  text, image = f"![Learning curves, and what they end at]({file.stem}.png)\n\n{tables(report)}", picture(report)
  write_whole(file, _json(report))
  write_whole(document, placed(text, before))
  write_whole(file.with_suffix(".png"), image)
  return text


def _json(report: Mapping[str, Any]) -> str:
  """JSON with a run a line."""
  runs = ",\n".join(json.dumps(run) for run in report["runs"])
  rest = {name: value for name, value in report.items() if name != "runs"}
  return f'{json.dumps(rest, indent=1)[:-2]},\n "runs": [\n{runs}\n]\n}}\n'
