"""LoRA adapters as PEFT keeps them: adapter_config.json and adapter_model.safetensors, in and out."""

from collections.abc import Mapping
import dataclasses
import json
import math
from pathlib import Path
import re

from flax import traverse_util
import numpy as np
from safetensors import safe_open, SafetensorError
from safetensors.numpy import load_file, save_file

from gdsd_jax.checks import require
from gdsd_jax.huggingface import adapter_config, eurobert
from gdsd_jax.huggingface.adapter_config import AdapterConfig, CONFIG, FIELD, read_adapter_config
from gdsd_jax.huggingface.base_fingerprint import base_fingerprint, check_base
from gdsd_jax.huggingface.files import refuse_pointer, written_whole
from gdsd_jax.huggingface.finite import require_finite
from gdsd_jax.huggingface.origin import check_same, NAME as ORIGIN
from gdsd_jax.huggingface.own_layout import layout_of, LAYOUTS
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.models.lora import LoraConfig, TARGETS
from gdsd_jax.parallel.mesh import param_shardings
from gdsd_jax.parallel.rows import lay_out

_WEIGHTS, _FINGERPRINT = "adapter_model.safetensors", "base_weights"
_PREFIX = "base_model.model."  # PEFT wraps the model twice


def save_adapter(path, denoiser: Denoiser, params, base_model: str, revision: str | None = None,
                 extra: Mapping[str, str] | None = None) -> None:
  """Writes the adapter of `params`, for `peft.PeftModel.from_pretrained` on the base model.

  Its modules are called as in the files that the denoiser was loaded from. What was trained over is kept in it as a
  fingerprint, by which `load_adapter` refuses other weights.

  Args:
    path: folder, made if it is missing.
    denoiser, params: the model with its adapter; of `params` only that is read.
    base_model, revision: name or path of the base model, and revision of the hub's.
    extra: further files, name -> text.

  Raises OSError, one line naming the folder, when it cannot be written, or would replace a run or something else.
  """
  lora, tensors, names = denoiser.lora, {}, _module_names(denoiser, denoiser.config.layout)
  for leaf, factors in params["lora"].items():
    for layer in range(denoiser.config.num_layers):
      module = names[leaf].format(layer=layer)
      a, b = np.asarray(factors["a"][layer]), np.asarray(factors["b"][layer])
      tensors[_tensor_name(module, "a")] = np.ascontiguousarray(a.reshape(-1, lora.rank).T)
      tensors[_tensor_name(module, "b")] = np.ascontiguousarray(b.reshape(lora.rank, -1).T)
  # A pattern, because LLaDA's LM head has the same last name as its down projection.
  patterns = "|".join(re.escape(names[leaf]).replace(r"\{layer\}", r"\d+") for leaf in params["lora"])
  fields = {
    "peft_type": "LORA", "task_type": None, "base_model_name_or_path": base_model, "revision": revision,
    "inference_mode": True,
    "r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "target_modules": f"({patterns})",
    "bias": "none", "init_lora_weights": True, **adapter_config.OFF, **adapter_config.UNIFORM,
  }
  if denoiser.config.layout == "transformers":  # by which PEFT loads the base model itself
    fields["auto_mapping"] = {"base_model_class": eurobert.CLASS, "parent_library": eurobert.MODULE}
  origin, base_there = (extra or {}).get(ORIGIN), lambda: adapter_config.base_model_of(Path(path))
  check_same(Path(path), origin, CONFIG, base_there, (base_model, revision))
  fingerprint = base_fingerprint(denoiser)
  # One word alone: safetensors writes several in any order, and the same adapter would be another file.
  metadata = {_FINGERPRINT: fingerprint} if fingerprint else {"format": "pt"}
  with written_whole(Path(path), "the adapter") as temporary:
    save_file(tensors, temporary(_WEIGHTS), metadata=metadata)
    temporary(CONFIG).write_text(json.dumps(fields, indent=2) + "\n")
    for name, text in (extra or {}).items():
      temporary(name).write_text(text, "utf-8")


def load_adapter(path, denoiser: Denoiser, params):
  """(denoiser, params) of a base model with the adapter of a PEFT folder, laid over the model's mesh.

  Modules may be called as in either layout. Ranks and scales that differ become one adapter of the largest rank, with
  zeros where a module has less and the rest of its scale in B; layers that are not adapted are zero, and stay so.

  Raises FileNotFoundError or ValueError, one line naming the file, when it is missing or does not fit the base model.
  """
  config, file = read_adapter_config(Path(path)), Path(path) / _WEIGHTS
  tensors, fingerprint = _read_tensors(file)
  check_base(FIELD, path, config.fields.get("base_model_name_or_path"), fingerprint, denoiser)
  modules = _adapted_modules(denoiser, tensors)
  require(bool(modules), FIELD, f"{file} adapts none of this model's projections")
  adapted = dataclasses.replace(denoiser, lora=_lora_config(config, modules, tensors))
  shardings = param_shardings(adapted.mesh, adapted)["lora"]
  adapter, used = {}, set()
  for (leaf, factor), spec in traverse_util.flatten_dict(adapted.abstract_params()["lora"]).items():
    stacked = _stacked(config, file, tensors, modules[leaf], factor, spec.shape, adapted.lora)
    adapter[leaf, factor] = lay_out(spec.shape, shardings[leaf][factor], stacked.__getitem__)
    used.update(_tensor_name(module, factor) for module in modules[leaf])
  if unknown := sorted(tensors.keys() - used):
    raise ValueError(f"{FIELD}: {file} holds {unknown[0]}, which this model has no place for")
  return adapted, {**params, "lora": traverse_util.unflatten_dict(adapter)}


