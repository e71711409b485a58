"""The arithmetic problems as a TFDS dataset, kept as ArrayRecord: random access without TensorFlow."""

from collections.abc import Sequence
import contextlib
import io
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from gdsd_jax.tasks import arithmetic_problems


class Arithmetic(tfds.core.GeneratorBasedBuilder):
  """TFDS builder of the arithmetic word problems."""

  # Raise it whenever a generated problem changes: prepared copies of the same version are reused as they are.
  VERSION = tfds.core.Version("1.0.0")
  # Nothing is downloaded. TFDS would look for checksums by way of importlib_resources, which it fails to depend on.
  url_infos = None

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      description="Addition and subtraction word problems; no calculation is in both splits in the same sentence.",
      features=tfds.features.FeaturesDict({
        "question": tfds.features.Text(),
        "answer": np.int32,
        "reasoning": tfds.features.Text(),
      }),
    )

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in arithmetic_problems.SPLIT_SIZES}

  def _generate_examples(self, split):
    yield from enumerate(arithmetic_problems.problems(split))


class Examples(Sequence):
  """Records of a TFDS data source as dicts of str and int, decoded when asked for."""

  def __init__(self, source: Sequence[dict[str, Any]]):
    self._source = source

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    record = self._source[range(len(self))[index]]  # range: negative indices, and IndexError past the end
    return {name: value.decode() if isinstance(value, bytes) else int(value) for name, value in record.items()}


def open_split(split: str, data_dir: str | None) -> Examples:
  """Opens a split, after writing the dataset if this is its first use.

  Args:
    split: "train" or "test".
    data_dir: folder of TFDS datasets; None for the default of TFDS.

  Raises:
    OSError: the dataset can be neither read nor written there.
  """
  try:
    builder = _open(data_dir)
    if not builder.data_path.exists():
      _prepare(builder)
      # Anew, because a builder made before the files were there knows no splits if another process wrote them.
      builder = _open(data_dir)
    return Examples(builder.as_data_source(split))
  except OSError as error:
    place = "the default folder of TFDS" if data_dir is None else repr(data_dir)
    raise OSError(f"task.data_dir: cannot use {place} for the dataset: {error.strerror or error}") from error


def _open(data_dir):
  return Arithmetic(data_dir=data_dir, file_format="array_record")


def _prepare(builder):
  tfds.disable_progress_bar()
  try:
    # TFDS announces itself on standard output, which belongs to the program.
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare()
  except OSError:
    # TFDS renames a finished folder into place, which fails if another process was faster. Its files are the same.
    if not builder.data_path.exists():
      raise
