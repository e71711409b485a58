"""Datasets of TFDS, and through TFDS those of the Hugging Face hub, as records of plain Python values."""

from collections.abc import Iterator
import contextlib
import functools
import importlib
import importlib.util
import io
import re
from typing import Any
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
import tensorflow_datasets as tfds

from gdsd_jax.tasks import arithmetic

_HUB_NAME = re.compile(r"huggingface:(?P<repo>[\w.-]+/[\w.-]+)(/(?P<config>[\w.-]+))?(#(?P<split>.+))?")
_TFDS_NAME = re.compile(r"(?P<name>[a-zA-Z]\w*(/[\w+.-]+)?(:[\d.*]+)?)(#(?P<split>.+))?")


class NoNetworkError(Exception):
  """A dataset is not here, and nor is a network to fetch it."""


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


def is_name(source: str) -> bool:
  """Whether a source reads like a TFDS or hub name; the dataset need not exist."""
  return bool(_HUB_NAME.fullmatch(source) or _TFDS_NAME.fullmatch(source))


def load(source: str, data_dir: str | None) -> tuple[list[str], Iterator[dict[str, Any]]]:
  """Column names and records of a split; prepares the dataset as ArrayRecord files on first use.

  Raises NoNetworkError, OSError on a folder that cannot be used, and whatever else TFDS and the hub raise.
  """
  hub, local = _HUB_NAME.fullmatch(source), _TFDS_NAME.fullmatch(source)
  builder = _hub_builder(hub["repo"], hub["config"], data_dir) if hub else _tfds_builder(local["name"], data_dir)
  name = hub or local
  splits = [name["split"]] if name["split"] else list(builder.info.splits)
  if len(splits) != 1:
    raise ValueError(f"say which split after #: {', '.join(splits)}")
  return sorted(builder.info.features), map(_plain, builder.as_data_source(splits[0]))


def prepare(builder: tfds.core.DatasetBuilder) -> None:
  """Writes a dataset to its folder without a word; another process may do the same. OSError where it cannot."""
  tfds.disable_progress_bar()
  try:
    # TFDS announces itself on standard output, which belongs to the program.
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare()
  except OSError:
    # TFDS renames a finished folder into place, which fails if another process was faster. Its files are the same.
    if not builder.data_path.exists():
      raise


def _tfds_builder(name, data_dir):
  # TFDS stops importing its builders at the first one whose packages are missing; those of texts need none.
  with contextlib.suppress(ImportError):
    importlib.import_module("tensorflow_datasets.text")
  open_builder = functools.partial(tfds.builder, name, data_dir=data_dir, file_format="array_record")
  builder = open_builder()
  if builder.data_path.exists():
    return builder
  for url in [*(builder.url_infos or ()), *builder.info.as_proto.location.urls][:1]:
    _check_network(url)
  prepare(builder)
  return open_builder()  # anew: a builder made before the files were there knows no splits if others wrote them


def _hub_builder(repo, config, data_dir):
  from tensorflow_datasets.core.utils import conversion_utils

  open_prepared = functools.partial(
    tfds.core.read_only_builder.builder_from_files, conversion_utils.to_tfds_name(repo),
    config=config and conversion_utils.to_tfds_name(config), data_dir=data_dir, file_format="array_record")
  with contextlib.suppress(tfds.core.registered.DatasetNotFoundError):
    return open_prepared()
  if importlib.util.find_spec("datasets") is None:
    raise ValueError("the hub needs the package datasets: pip install 'gdsd_jax[hub]'; or give a local file")
  import datasets
  import huggingface_hub.constants
  from tensorflow_datasets.core.dataset_builders import huggingface_dataset_builder

  _check_network(huggingface_hub.constants.ENDPOINT)
  datasets.disable_progress_bars()
  prepare(huggingface_dataset_builder.HuggingfaceDatasetBuilder(
    hf_repo_id=repo, hf_config=config, data_dir=data_dir, file_format="array_record"))
  return open_prepared()


def _check_network(url):
  """Fails at once where the downloaders would try again for minutes."""
  try:
    urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10).close()
  except urllib.error.HTTPError:
    pass  # an answer, whatever it says
  except OSError as error:
    reason = getattr(error, "reason", error)
    raise NoNetworkError(f"no network to {urllib.parse.urlsplit(url).netloc} ({reason})") from error


def _plain(value):
  if isinstance(value, np.ndarray | np.generic):
    value = value.tolist()
  if isinstance(value, bytes):
    return value.decode()
  if isinstance(value, dict):
    return {name: _plain(item) for name, item in value.items()}
  return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
