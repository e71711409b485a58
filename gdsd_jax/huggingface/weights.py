"""Hugging Face folders in and out: config.json and (sharded) safetensors. Never pickles, never remote code.

Only what lies on this process's devices is read, a leaf at a time: host memory never holds two copies of the model.
"""

from collections.abc import Mapping
import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any

from flax import traverse_util
import jax
import numpy as np
from safetensors.numpy import save_file

from gdsd_jax import own_code
from gdsd_jax.checks import require, require_one_of
from gdsd_jax.huggingface.base_fingerprint import hub_name
from gdsd_jax.huggingface.files import written_whole
from gdsd_jax.huggingface.folder import is_embedded, load_config, resolve_path
from gdsd_jax.huggingface.origin import check_same, NAME as ORIGIN
from gdsd_jax.huggingface.own_layout import layout_of, LAYOUTS
from gdsd_jax.huggingface.quantised_leaves import read_quantised
from gdsd_jax.huggingface.stored_layers import (
  as_linear,
  check_other_weights,
  find_weights,
  is_stacked,
  joined,
  layers_of,
  names_of,
  read_part,
)
from gdsd_jax.huggingface.tokenizer_export import write_tokenizer
from gdsd_jax.huggingface.weight_files import INDEX
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.models.quantised import QuantizeConfig
from gdsd_jax.parallel.mesh import is_quantised, param_shardings
from gdsd_jax.parallel.rows import lay_out, own_size
from gdsd_jax.waiting import waiting


def load_pretrained(path_or_hub_name, dtype: str = "float32", mesh=None, param_dtype: str | None = None,
                    remat: str = "none", layout: str | None = None, revision: str | None = None,
                    stated: Mapping[str, int] | None = None, quantize: QuantizeConfig | None = None):
  """Loads (denoiser, params) from a Hugging Face folder or hub name.

  Args:
    path_or_hub_name: folder with config.json and safetensors, hub name, or "tiny", the embedded model.
    dtype: "float32" or "bfloat16", for matrix products and, unless `param_dtype` is given, for the parameters.
    mesh: `jax.sharding.Mesh` to lay the parameters over (`make_mesh`); None for the default device.
    param_dtype, remat: see `Denoiser`.
    layout: the files' own, FILE.py:NAME (docs/own.md); None for that of the `model_type` in config.json.
    revision: branch, tag or commit of a hub model; None for its latest.
    stated: fields that config.json does not name: `mask_token_id`, `eos_token_id`, `pad_token_id`, `block_size`.
    quantize: what is kept in 8 or 4 bits, and how (docs/quantised.md); None for nothing.

  Raises:
    FileNotFoundError, ValueError: a file is missing, damaged or does not fit config.json, before anything is allocated;
      or a weight is not finite, which is known when it is read.
  """
  path = resolve_path(path_or_hub_name, revision)
  config = load_config(path, layout, stated)
  denoiser = Denoiser(config, dtype, param_dtype or dtype, remat, mesh=mesh, source=str(path), quantize=quantize)
  return denoiser, load_weights(path, denoiser)


def load_weights(path: Path, denoiser: Denoiser):
  """Parameters of a denoiser's base model from a local folder, laid over its mesh. Raises as `load_pretrained`.

  Those that it has quantised are so as they are read: never is more than a layer of one there besides.
  """
  quantize, base = denoiser.quantize, dataclasses.replace(denoiser, lora=None, quantize=None)
  abstract = traverse_util.flatten_dict(base.abstract_params(), sep=".")
  shardings = traverse_util.flatten_dict(param_shardings(base.mesh, base), sep=".")
  made = traverse_util.flatten_dict(_laid_out(dataclasses.replace(base, quantize=quantize)), sep=".")
  where, params = find_weights(path, base.config, abstract), {}
  check_other_weights(path, base.config, where)
  own = sum(own_size(spec.shape, shardings[leaf]) for leaf, spec in abstract.items())
  stored = sum(file.stat().st_size for file in {piece.file for pieces in where.values() for piece in pieces.flat})
  size = stored / sum(spec.size for spec in abstract.values())  # bytes of a number in the files
  with waiting(f"reading weights of {_name(path)}", own * size, "bytes") as wait:
    tell = lambda numbers: wait.advance(numbers * size)
    for leaf, spec in abstract.items():
      read = functools.partial(read_part, where[leaf], leaf, spec, tell=tell)
      if quantize is not None and quantize.covers(leaf):
        read = functools.partial(read_quantised, leaf, spec, quantize, read=read)
      params[leaf] = lay_out(spec.shape, shardings[leaf], read, made[leaf])
  return traverse_util.unflatten_dict(params, sep=".")


def _laid_out(denoiser: Denoiser):
  """Shapes, dtypes and shardings of a denoiser's parameters."""
  lies = lambda spec, sharding: jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=sharding)
  return jax.tree.map(lies, denoiser.abstract_params(), param_shardings(denoiser.mesh, denoiser))


def _name(path: Path) -> str:
  """What people call the model of a folder."""
  return path.name if is_embedded(path) else hub_name(path) or str(path)


