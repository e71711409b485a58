"""Opens the problems that a config names: a local file, a TFDS dataset, or a dataset of the Hugging Face hub."""

from collections.abc import Iterator, Mapping, Sequence
import csv
import dataclasses
import gzip
import io
import json
from pathlib import Path
from typing import Any, ClassVar
import zlib

from gdsd_jax.tasks import base
from gdsd_jax.tasks.rows import check_columns, examples_of, FILE_KINDS, Row


@dataclasses.dataclass(frozen=True)
class SourcedTask(base.Task):
  """A task whose problems are rows of a file or a dataset: `read_row` makes an example of each.

  Attributes:
    train_source, test_source: where the problems of the splits are, see `open_source`.
    data_dir: folder of TFDS datasets; None for the default of TFDS.
    columns: what every row must have.
  """

  train_source: str | None = None
  test_source: str | None = None
  data_dir: str | None = None
  columns: ClassVar[tuple[str, ...]] = ()

  def rows(self, split: str) -> Sequence[Row]:
    """The rows of a split, as they are stored."""
    base.check_split(split)
    field = f"{split}_source"
    return open_source(getattr(self, field), self.columns, field=f"task.{field}", data_dir=self.data_dir)

  def examples(self, split: str) -> Sequence[Mapping[str, Any]]:
    return examples_of(self.rows(split), self.read_row, field=f"task.{split}_source")

  def read_row(self, row: Row) -> dict[str, Any]:
    """The example that a row holds. ValueError, told with the row's place, where it holds none."""
    raise NotImplementedError


def open_source(source: str, columns: Sequence[str], *, field: str, data_dir: str | None = None) -> Sequence[Row]:
  """The rows of a local file or of a split of a TFDS dataset.

  Args:
    source: path of a .jsonl, .jsonl.gz, .json (a list of objects) or .csv file, or a TFDS name with the split after
      `#` (which may be left out where there is but one). `huggingface:` names are read through TFDS, too.
    columns: what every row must have; it may have more. Values keep their JSON types; those of CSV are text.
    field: config field that holds `source`, for messages.
    data_dir: folder where TFDS keeps prepared datasets; None for its default. What lies there needs no network.

  Raises:
    OSError: the source cannot be read, or there is no network to fetch it.
    ValueError: what it holds is not rows with these columns. Both in one line that names the field and the place.
  """
  kind = next((kind for kind in FILE_KINDS if source.lower().endswith(kind)), None)
  if kind is not None:
    rows = _open_file(source, kind, columns, field)
  else:
    from gdsd_jax.tasks import tfds_source  # it takes a while to import, and local files do without

    rows = tfds_source.open_rows(source, columns, field, data_dir)
  if not rows:
    raise ValueError(f"{field}: {source}: no problems in it")
  return rows


def _open_file(source, kind, columns, field):
  try:
    data = Path(source).expanduser().read_bytes()
    if kind.endswith(".gz"):
      data = gzip.decompress(data)
  # RuntimeError: the home of a user who is not there; ValueError: a zero byte in the path.
  except (OSError, EOFError, zlib.error, RuntimeError, ValueError) as error:
    raise OSError(f"{field}: cannot read {source}: {getattr(error, 'strerror', None) or error}") from error
  try:
    rows = [Row(values, f"{source}, {place}") for place, values in _READERS[kind](data)]
  except ValueError as error:
    raise ValueError(f"{field}: {source}, {error}") from error
  examples_of(rows, lambda row: check_columns(row, columns), field=field)
  return rows


# Readers yield (place, row), and raise ValueError with the place in front.


def _read_json_lines(data: bytes) -> Iterator[tuple[str, dict]]:
  for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
    if line.strip():
      yield f"line {number}", _json_object(_json(line, f"line {number}"), f"line {number}")


def _read_json_list(data: bytes) -> Iterator[tuple[str, dict]]:
  items = _json(data.removeprefix(b"\xef\xbb\xbf"), None)
  if not isinstance(items, list):
    raise ValueError("the whole file: must be a JSON list of objects")
  for number, item in enumerate(items, start=1):
    yield f"item {number}", _json_object(item, f"item {number}")


def _json(data: bytes, place: str | None) -> Any:
  """A JSON value; without a `place`, errors name the line that they come from, or the whole file."""
  try:
    value = json.loads(data.decode())
    if b"\\ud" in data.lower():
      json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is JSON, but no text
    return value
  except json.JSONDecodeError as error:
    raise ValueError(f"{place or f'line {error.lineno}'}: not JSON: {error.msg} at column {error.colno}") from error
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{place or 'the whole file'}: not JSON: {error}") from error


def _json_object(value: Any, place: str) -> dict:
  if not isinstance(value, dict):
    raise ValueError(f"{place}: must be a JSON object with the columns as its keys")
  return value


def _read_csv(data: bytes) -> Iterator[tuple[str, dict]]:
  try:
    text = data.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise ValueError(f"line {data.count(10, 0, error.start) + 1}: not UTF-8 text: {error}") from error
  reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
  try:
    for row in reader:
      if None in row or None in row.values():
        fields = len([value for value in row.values() if value is not None]) - (None in row) + len(row.get(None, []))
        raise ValueError(f"line {reader.line_num}: {fields} fields, but the header names {len(reader.fieldnames)}")
      yield f"line {reader.line_num}", row
  except csv.Error as error:
    raise ValueError(f"line {reader.reader.line_num}: not CSV: {error}") from error


_READERS = dict(zip(FILE_KINDS, (_read_json_lines, _read_json_lines, _read_json_list, _read_csv), strict=True))
