"""The arithmetic problems as a TFDS dataset: an example of a builder, known to task sources as `arithmetic`."""

import numpy as np
import tensorflow_datasets as tfds

from gdsd_jax.tasks import arithmetic_problems


class Arithmetic(tfds.core.GeneratorBasedBuilder):
  """TFDS builder of the arithmetic word problems. Importing this file makes its name known to TFDS."""

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
      disable_shuffling=True,  # the problems come in their final order
    )

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in arithmetic_problems.SPLIT_SIZES}

  def _generate_examples(self, split):
    return enumerate(arithmetic_problems.problems(split))
