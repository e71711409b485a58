"""Datasets of the Hugging Face hub, as records of plain Python values, read by its library `datasets`."""

from collections.abc import Iterable
import importlib.util
import logging
import re
from typing import Any

from gdsd_jax.tasks import tfds_source
from gdsd_jax.tasks.network import check_network, NoNetworkError
from gdsd_jax.tasks.row_readers import first_line
from gdsd_jax.waiting import waiting

_NAME = re.compile(r"huggingface:(?P<repo>[\w.-]+/[\w.-]+)(/(?P<config>[\w.-]+))?(#(?P<split>.+))?")
_log = logging.getLogger(__name__)


def is_name(source: str) -> bool:
  """Whether a source reads like a name on the hub; the dataset need not exist."""
  return _NAME.fullmatch(source) is not None


def load(source: str, data_dir: str | None) -> tuple[list[str], Iterable[dict[str, Any]]]:
  """Column names and records of a split.

  What TFDS once prepared in `data_dir`, or a cache of `datasets` holds, is read from there, even if the hub has a newer
  one. Else the dataset is fetched, into `data_dir` or the library's own cache.

  Raises NoNetworkError, OSError on a folder that cannot be used, and whatever else the libraries and the hub raise.
  """
  repo, config, split = _NAME.fullmatch(source).group("repo", "config", "split")
  prepared = tfds_source.prepared_hub_dataset(repo, config, data_dir)
  if prepared is not None:
    return tfds_source.records_of(prepared, split)
  if importlib.util.find_spec("datasets") is None:
    raise ValueError("the hub needs the package datasets: pip install 'gdsd_jax[hub]'; or give a local file")
  import datasets  # slow to import, and optional

  datasets.disable_progress_bars()
  datasets.logging.set_verbosity_error()
  builder, reason = _cached(repo, config, data_dir)
  if builder is None:
    builder = _fetched(repo, config, data_dir, reason)
  name = tfds_source.only_split(list(builder.info.splits), split)
  found = builder.as_dataset(split=name)
  return found.column_names, found


def _cached(repo, config, data_dir):
  """(builder of a dataset in a cache, None) or (None, why there is none)."""
  from datasets.packaged_modules.cache.cache import Cache

  for folder in dict.fromkeys((data_dir, None)):  # None: where HF_DATASETS_CACHE or HF_HOME say
    try:
      name = {"repo_id": repo, "dataset_name": repo.partition("/")[2], "config_name": config}
      builder = Cache(**name, version="auto", hash="auto", cache_dir=folder)
      chosen = builder.config.name
      unnamed = "" if config or chosen == "default" else (
        f", its configuration {chosen}, which alone was fetched before; huggingface:{repo}/CONFIG names another")
      _log.info("huggingface:%s is read from %s%s", repo, builder.cache_dir, unnamed)
      return builder, None
    except Exception as error:  # one that another process is writing to lacks files
      reason = first_line(error)
  return None, reason


def _fetched(repo, config, data_dir, reason):
  import datasets
  import huggingface_hub.constants

  if datasets.config.HF_HUB_OFFLINE:
    raise NoNetworkError(f"HF_HUB_OFFLINE forbids to fetch it, and: {reason}")
  try:
    check_network(huggingface_hub.constants.ENDPOINT)
  except NoNetworkError as error:
    raise NoNetworkError(f"{error}, and: {reason}") from error
  with waiting(f"downloading huggingface:{repo}"):
    builder = datasets.load_dataset_builder(repo, config, cache_dir=data_dir)
    builder.download_and_prepare()
  return builder