def _read_tensors(file: Path) -> tuple[dict[str, np.ndarray], str | None]:
  """(weights of an adapter by PEFT's names, the fingerprint of what it was trained over, if it is ours)."""
  if not file.is_file():
    pickled = file.with_suffix(".bin").is_file()
    hint = f"; {file.stem}.bin is a pickle, which is not read: let PEFT write it again by save_pretrained" * pickled
    raise FileNotFoundError(f"{FIELD}: {file} is missing{hint}")
  refuse_pointer(file, FIELD)
  try:
    with safe_open(file, "np") as opened:
      fingerprint = (opened.metadata() or {}).get(_FINGERPRINT)
    tensors = load_file(file)
  except SafetensorError as error:
    raise ValueError(f"{FIELD}: {file} is damaged or truncated: {error}") from None
  # Saved by PyTorch itself, they have the name of PEFT's adapter in theirs.
  return {re.sub(r"\.lora_([AB])\.default\.weight$", r".lora_\1.weight", name): tensor
          for name, tensor in tensors.items()}, fingerprint


def _module_names(denoiser: Denoiser, layout: str) -> dict[str, str]:
  """Weight of a block that may be adapted -> its module in files of this layout, with {layer} for its number."""
  names = layout_of(denoiser.config.family, layout).weight_names
  return {leaf: names[f"blocks.{leaf}"].removesuffix(".weight") for leaf in TARGETS.values()}


def _tensor_name(module: str, factor: str) -> str:
  return f"{_PREFIX}{module}.lora_{factor.upper()}.weight"


def _adapted_modules(denoiser: Denoiser, tensors) -> dict[str, list[str]]:
  """Weight of a block that the tensors adapt in some layer -> its module of every layer, by the names in the file."""
  layouts = dict.fromkeys((denoiser.config.layout, *LAYOUTS))  # one's own layout is one for all of them
  for layout in layouts:
    modules = {leaf: [name.format(layer=layer) for layer in range(denoiser.config.num_layers)]
               for leaf, name in _module_names(denoiser, layout).items()}
    adapted = lambda names: any(_tensor_name(name, factor) in tensors for name in names for factor in "ab")
    if found := {leaf: names for leaf, names in modules.items() if adapted(names)}:
      return found
  return {}


def _lora_config(config: AdapterConfig, modules: dict[str, list[str]], tensors) -> LoraConfig:
  """One adapter that can hold all modules: the largest rank, and the largest scale."""
  present = [name for names in modules.values() for name in names if _tensor_name(name, "a") in tensors]
  rank = max(map(config.rank, present), default=config.fields["r"])
  scale, alpha = max(map(config.scale, present), default=1.0), config.fields["lora_alpha"]
  targets = tuple(target for target, leaf in TARGETS.items() if leaf in modules)
  return LoraConfig(rank, alpha if alpha / rank == scale else scale * rank, config.dropout, targets)


def _stacked(config: AdapterConfig, file: Path, tensors, modules: list[str], factor: str, shape: tuple[int, ...],
             lora: LoraConfig) -> np.ndarray:
  """The factor A or B of all layers, float32[shape]."""
  stacked, size = np.zeros(shape, np.float32), math.prod(shape[1:]) // lora.rank
  for layer, module in enumerate(modules):
    name, rank = _tensor_name(module, factor), config.rank(module)
    if name not in tensors:
      asked = config.adapts(module, layer) or any(_tensor_name(module, each) in tensors for each in "ab")
      require(not asked, FIELD, f"{file} lacks {name}, which {CONFIG} asks for")
      continue
    expected, actual = (rank, size) if factor == "a" else (size, rank), tensors[name].shape
    said = " by its rank_pattern" if rank != config.fields["r"] else ""
    require(actual == expected, FIELD, f"{name} in {file} has shape {actual}, not {expected}{said}")
    require_finite(tensors[name], FIELD, f"{name} in {file}")
    values = tensors[name].T.astype(np.float32)
    if factor == "a":
      stacked[layer].reshape(size, lora.rank)[:, :rank] = values
    else:
      share = config.scale(module) / lora.scale
      stacked[layer].reshape(lora.rank, size)[:rank] = values if share == 1 else values * np.float32(share)
  return stacked
