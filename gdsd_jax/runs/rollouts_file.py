"""WORKDIR/rollouts.jsonl: some of a run's rollouts, a JSON object a group, in a file of bounded size."""

from collections.abc import Mapping, Sequence
import json
import logging
from typing import Any, NamedTuple

from etils import epath

from gdsd_jax.runs.files import add_lines, read_rows, write_whole
from gdsd_jax.runs.log_config import LogConfig

FILE = "rollouts.jsonl"
_MOST_THINNED = 64  # times: no run has so many steps that it could be halved as often
_log = logging.getLogger(__name__)


class _Row(NamedTuple):
  step: int
  text: str  # the object as JSON, without `thinned` and its last brace


class RolloutsFile:
  """The rows of kept steps: the first, and every `log.keep_every` from there.

  Where the file would outgrow `log.keep_megabytes`, every second of these steps is dropped, and from then on half as
  many are kept. How often that was, `thinned`, stands in each row. So what is in the file depends on the run's rows
  alone, and not on when it was killed and resumed.
  """

  def __init__(self, workdir: epath.Path, last_step: int, config: LogConfig):
    """Opens the file, if it is there, and drops the rows after `last_step`: a resumed run writes them again.

    Raises ValueError, which names the line and what to do, where one is damaged.
    """
    self._path, self._every, self._most = workdir / FILE, config.keep_every, int(config.keep_megabytes * 1e6)
    self._thinned, self._rows, self._said = 0, [], False
    if not self._path.is_file():
      return
    for row, thinned in self._read():
      if row.step <= last_step:
        self._rows.append(row)
      self._thinned = max(self._thinned, thinned)
    if self._rows:
      write_whole(self._path, self._lines(self._rows))
    else:
      self._thinned = 0
      self._path.unlink()

  def _read(self) -> list[tuple[_Row, int]]:
    try:
      return read_rows(self._path, _parse)
    except ValueError as error:
      raise ValueError(f"{error}; delete that line, or move the file away: nothing is computed from it") from None

  def keeps(self, step: int) -> bool:
    """Whether the rows of a step are kept."""
    return is_kept(step, self._every << self._thinned)

  def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the rows of a kept step; returns once they are on the disk, or in the object store. Raises OSError."""
    new = [_Row(row["step"], json.dumps(row)[:-1]) for row in rows]
    while new and self._size(new) > self._most:
      new.pop()
    if len(new) < len(rows) and not self._said:
      self._said = True
      _log.warning("log.keep_megabytes: %d of a step's %d groups fit into %s; the others are not kept", len(new),
                   len(rows), FILE)
    if not new:
      return
    if self._size(self._rows) + self._size(new) <= self._most:
      self._rows += new
      add_lines(self._path, self._lines(new), lambda: self._lines(self._rows))
      return
    while self._size(self._rows) + self._size(new) > self._most:
      self._thinned += 1
      self._rows = [row for row in self._rows if self.keeps(row.step)]
      if self._rows and new and not self.keeps(new[0].step):
        new = []
    self._rows += new
    write_whole(self._path, self._lines(self._rows))

  def _size(self, rows: Sequence[_Row]) -> int:
    return sum(len(row.text) for row in rows) + len(rows) * len(self._end())

  def _lines(self, rows: Sequence[_Row]) -> str:
    return "".join(row.text + self._end() for row in rows)

  def _end(self) -> str:
    return f', "thinned": {self._thinned}}}\n'


def is_kept(step: int, every: int) -> bool:
  """Whether a step's rollouts are kept: of the first and every `every` from there; never where that is 0."""
  return every > 0 and (step - 1) % every == 0


def _parse(line: bytes) -> tuple[_Row, int]:
  try:
    row = json.loads(line)
    thinned = int(row.pop("thinned"))
    if not 0 <= thinned < _MOST_THINNED:
      raise ValueError(f"thinned must lie in 0 to {_MOST_THINNED - 1}, not {thinned}")
    return _Row(int(row["step"]), json.dumps(row)[:-1]), thinned
  except (ValueError, LookupError, AttributeError, TypeError, OverflowError, RecursionError) as error:
    raise ValueError(f"no row of {FILE}: {error}") from None
