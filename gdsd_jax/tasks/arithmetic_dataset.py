"""The arithmetic problems as a TFDS dataset, kept as ArrayRecord: random access without TensorFlow."""

import numpy as np
import tensorflow_datasets as tfds

from gdsd_jax.tasks import arithmetic_problems, tfds_source


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


def open_split(split: str, data_dir: str | None) -> tfds_source.Rows:
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
      tfds_source.prepare(builder)
      # Anew, because a builder made before the files were there knows no splits if another process wrote them.
      builder = _open(data_dir)
    return tfds_source.Rows(builder.as_data_source(split), f"arithmetic#{split}")
  except OSError as error:
    place = "the default folder of TFDS" if data_dir is None else repr(data_dir)
    raise OSError(f"task.data_dir: cannot use {place} for the dataset: {error.strerror or error}") from error


def _open(data_dir):
  return Arithmetic(data_dir=data_dir, file_format="array_record")
