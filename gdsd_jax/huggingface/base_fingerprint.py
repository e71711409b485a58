"""A word for the weights that an adapter was trained over, so that it is not laid over others."""

import dataclasses
import hashlib
import logging
import os
from pathlib import Path
import re

from flax import traverse_util
import ml_dtypes
import numpy as np

from gdsd_jax.checks import require
from gdsd_jax.huggingface.stored_layers import find_weights, inputs_of, is_stacked, read_part
from gdsd_jax.models.denoiser import Denoiser

_log = logging.getLogger(__name__)

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_ROWS = 4  # of each weight as it lies in the files, or heads, of the first and the last layer


def base_fingerprint(denoiser: Denoiser) -> str | None:
  """A word that differs where the base weights in the files do; None where it is not known where they came from.

  It is the same for weights in bfloat16 and in float32, and for each layout that they are written in.
  """
  if denoiser.source is None:
    return None
  base, digest = dataclasses.replace(denoiser, lora=None, quantize=None), hashlib.sha256()
  abstract = traverse_util.flatten_dict(base.abstract_params(), sep=".")
  where = find_weights(Path(denoiser.source), base.config, abstract)
  for leaf, spec in sorted(abstract.items()):
    index, stacked = [slice(0, size) for size in spec.shape], is_stacked(leaf)
    row = inputs_of(leaf) + max(stacked, where[leaf].ndim)
    index[row] = slice(0, min(spec.shape[row], _ROWS))
    for layer in (0, spec.shape[0] - 1 if stacked else 0):
      if stacked:
        index[0] = slice(layer, layer + 1)
      part = read_part(where[leaf], leaf, spec, tuple(index), check=False)
      digest.update(np.asarray(part).astype(ml_dtypes.bfloat16).tobytes())
  return digest.hexdigest()[:32]


def check_base(field: str, path, named: str | None, fingerprint: str | None, denoiser: Denoiser) -> None:
  """Refuses an adapter that was trained over other weights, or made for another model of the hub.

  A base model that lies in a folder may be called as its owner likes: another name than the adapter's is warned of.

  Args:
    field: the config's, for messages.
    path: the adapter's folder.
    named: its base_model_name_or_path.
    fingerprint: what our own adapters keep of the weights that they were trained over; None in others.
    denoiser: the model that it is laid over, with the folder that it was loaded from.
  """
  if denoiser.source is None or not named:
    return
  if fingerprint is not None:
    same = fingerprint == base_fingerprint(denoiser)
    require(same, field, f"{path} was trained over other weights ({named}) than those of {denoiser.source};"
                         " name its own base model by model.path")
  elif _name(named) != _name(denoiser.source):
    of_hub = not Path(named).is_dir() and _HUB_NAME.fullmatch(named) and hub_name(denoiser.source)
    require(not of_hub, field, f"{path} was made for {named}, not for {of_hub}; name its own base model by model.path")
    _log.warning("%s: %s was made for %s, and is laid over %s; unless these have the same weights, it means nothing",
                 field, path, named, denoiser.source)


def _name(path: str | os.PathLike) -> str:
  """The last part of a model's name or path, that of the hub's name where it lies in the hub's cache."""
  return Path(hub_name(path) or path).name.lower()


def hub_name(path: str | os.PathLike) -> str | None:
  """OWNER/NAME of a model's folder in the hub's cache; None for any other folder."""
  path = Path(path)
  _, _, name = path.parent.parent.name.partition("models--")
  return name.replace("--", "/", 1) if path.parent.name == "snapshots" and name else None
