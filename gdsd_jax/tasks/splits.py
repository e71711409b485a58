"""The split after `#` in the name of a source, written as TFDS and datasets do: `train`, `train[:90%]`, `[-100:]`."""

from collections.abc import Sequence
import dataclasses
import re

_SPLIT = re.compile(r"(?P<name>\w*)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?", re.ASCII)
# What users and the names of files call each split.
_WORDS = {
  "train": ("train", "training"), "validation": ("validation", "valid", "val", "dev"),
  "test": ("test", "testing", "eval", "evaluation"),
}


@dataclasses.dataclass(frozen=True)
class Split:
  """A part of a source: of its split `name`, or of all where that is empty, the rows from `start` up to `stop`."""

  source: str  # as it was written, for messages
  name: str
  start: str  # such as "10", "-10" or "90%"; empty for the first row
  stop: str  # empty for the end

  def of(self, rows: Sequence) -> list:
    """The rows from start to stop. ValueError where there are not so many, or none is left."""
    first = self._position(self.start, len(rows)) if self.start else 0
    end = self._position(self.stop, len(rows)) if self.stop else len(rows)
    if rows and first >= end:
      raise ValueError(f"{self.source}: none of its {len(rows)} rows lies in the slice")
    return list(rows[first:end])

  def _position(self, bound, count):
    """The row that a bound means. Shares are rounded, and -10% is 90%: slices that meet have no row in common."""
    number, whole = int(bound.removesuffix("%")), 100 if bound.endswith("%") else count
    if not -whole <= number <= whole:
      raise ValueError(f"{self.source}: {bound} is beyond its {count} rows")
    number += whole if number < 0 else 0
    return round(number * count / 100) if bound.endswith("%") else number


def parse_split(text: str, source: str) -> Split:
  """The split that `text`, which follows `#`, means; all where it is empty. ValueError where it is no split."""
  found = _SPLIT.fullmatch(text)
  if found is None:
    raise ValueError(f"{source}: {text!r} is no split; it is written as #train, #train[:90%] or #[100:-50]")
  name = found["name"].lower()
  known = split_in(name) if name.isalpha() else None  # train_sft is a split of its own
  return Split(source, known or name, found["start"] or "", found["stop"] or "")


def split_in(name: str) -> str | None:
  """The split that a name speaks of, "train" for train-00000-of-00001.parquet; None for a name of no split."""
  words = re.findall("[a-z]+", name.lower())
  return next((split for word in words for split, known in _WORDS.items() if word in known), None)


def speaks_of(name: str, split: str) -> bool:
  """Whether a file's name speaks of a split: of "train" by any of its words, of another, train_sft say, by it whole."""
  if split in _WORDS:
    return split_in(name) == split
  return re.search(rf"(?<![a-z0-9]){re.escape(split)}(?![a-z0-9])", name.lower()) is not None
