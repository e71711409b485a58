"""Opens the problems that a config names: files, folders, a TFDS dataset, or a dataset of the Hugging Face hub."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import logging
import re
from typing import Any, ClassVar

from gdsd_jax.checks import require, require_one_of
from gdsd_jax.paths import expanded
from gdsd_jax.tasks import base, row_files
from gdsd_jax.tasks.network import NoNetworkError
from gdsd_jax.tasks.row_readers import Entry, first_line
from gdsd_jax.waiting import waiting

BAD_ROWS = ("refuse", "skip")
_OWNER_AND_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(/[\w.-]+)?(#.*)?")
_log = logging.getLogger(__name__)


class Row(dict):
  """A problem as it was stored, column name -> value, and the `place` where it was, such as "/data/a.jsonl, line 7"."""

  def __init__(self, values: Mapping[str, Any], place: str):
    super().__init__(values)
    self.place = place


class Rows(list[Row]):
  """The rows of a source, in order.

  Attributes:
    left_out: what is wrong with each bad row, in one line; None where bad rows are refused.
  """

  left_out: list[str] | None = None


def examples_of(rows: Sequence[Row], make_example: Callable[[Row], dict[str, Any]], *, field: str) -> list[dict]:
  """`make_example` of every row.

  Its ValueErrors are raised again with the field and the row's place in front. Of `Rows` that skip what is bad, these
  rows are left out, and one line says how many there were; ValueError where no other is left.
  """
  said = getattr(rows, "left_out", None)
  left_out, examples = None if said is None else list(said), []
  with waiting(f"reading {field}", len(rows), "rows") as wait:
    for row in rows:
      wait.advance()
      try:
        examples.append(make_example(row))
      except ValueError as error:
        _leave_out(left_out, f"{row.place}: {error}", field, error)
  if left_out:
    bad = len(left_out)
    require(bool(examples), field, f"all {bad} rows are bad, the first: {left_out[0]}")
    _log.info("%s: %d of %d rows are bad and skipped, the first: %s", field, bad, bad + len(examples), left_out[0])
  return examples


def _leave_out(left_out: list[str] | None, said: str, field: str, error: ValueError) -> None:
  """Notes what is wrong with a row. Raises it, with the field in front, where bad rows are refused."""
  if left_out is None:
    raise ValueError(f"{field}: {said}") from error
  left_out.append(said)


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

  train_source: str | None = None  # where the training problems are (docs/data.md)
  test_source: str | None = None  # where those are that only launch/evaluate.py sees
  validation_source: str | None = None  # None: the tail of the training problems
  data_dir: str | None = None  # folder of prepared datasets; None for the default of TFDS, and of the hub's library
  columns: str | Mapping[str, str] = ""  # what the source calls the columns, NAME=COLUMN with commas between
  bad_rows: str = "refuse"  # rows that cannot be read, or "skip": they are left out, and counted
  required: ClassVar[tuple[str, ...]] = ()  # the columns that every row must have

  @property
  def has_validation(self) -> bool:
    return self.validation_source is not None

  def rows(self, split: str) -> Rows:
    """The rows of a split, as they are stored, with the columns' names that the task has for them."""
    base.check_split(split, self.has_validation)
    source, field = getattr(self, f"{split}_source"), f"task.{split}_source"
    require(bool(source), field, "name a file, a folder or a dataset of problems")
    return open_source(
      source, self.required, field=field, data_dir=self.data_dir, names=self.columns, bad_rows=self.bad_rows)

  def examples(self, split: str) -> Sequence[Mapping[str, Any]]:
    return examples_of(self.rows(split), self.read_row, field=f"task.{split}_source")

  def read_row(self, row: Row) -> dict[str, Any]:
    """The example that a row holds. ValueError, told with the row's place, where it holds none."""
    raise NotImplementedError