def save_pretrained(path, denoiser: Denoiser, params, max_shard_bytes: int = 5 * 2**30, tokenizer=None,
                    layout: str | None = None, extra: Mapping[str, str] | None = None) -> None:
  """Writes config.json, safetensors and the tokenizer; `load_pretrained` gives back every bit.

  Args:
    path: folder, made if it is missing. A failed save leaves an earlier one whole.
    denoiser, params: the model, without an adapter.
    max_shard_bytes: where a further weight file is begun.
    tokenizer: whose files come along; by default that of the folder that the denoiser was loaded from.
    layout: "transformers" is a class of transformers' own, which `AutoModelForMaskedLM` opens with nothing asked;
      "published" that of the family's authors, for their code. None is that of the files it was loaded from.
    extra: further files, name -> text.

  Raises:
    ValueError: the layout has no place for the parameters' adapter, or for something in the config.
    OSError: one line naming the file, when it cannot be written (a full disk, say), or would replace a run or another
      model than the one that the denoiser was loaded from.
  """
  from huggingface_hub import split_state_dict_into_shards_factory  # no other command needs it when it starts

  if "lora" in params:
    raise ValueError("the parameters have an adapter: merge it (models.lora.merge), or save it by itself"
                     " (huggingface.adapters.save_adapter)")
  if any(map(is_quantised, jax.tree.leaves(params, is_leaf=is_quantised))):
    raise ValueError("the parameters are quantised, and files hold whole weights: load the model without `quantize`")
  config, fields = _in_layout(denoiser.config, layout, str(params["embedding"].dtype))
  leaves = traverse_util.flatten_dict(params, sep=".")
  places = _places(config, leaves)
  biases = layout_of(config.family, config.layout).zero_biases(config)
  zeros = {name: np.zeros(size, params["embedding"].dtype) for name, size in biases.items()}
  nbytes = lambda name: zeros[name].nbytes if name in zeros else sum(
    leaves[leaf].nbytes // math.prod(leaves[leaf].shape[:len(place)]) for leaf, place in places[name])
  split = split_state_dict_into_shards_factory(
    {name: (name,) for name in (*places, *zeros)}, get_storage_size=lambda named: nbytes(*named),
    filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_bytes,
  )
  of_layer = functools.lru_cache(maxsize=4)(lambda leaf, layer: np.asarray(leaves[leaf][layer]))

  def published(name: str) -> np.ndarray:
    if name in zeros:
      return zeros[name]
    weights = [(leaf, of_layer(leaf, place[0])[place[1:]] if place else np.asarray(leaves[leaf]))
               for leaf, place in places[name]]
    parts = [as_linear(leaf, weight) for leaf, weight in weights]
    return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts))

  if denoiser.source is None or Path(denoiser.source).resolve() != Path(path).resolve():
    check_same(Path(path), (extra or {}).get(ORIGIN), "config.json", lambda: load_config(Path(path)), config)
  # The index is removed first: loading prefers it to the single file.
  stale = (INDEX, "model*.safetensors", ".model*.incomplete")
  with written_whole(Path(path), "the model", stale) as temporary:
    with waiting(f"writing the model to {path}", sum(map(nbytes, (*places, *zeros))), "bytes") as wait:
      for file, names in split.filename_to_tensors.items():
        save_file({name: published(name) for name in names}, temporary(file), metadata={"format": "pt"})
        wait.advance(sum(map(nbytes, names)))
    if split.is_sharded:
      index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
      temporary(INDEX).write_text(json.dumps(index, indent=2))
    temporary("config.json").write_text(json.dumps(fields, indent=2) + "\n")
    for name, text in (extra or {}).items():
      temporary(name).write_text(text, "utf-8")
    source = None if denoiser.source is None else Path(denoiser.source)
    if tokenizer is not None or source is not None and source.resolve() != Path(path).resolve():
      write_tokenizer(temporary, config, tokenizer, source)


def _places(config: DenoiserConfig, leaves) -> dict[str, list[tuple[str, tuple[int, ...]]]]:
  """Weight of the files -> (leaf, place in it) of its rows, first to last; layer by layer, and first what has none."""
  places = {}
  for leaf in leaves:
    for place, name in np.ndenumerate(names_of(config, leaf)):
      places.setdefault(name, []).append((leaf, place))

  def layer(item):
    leaf, place = item[1][0]
    return (is_stacked(leaf), layers_of(config, leaf)[place[0]] if place else 0)

  rows_in_order = lambda parts: sorted(parts, key=lambda part: joined(config, part[0]).index(part[0]))
  return {name: rows_in_order(parts) if len(parts) > 1 else parts for name, parts in sorted(places.items(), key=layer)}


def _in_layout(config: DenoiserConfig, layout: str | None, dtype: str) -> tuple[DenoiserConfig, dict[str, Any]]:
  """(config of the model in a layout, fields of its config.json). Raises ValueError where that has no place for it."""
  if layout is not None:
    require_one_of("layout", layout, LAYOUTS)
    require(not own_code.is_own(config.family), "layout", f"the model has its own, {config.family}")
    config = dataclasses.replace(config, layout=layout)
  written = layout_of(config.family, config.layout)
  fields = written.format_config(config, dtype)
  read_back = written.parse_config(fields)
  if lost := [name for name, value in vars(config).items() if getattr(read_back, name) != value]:
    raise ValueError(f"the layout of {config.family} has no place for this model's {', '.join(lost)}")
  return config, fields
