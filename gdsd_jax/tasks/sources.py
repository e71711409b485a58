"""Opens the problems that a config names: a local file, a TFDS dataset, or a dataset of the Hugging Face hub."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import csv
import dataclasses
import gzip
import io
import json
from pathlib import Path
from typing import Any, ClassVar
import zlib

from gdsd_jax.checks import require
from gdsd_jax.tasks import base

FILE_KINDS = (".jsonl", ".jsonl.gz", ".json", ".csv")  # endings of the files that rows are read from


class Row(dict):
  """A problem as it was stored, column name -> value, and the `place` where it was, such as "/data/a.jsonl, line 7"."""

  def __init__(self, values: Mapping[str, Any], place: str):
    super().__init__(values)
    self.place = place


def examples_of(rows: Sequence[Row], make_example: Callable[[Row], dict[str, Any]], *, field: str) -> list[dict]:
  """`make_example` of every row; its ValueErrors are raised again with the field and the row's place in front."""
  examples = []
  for row in rows:
    try:
      examples.append(make_example(row))
    except ValueError as error:
      raise ValueError(f"{field}: {row.place}: {error}") from error
  return examples


def text_of(row: Mapping[str, Any], column: str) -> str:
  """The text in a row's column. ValueError where it is not text."""
  if not isinstance(row[column], str):
    raise ValueError(f"column {column!r} must be text, it is {row[column]!r:.80}")
  return row[column]


def check_columns(names: Iterable[str], columns: Sequence[str]) -> None:
  """Raises ValueError unless all `columns` are among `names`, such as a row."""
  for column in columns:
    if column not in names:
      raise ValueError(f"no column {column!r}, it has {', '.join(map(repr, names)) or 'none'}")


@dataclasses.dataclass(frozen=True)
class SourcedTask(base.Task):
  """A task whose problems are rows of a file or a dataset: `read_row` makes an example of each."""

  train_source: str | None = None  # where the problems of a split are, see `open_source`
  test_source: str | None = None
  validation_source: str | None = None  # None: the tail of the training problems
  data_dir: str | None = None  # folder of TFDS datasets; None for the default of TFDS
  columns: ClassVar[tuple[str, ...]] = ()  # what every row must have

  @property
  def has_validation(self) -> bool:
    return self.validation_source is not None

  def rows(self, split: str) -> Sequence[Row]:
    """The rows of a split, as they are stored."""
    base.check_split(split, self.has_validation)
    field = f"{split}_source"
    require(getattr(self, field) is not None, f"task.{field}", f"{self.name} has no default for it; say where they are")
    return open_source(getattr(self, field), self.columns, field=f"task.{field}", data_dir=self.data_dir)

  def examples(self, split: str) -> Sequence[Mapping[str, Any]]:
    return examples_of(self.rows(split), self.read_row, field=f"task.{split}_source")

  def read_row(self, row: Row) -> dict[str, Any]:
    """The example that a row holds. ValueError, told with the row's place, where it holds none."""
    raise NotImplementedError


def open_source(source: str, columns: Sequence[str], *, field: str, data_dir: str | None = None) -> Sequence[Row]:
  """The rows of a local file or of a split of a TFDS dataset.

  OSError where it cannot be read or fetched, ValueError where it holds no rows with these columns: one line each, with
  the field and the place.

  Args:
    source: path of a .jsonl, .jsonl.gz, .json (a list of objects) or .csv file, or a TFDS name with the split after
      `#` (which may be left out where there is but one). `huggingface:` names are read through TFDS, too.
    columns: what every row must have; it may have more. Values keep their JSON types; those of CSV are text.
    field: config field that holds `source`, for messages.
    data_dir: folder where TFDS keeps prepared datasets; None for its default. What lies there needs no network.
  """
  kind = next((kind for kind in FILE_KINDS if source.lower().endswith(kind)), None)
  rows = _open_file(source, kind, columns, field) if kind else _open_dataset(source, columns, field, data_dir)
  require(len(rows) > 0, field, f"{source}: no problems in it")
  return rows


def _open_dataset(source, columns, field, data_dir):
  from gdsd_jax.tasks import tfds_source  # it takes a while to import, and local files do without

  require(tfds_source.is_name(source), field, (
    f"{source!r} is neither a file ending in {', '.join(FILE_KINDS)} nor a TFDS name, NAME[/CONFIG][:VERSION][#SPLIT] "
    "or huggingface:OWNER/NAME[/CONFIG][#SPLIT]"))
  try:
    names, records = tfds_source.load(source, data_dir)
    check_columns(names, columns)
    return [Row(record, f"{source}, row {number}") for number, record in enumerate(records, start=1)]
  except tfds_source.NoNetworkError as error:
    raise OSError(f"{field}: {source}: {error}; give a local file ({', '.join(FILE_KINDS)})") from error
  except OSError as error:
    place = "the default folder of TFDS" if data_dir is None else repr(data_dir)
    raise OSError(f"{field}: {source}, kept in {place}: {error.strerror or _first_line(error)}") from error
  except Exception as error:  # TFDS and the hub raise nearly everything
    raise ValueError(f"{field}: {source}: {_first_line(error.__cause__ or error)}") from error


def _first_line(error):
  return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _open_file(source, kind, columns, field):
  try:
    data = Path(source).expanduser().read_bytes()
    if kind.endswith(".gz"):
      data = gzip.decompress(data)
  # RuntimeError: the home of a user who is not there; ValueError: a zero byte in the path.
  except (OSError, EOFError, zlib.error, RuntimeError, ValueError) as error:
    raise OSError(f"{field}: cannot read {source}: {getattr(error, 'strerror', None) or error}") from error
  rows = []
  try:
    for place, values in _READERS[kind](data.removeprefix(b"\xef\xbb\xbf")):
      require(isinstance(values, dict), place, "must be a JSON object with the columns as its keys")
      rows.append(Row(values, f"{source}, {place}"))
  except ValueError as error:
    raise ValueError(f"{field}: {source}, {error}") from error
  examples_of(rows, lambda row: check_columns(row, columns), field=field)
  return rows


# Readers yield (place, row), and raise ValueError with the place in front.


def _read_json_lines(data: bytes) -> Iterator[tuple[str, Any]]:
  for number, line in enumerate(data.split(b"\n"), start=1):
    if line.strip():
      yield f"line {number}", _json(line, f"line {number}")


def _read_json_list(data: bytes) -> Iterator[tuple[str, Any]]:
  items = _json(data, None)
  require(isinstance(items, list), "the whole file", "must be a JSON list of objects")
  for number, item in enumerate(items, start=1):
    yield f"item {number}", item


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


def _read_csv(data: bytes) -> Iterator[tuple[str, dict]]:
  try:
    text = data.decode()
  except UnicodeDecodeError as error:
    raise ValueError(f"line {data.count(10, 0, error.start) + 1}: not UTF-8 text: {error}") from error
  reader = csv.reader(io.StringIO(text, newline=""), strict=True)
  try:
    header = next(reader, [])
    for fields in filter(None, reader):
      place = f"line {reader.line_num}"
      require(len(fields) == len(header), place, f"{len(fields)} fields, but the header names {len(header)}")
      yield place, dict(zip(header, fields))
  except csv.Error as error:
    raise ValueError(f"line {reader.line_num}: not CSV: {error}") from error


_READERS = dict(zip(FILE_KINDS, (_read_json_lines, _read_json_lines, _read_json_list, _read_csv), strict=True))
