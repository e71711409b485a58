"""What stands in a file of rows: JSON lines, a list in JSON, CSV, parquet, or Arrow as `datasets` saves it."""

from collections.abc import Callable, Iterator, Sequence
import csv
import functools
import importlib.util
import io
import json
import sys
from typing import Any

FILE_KINDS = (".jsonl", ".json", ".csv", ".parquet", ".arrow")  # endings of files of rows; .gz may follow

csv.field_size_limit(sys.maxsize)  # of a cell: a long conversation has more than the default, 131,072 characters

# A row that is still to be read: its place, and what gives its columns or raises ValueError.
Entry = tuple[str, Callable[[], Any]]


def kind_of(name: str) -> str | None:
  """The ending in FILE_KINDS that a file's name has, before .gz or not; None where it has none of them."""
  ending = name.lower().removesuffix(".gz")
  return next((kind for kind in FILE_KINDS if ending.endswith(kind)), None)


def lacks(kind: str) -> str | None:
  """The package that reading such files needs, where it is not installed."""
  return "pyarrow" if kind in (".parquet", ".arrow") and importlib.util.find_spec("pyarrow") is None else None


def entries(kind: str, data: bytes) -> Iterator[Entry]:
  """The rows in the bytes of a file, one bad one among them or not.

  Raises ValueError, the place in front, on what leaves no rows to go on with.
  """
  return _READERS[kind](data.removeprefix(b"\xef\xbb\xbf"))


def first_line(error: BaseException) -> str:
  """The first line of an error's message; the error's name where it says nothing."""
  return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _read_json_lines(data):
  for number, line in enumerate(data.split(b"\n"), start=1):
    if line.strip():
      yield f"line {number}", functools.partial(_json, line)


def _read_json_list(data):
  try:
    items = _json(data)
  except ValueError as error:
    cause = error.__cause__
    if isinstance(cause, json.JSONDecodeError) and cause.msg == "Extra data":  # JSON lines under another name
      yield from _read_json_lines(data)
      return
    place = f"line {cause.lineno}" if isinstance(cause, json.JSONDecodeError) else "the whole file"
    raise ValueError(f"{place}: {error}") from error
  if not isinstance(items, list):
    raise ValueError("the whole file: must be a JSON list of objects")
  for number, item in enumerate(items, start=1):
    yield f"item {number}", lambda item=item: item


def _json(data: bytes) -> Any:
  try:
    value = json.loads(data.decode())
    if b"\\ud" in data.lower():
      json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is JSON, but no text
    return value
  except json.JSONDecodeError as error:
    raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error
  except (ValueError, RecursionError) as error:
    raise ValueError(f"not JSON: {error}") from error


def _read_csv(data):
  try:
    text = data.decode()
  except UnicodeDecodeError as error:
    raise ValueError(f"line {data.count(10, 0, error.start) + 1}: not UTF-8 text: {error}") from error
  reader = csv.reader(io.StringIO(text, newline=""), strict=True)
  try:
    header = next(reader, [])
    _check_names(header, "line 1")
    for fields in filter(None, reader):
      yield f"line {reader.line_num}", functools.partial(_csv_row, header, fields)
  except csv.Error as error:
    raise ValueError(f"line {reader.line_num}: not CSV: {error}") from error


def _check_names(names: Sequence[str], place: str) -> None:
  twice = next((name for name in names if name and list(names).count(name) > 1), None)  # an index may have no name
  if twice is not None:
    raise ValueError(f"{place}: it has the column {twice!r} twice")


def _csv_row(header, fields):
  if len(fields) != len(header):
    raise ValueError(f"{len(fields)} fields, but the header names {len(header)}")
  return dict(zip(header, fields))


def _read_parquet(data):
  from pyarrow import parquet  # it takes a while to import, and comes with the extra `hub`

  # Without threads: where JAX is in the process, too, theirs abort it at its end.
  return _read_table("parquet", lambda: parquet.ParquetFile(io.BytesIO(data), pre_buffer=False).read(use_threads=False))


def _read_arrow(data):
  from pyarrow import ipc

  opened = ipc.open_file if data.startswith(b"ARROW1") else ipc.open_stream
  return _read_table("Arrow", lambda: opened(data, options=ipc.IpcReadOptions(use_threads=False)).read_all())


def _read_table(kind, read):
  try:
    table = read()
    names, rows = table.column_names, table.to_pylist()
  except Exception as error:  # pyarrow's own, and those of Python's values that a column does not fit into
    raise ValueError(f"the whole file: not {kind}: {first_line(error)}") from error
  _check_names(names, "the whole file")
  for number, row in enumerate(rows, start=1):
    yield f"row {number}", lambda row=row: row


_READERS = dict(zip(
  FILE_KINDS, (_read_json_lines, _read_json_list, _read_csv, _read_parquet, _read_arrow), strict=True))
