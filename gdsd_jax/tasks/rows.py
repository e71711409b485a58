"""Rows of a source: problems as they were stored, where each was read, and what is asked of their columns."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

FILE_KINDS = (".jsonl", ".jsonl.gz", ".json", ".csv")  # endings of the files that rows are read from


class Row(dict):
  """A problem as it was stored, column name -> value.

  Attributes:
    place: where it was read, for messages, such as "/data/train.jsonl, line 7".
  """

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
