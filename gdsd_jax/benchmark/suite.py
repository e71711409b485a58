"""The suite: all rows of one accelerator in one command, each kept as soon as it is there.

Rows that follow one another on the same model share a process, which makes the weights once. One that takes longer than
its limit, or fails, leaves a line in place of its numbers, and its process; the rows after it get another.
"""

from collections.abc import Callable, Sequence
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

from gdsd_jax import signals
from gdsd_jax.benchmark.suite_rows import Row, rows_of, SUITES
from gdsd_jax.checks import require, require_one_of
from gdsd_jax.runs.compiler_flags import GPU_FLAGS
from gdsd_jax.runs.files import write_whole

_START = 120.0  # seconds that a process may take until its weights are there


def chosen_rows(suite: str, names: Sequence[str] | None) -> list[Row]:
  """The rows of a suite, or those with these names or keys. Raises ValueError, one line, where there is none."""
  require_one_of("--suite", suite, tuple(SUITES))
  rows = rows_of(suite)
  known = {name for row in rows for name in (row.name, row.key)}
  for name in names or ():
    require(name in known, "--rows", f"{name!r} is not one of {', '.join(dict.fromkeys(row.name for row in rows))},"
            " nor one of these with .ours or .torch")
  return rows if names is None else [row for row in rows if {row.name, row.key} & set(names)]


def read_report(file: Path, suite: str) -> dict[str, Any]:
  """The report of an earlier call, or an empty one. Raises ValueError, one line, where the file is another's."""
  try:
    report = json.loads(file.read_text()) if file.exists() else {"suite": suite, "devices": {}, "rows": {}}
    fits = {"suite", "devices", "rows"} <= report.keys()
  except (OSError, ValueError, AttributeError):
    fits = False
  require(fits, "--out", f"{file} is there, and no report of --suite; choose another file")
  require(report["suite"] == suite, "--out", f"{file} is of --suite={report['suite']}; choose another file")
  return report


def run(suite: str, file: Path, names: Sequence[str] | None = None, say: Callable[[str], None] = print):
  """Measures what is chosen and not yet in the file, which is written after each row. Returns the report.

  It has for each row its numbers, or an `error`, which is tried again by the next call; and each side's `devices`.
  """
  rows, report = chosen_rows(suite, names), read_report(file, suite)
  worker = None
  try:
    for row in rows:
      if "error" in report["rows"].get(row.key, {"error": ""}):
        if worker is not None and worker.place != row.place:
          worker = worker.end()
        worker = worker or _Worker(row)
        found = worker.measure(row)
        say(f"{row.key}: {json.dumps(found)}")
        for side, device in worker.device.items():
          before = report["devices"].setdefault(side, device)
          require(before == device, "--out", f"{file} has rows of {before}, and this is {device}; choose another file")
        report["rows"][row.key] = found
        write_whole(file, json.dumps(report, indent=1) + "\n")
        if "error" in found:
          worker = worker.end()
  finally:
    if worker is not None:
      worker.end()
  return report


class _Worker:
  """A process that measures rows of one place.

  Attributes:
    device: side -> what it runs on, once that is known.
  """

  def __init__(self, row: Row):
    spawn = multiprocessing.get_context("spawn")
    self.place, self.device, self._started = row.place, {}, False
    self._connection, theirs = spawn.Pipe()
    with signals.unheard():
      self._process = spawn.Process(target=_serve, args=(theirs, row), daemon=True)
      self._process.start()
    theirs.close()

  def measure(self, row: Row) -> dict[str, Any]:
    """The row's numbers, or its `error`, one line."""
    limit = row.limit + (0 if self._started else _START)
    try:
      self._connection.send(row)
      if not self._connection.poll(limit):
        return {"error": f"it took longer than {limit:.0f} s"}
      found, self.device = self._connection.recv()
    except (EOFError, OSError):
      self._process.join()
      return {"error": f"its process ended with status {self._process.exitcode}"}
    self._started = True
    return found

  def end(self) -> None:
    self._process.kill()
    self._process.join()
    self._connection.close()


def _serve(connection, first: Row) -> None:
  """Measures the rows that come over the connection; sends (numbers, devices) for each, until an error."""
  signals.end_with_parent()
  # Before anything asks for a device. What the user has set, comes last and wins.
  users = os.environ.get("XLA_FLAGS", "").removeprefix(GPU_FLAGS)  # the command has put these before them
  os.environ["XLA_FLAGS"] = f"{GPU_FLAGS} {first.flags} {users}"
  import jax

  if first.side == "torch":
    jax.config.update("jax_platforms", "cpu")  # for random numbers, beside PyTorch's on the accelerator
    from gdsd_jax.benchmark.suite_torch import Torch as Side
  else:
    from gdsd_jax.benchmark.suite_ours import Ours as Side
  side, device = None, {}
  while True:
    row = connection.recv()
    try:
      side = side or Side(row.setting)
      device = {first.side: side.device}
      found = getattr(side, row.measure)(row.setting, **row.options)
    except Exception as error:  # whatever it is, the other rows are worth having
      found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
    connection.send((found, device))
