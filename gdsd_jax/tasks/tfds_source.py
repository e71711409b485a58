"""Datasets of TFDS, and through TFDS those of the Hugging Face hub, as rows of plain Python values."""

from collections.abc import Sequence
import contextlib
import importlib
import importlib.util
import io
import re
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
import tensorflow_datasets as tfds

from gdsd_jax.tasks import arithmetic_dataset  # noqa: F401  (its import makes the name `arithmetic` known)
from gdsd_jax.tasks.rows import check_columns, FILE_KINDS, Row

_HUB_NAME = re.compile(r"huggingface:(?P<repo>[\w.-]+/[\w.-]+)(/(?P<config>[\w.-]+))?(#(?P<split>.+))?")
_TFDS_NAME = re.compile(r"(?P<name>[a-zA-Z]\w*(/[\w+.-]+)?(:[\d.*]+)?)(#(?P<split>.+))?")
_NAME_KINDS = "a TFDS name, NAME[/CONFIG][:VERSION][#SPLIT] or huggingface:OWNER/NAME[/CONFIG][#SPLIT]"
_NETWORK_TIMEOUT = 10  # seconds


class _NoNetworkError(Exception):
  pass


def open_rows(source: str, columns: Sequence[str], field: str, data_dir: str | None) -> list[Row]:
  """The rows of a split; prepares the dataset as ArrayRecord files on first use. See `sources.open_source`."""
  hub, local = _HUB_NAME.fullmatch(source), _TFDS_NAME.fullmatch(source)
  if not hub and not local:
    raise ValueError(f"{field}: {source!r} is neither a file ending in {', '.join(FILE_KINDS)} nor {_NAME_KINDS}")
  try:
    builder = _hub_builder(hub["repo"], hub["config"], data_dir) if hub else _tfds_builder(local["name"], data_dir)
    split = (hub or local)["split"] or _only_split(builder)
    check_columns(sorted(builder.info.features), columns)
    records = enumerate(builder.as_data_source(split), start=1)
    return [Row(_plain(record), f"{source}, row {number}") for number, record in records]
  except _NoNetworkError as error:
    raise OSError(f"{field}: {source}: {error}; give a local file ({', '.join(FILE_KINDS)})") from error
  except OSError as error:
    place = "the default folder of TFDS" if data_dir is None else repr(data_dir)
    raise OSError(f"{field}: {source}, kept in {place}: {error.strerror or _first_line(error)}") from error
  except Exception as error:  # TFDS and the hub raise nearly everything
    raise ValueError(f"{field}: {source}: {_first_line(error.__cause__ or error)}") from error


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

  def open_builder():
    return tfds.builder(name, data_dir=data_dir, file_format="array_record")

  builder = open_builder()
  if builder.data_path.exists():
    return builder
  for url in [*(builder.url_infos or ()), *builder.info.as_proto.location.urls][:1]:
    _check_network(url)
  prepare(builder)
  return open_builder()  # anew: a builder made before the files were there knows no splits if others wrote them


def _hub_builder(repo, config, data_dir):
  from tensorflow_datasets.core.utils import conversion_utils

  def open_prepared():
    return tfds.core.read_only_builder.builder_from_files(
      conversion_utils.to_tfds_name(repo), config=config and conversion_utils.to_tfds_name(config),
      data_dir=data_dir, file_format="array_record",
    )

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
    hf_repo_id=repo, hf_config=config, data_dir=data_dir, file_format="array_record",
  ))
  return open_prepared()


def _only_split(builder):
  splits = list(builder.info.splits)
  if len(splits) != 1:
    raise ValueError(f"say which split after #: {', '.join(splits)}")
  return splits[0]


def _check_network(url):
  """Fails at once where the downloaders would try again for minutes."""
  try:
    urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_NETWORK_TIMEOUT).close()
  except urllib.error.HTTPError:
    pass  # an answer, whatever it says
  except OSError as error:
    reason = getattr(error, "reason", error)
    raise _NoNetworkError(f"no network to {urllib.parse.urlsplit(url).netloc} ({reason})") from error


def _plain(value):
  if isinstance(value, np.ndarray | np.generic):
    value = value.tolist()
  if isinstance(value, bytes):
    return value.decode()
  if isinstance(value, dict):
    return {name: _plain(item) for name, item in value.items()}
  return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _first_line(error):
  lines = str(error).strip().splitlines()
  return lines[0] if lines else type(error).__name__
