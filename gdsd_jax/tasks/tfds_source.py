"""Datasets of TFDS as records of plain Python values, and those of the hub that TFDS has prepared."""

from collections.abc import Iterator
import contextlib
import functools
import importlib
import io
import re
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from gdsd_jax.tasks import arithmetic
from gdsd_jax.tasks.network import check_network
from gdsd_jax.tasks.row_readers import first_line
from gdsd_jax.waiting import waiting

_NAME = re.compile(r"(?P<name>[a-zA-Z]\w*(/[\w+.-]+)?(:[\d.*]+)?)(#(?P<split>.+))?")


class Arithmetic(tfds.core.GeneratorBasedBuilder):
  """The arithmetic word problems as a dataset that TFDS knows as `arithmetic`: an example of a builder."""

  # Raise it whenever a generated problem changes: prepared copies of the same version are reused as they are.
  VERSION = tfds.core.Version("1.1.0")
  # Nothing is downloaded. TFDS would look for checksums by way of importlib_resources, which it fails to depend on.
  url_infos = None

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      description="Addition and subtraction word problems; no calculation is in two splits in the same sentence.",
      features=tfds.features.FeaturesDict({
        "question": tfds.features.Text(), "answer": np.int32, "reasoning": tfds.features.Text(),
      }),
      disable_shuffling=True,  # the problems come in their final order
    )

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in arithmetic.SPLIT_SIZES}

  def _generate_examples(self, split):
    return enumerate(arithmetic.problems(split))


class UnknownDatasetError(ValueError):
  """TFDS has no dataset of that name."""


def is_name(source: str) -> bool:
  """Whether a source reads like a TFDS name; the dataset need not exist."""
  return _NAME.fullmatch(source) is not None


def load(source: str, data_dir: str | None) -> tuple[list[str], Iterator[dict[str, Any]]]:
  """Column names and records of a split; prepares the dataset as ArrayRecord files on first use.

  Raises UnknownDatasetError, NoNetworkError, OSError on a folder that cannot be used, and whatever else TFDS raises.
  """
  name = _NAME.fullmatch(source)
  try:
    return records_of(_builder(name["name"], data_dir), name["split"])
  except tfds.core.registered.DatasetNotFoundError as error:
    raise UnknownDatasetError(first_line(error)) from error


def records_of(builder: tfds.core.DatasetBuilder, split: str | None) -> tuple[list[str], Iterator[dict[str, Any]]]:
  """Column names and records of a split of a prepared dataset; of its only one for None. Raises what TFDS raises."""
  split = only_split(list(builder.info.splits), split)
  return sorted(builder.info.features), map(_plain, builder.as_data_source(split))


def only_split(splits: list[str], asked: str | None) -> str:
  """The split that is asked for, which may be a slice, or the only one. ValueError where that does not say which."""
  if asked is None and len(splits) != 1:
    raise ValueError(f"say which split after #: {', '.join(splits)}")
  return asked or splits[0]


def prepare(builder: tfds.core.DatasetBuilder) -> None:
  """Writes a dataset to its folder without a word; another process may do the same. OSError where it cannot."""
  tfds.disable_progress_bar()
  try:
    # TFDS announces itself on standard output, which belongs to the program.
    with waiting(f"preparing {builder.name} of TFDS"), contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare()
  except OSError:
    # TFDS renames a finished folder into place, which fails if another process was faster. Its files are the same.
    if not builder.data_path.exists():
      raise


def prepared_hub_dataset(repo: str, config: str | None, data_dir: str | None) -> tfds.core.DatasetBuilder | None:
  """The dataset of the hub that TFDS has prepared in its folder, None where it has not."""
  from tensorflow_datasets.core.utils import conversion_utils

  with contextlib.suppress(tfds.core.registered.DatasetNotFoundError):
    return tfds.core.read_only_builder.builder_from_files(
      conversion_utils.to_tfds_name(repo), config=config and conversion_utils.to_tfds_name(config), data_dir=data_dir,
      file_format="array_record")


def _builder(name, data_dir):
  # TFDS stops importing its builders at the first one whose packages are missing; those of texts need none.
  with contextlib.suppress(ImportError):
    importlib.import_module("tensorflow_datasets.text")
  open_builder = functools.partial(tfds.builder, name, data_dir=data_dir, file_format="array_record")
  builder = open_builder()
  if builder.data_path.exists():
    return builder
  for url in [*(builder.url_infos or ()), *builder.info.as_proto.location.urls][:1]:
    check_network(url)
  prepare(builder)
  return open_builder()  # anew: a builder made before the files were there knows no splits if others wrote them


def _plain(value):
  if isinstance(value, np.ndarray | np.generic):
    value = value.tolist()
  if isinstance(value, bytes):
    return value.decode()
  if isinstance(value, dict):
    return {name: _plain(item) for name, item in value.items()}
  return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