def open_source(
  source: str, columns: Sequence[str], *, field: str, data_dir: str | None = None, names: str | Mapping[str, str] = "",
  bad_rows: str = "refuse",
) -> Rows:
  """The rows of files, of a TFDS dataset, or of a dataset of the hub.

  OSError where it cannot be read or fetched, ValueError where it holds no rows with these columns: one line each, with
  the field and the place.

  Args:
    source: path of a file (FILE_KINDS; .gz may follow), a folder of such files or a pattern, such as data/*.jsonl, here
      or at an address like s3://…, gs://…, hf://… or https://…; or a TFDS name, or huggingface:OWNER/NAME[/CONFIG]. The
      split may follow after `#`, with a slice or without: #train, #train[:90%], #[-100:].
    columns: what every row must have; it may have more. Values keep their JSON types; those of CSV are text.
    field: config field that holds `source`, for messages; `columns` and `bad_rows` are told as its neighbours.
    data_dir: folder where TFDS and the hub's library keep datasets; None for their defaults. What lies there needs no
      network.
    names: what the source calls columns, as "question=problem,answer=solution", or as a mapping from the names that are
      asked for to those that the source has.
    bad_rows: "refuse" raises on a row that cannot be read, "skip" leaves it out, see `Rows`.
  """
  section = field.rpartition(".")[0]
  require_one_of(f"{section}.bad_rows", bad_rows, BAD_ROWS)
  data_dir = data_dir and expanded(data_dir, f"{section}.data_dir")
  own_names = _own_names(names, f"{section}.columns")
  rows = Rows()
  rows.left_out = [] if bad_rows == "skip" else None
  with waiting(f"reading {source}"):
    for place, make in _entries(source, columns, field, data_dir, own_names):
      try:
        rows.append(Row(_renamed(_columns_in(make()), own_names, columns), place))
      except ValueError as error:
        _leave_out(rows.left_out, f"{place}: {error}", field, error)
  if not rows and rows.left_out:
    raise ValueError(f"{field}: all {len(rows.left_out)} rows are bad, the first: {rows.left_out[0]}")
  require(len(rows) > 0, field, f"{source}: no problems in it")
  return rows


def _own_names(names, field) -> dict[str, str]:
  """The name that the task has for a column -> the source's."""
  if isinstance(names, Mapping):
    return dict(names)
  pairs = [part.strip().partition("=") for part in names.split(",") if part.strip()]
  require(all(name.strip() and own.strip() for name, _, own in pairs), field,
          f"{names!r} must be NAME=COLUMN,…, such as question=problem for a source that calls the question so")
  return {name.strip(): own.strip() for name, _, own in pairs}


def _columns_in(value):
  if not isinstance(value, dict):
    raise ValueError("must be a JSON object with the columns as its keys")
  return value


def _renamed(row, own_names, columns):
  """A row with the task's names. ValueError where it lacks one of the columns, told by the source's name."""
  check_columns(row, [own_names.get(column, column) for column in columns] + list(own_names.values()))
  others = {name: value for name, value in row.items() if name not in own_names.values()}
  return others | {name: row[own] for name, own in own_names.items()}


def _entries(source, columns, field, data_dir, own_names) -> Iterable[Entry]:
  try:
    entries = row_files.open_files(source)
  except (OSError, ValueError) as error:
    raise (OSError if isinstance(error, OSError) else ValueError)(f"{field}: {error}") from error
  if entries is not None:
    return entries
  from gdsd_jax.tasks import hub_source, tfds_source  # they take a while to import, and files do without

  hint = f". On the hub it would be huggingface:{source}" if _OWNER_AND_NAME.fullmatch(source) else ""
  library = next((library for library in (hub_source, tfds_source) if library.is_name(source)), None)
  require(library is not None, field, (
    f"{source!r} is neither a file ending in {row_files.KNOWN}, nor a folder of such files, nor a TFDS name, "
    f"NAME[/CONFIG][:VERSION][#SPLIT], nor huggingface:OWNER/NAME[/CONFIG][#SPLIT]{hint}"))
  try:
    names, records = library.load(source, data_dir)
    _renamed(dict.fromkeys(names), own_names, columns)
    return [(f"{source}, row {number}", lambda record=record: record) for number, record in enumerate(records, start=1)]
  except NoNetworkError as error:
    raise OSError(f"{field}: {source}: {error}; give a local file ({row_files.KNOWN})") from error
  except tfds_source.UnknownDatasetError as error:
    raise ValueError(f"{field}: {source}: {str(error).removesuffix('.')}{hint or '.'}") from error
  except OSError as error:
    place = "the default folder of the library" if data_dir is None else repr(data_dir)
    raise OSError(f"{field}: {source}, kept in {place}: {error.strerror or first_line(error)}") from error
  except Exception as error:  # TFDS and the hub raise nearly everything
    raise ValueError(f"{field}: {source}: {first_line(error.__cause__ or error)}") from error
