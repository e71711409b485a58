"""LoRA adapters as PEFT keeps them: adapter_config.json and adapter_model.safetensors, in and out."""

import dataclasses
import json
import math
from pathlib import Path
import re

from flax import traverse_util
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from gdsd_jax.checks import require
from gdsd_jax.huggingface.files import read_json_object, written_whole
from gdsd_jax.huggingface.finite import require_finite
from gdsd_jax.huggingface.own_layout import layout_of
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.models.lora import LoraConfig, TARGETS
from gdsd_jax.parallel.mesh import param_shardings
from gdsd_jax.parallel.rows import lay_out

_FIELD = "model.lora.path"
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # PEFT wraps the model twice
# What PEFT can express and this adapter does not compute: refused, not miscomputed.
_OFF = {"use_rslora": False, "use_dora": False, "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None,
        "fan_in_fan_out": False, "lora_bias": False}
# Exported files do not name these: they are newer than some releases of PEFT.
_OFF_WHERE_KNOWN = {"alora_invocation_tokens": None, "use_qalora": False, "layer_replication": None,
                    "use_bdlora": None, "arrow_config": None, "kasa_config": None, "monteclora_config": None}
# Ways to begin that leave the base weights alone. By the others (pissa, olora, loftq, ...) PEFT changes them, too.
_INITS = (True, False, None, "gaussian", "orthogonal", "eva")


def base_model_of(folder: Path, field: str = _FIELD) -> tuple[str, str | None]:
  """(name or path, revision) of the model that an adapter was made for. Raises ValueError, naming `field` and file."""
  file = folder / _CONFIG
  fields = read_json_object(file, field)
  name = fields.get("base_model_name_or_path")
  require(isinstance(name, str) and name != "", field, f"{file} names no base model (base_model_name_or_path)")
  return name, None if Path(name).is_dir() else fields.get("revision")


def save_adapter(path, denoiser: Denoiser, params, base_model: str, revision: str | None = None) -> None:
  """Writes the adapter of `params`, for `peft.PeftModel.from_pretrained` on the published model.

  `base_model` is the base model's name or path, `revision` that of the hub's. Raises OSError, one line naming the
  folder, when it cannot be written.
  """
  lora, tensors = denoiser.lora, {}
  for leaf, factors in params["lora"].items():
    for layer in range(denoiser.config.num_layers):
      a, b = np.asarray(factors["a"][layer]), np.asarray(factors["b"][layer])
      tensors[_tensor_name(denoiser, leaf, layer, "A")] = np.ascontiguousarray(a.reshape(-1, lora.rank).T)
      tensors[_tensor_name(denoiser, leaf, layer, "B")] = np.ascontiguousarray(b.reshape(lora.rank, -1).T)
  # A pattern, because LLaDA's LM head has the same last name as its down projection.
  modules = "|".join(re.escape(_module_name(denoiser, leaf)).replace(r"\{layer\}", r"\d+") for leaf in params["lora"])
  fields = {
    "peft_type": "LORA", "task_type": None, "base_model_name_or_path": base_model, "revision": revision,
    "inference_mode": True,
    "r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "target_modules": f"({modules})",
    "bias": "none", "init_lora_weights": True, **_OFF,
  }
  with written_whole(Path(path), "the adapter") as temporary:
    save_file(tensors, temporary(_WEIGHTS), metadata={"format": "pt"})
    temporary(_CONFIG).write_text(json.dumps(fields, indent=2) + "\n")


def load_adapter(path, denoiser: Denoiser, params):
  """(denoiser, params) of a base model with the adapter of a PEFT folder, laid over the model's mesh.

  Raises FileNotFoundError or ValueError, one line naming the file, when it is missing or does not fit the base model.
  """
  config, file = _read_config(Path(path) / _CONFIG), Path(path) / _WEIGHTS
  if not file.is_file():
    raise FileNotFoundError(f"{_FIELD}: {file} is missing")
  try:
    tensors = load_file(file)
  except SafetensorError as error:
    raise ValueError(f"{_FIELD}: {file} is damaged or truncated: {error}") from None
  found = [target for target, leaf in TARGETS.items() if _tensor_name(denoiser, leaf, 0, "A") in tensors]
  require(bool(found), _FIELD, f"{file} adapts none of this model's projections")
  lora = LoraConfig(config["r"], config["lora_alpha"], config["lora_dropout"], tuple(found))
  adapted = dataclasses.replace(denoiser, lora=lora)
  shardings = param_shardings(adapted.mesh, adapted)["lora"]
  adapter, used = {}, set()
  for (leaf, factor), spec in traverse_util.flatten_dict(adapted.abstract_params()["lora"]).items():
    layers = [_tensor_name(denoiser, leaf, layer, factor.upper()) for layer in range(denoiser.config.num_layers)]
    size = math.prod(spec.shape[1:]) // lora.rank
    expected = (size, lora.rank) if factor == "b" else (lora.rank, size)
    for tensor in layers:
      require(tensor in tensors, _FIELD, f"{file} lacks {tensor}; every layer must be adapted alike")
      actual = tensors[tensor].shape
      require(actual == expected, _FIELD, f"{tensor} in {file} has shape {actual}, not {expected}")
      require_finite(tensors[tensor], _FIELD, f"{tensor} in {file}")
    stacked = np.stack([tensors[tensor].T.astype(np.float32) for tensor in layers]).reshape(spec.shape)
    adapter[leaf, factor] = lay_out(spec.shape, shardings[leaf][factor], stacked.__getitem__)
    used.update(layers)
  if unknown := sorted(tensors.keys() - used):
    raise ValueError(f"{_FIELD}: {file} holds {unknown[0]}, which this model has no place for")
  return adapted, {**params, "lora": traverse_util.unflatten_dict(adapter)}


def _module_name(denoiser: Denoiser, leaf: str) -> str:
  """The published module of an adapted weight, with {layer} in place of the layer's number."""
  return layout_of(denoiser.config.family).weight_names[f"blocks.{leaf}"].removesuffix(".weight")


def _tensor_name(denoiser: Denoiser, leaf: str, layer: int, factor: str) -> str:
  return f"{_PREFIX}{_module_name(denoiser, leaf).format(layer=layer)}.lora_{factor}.weight"


def _read_config(file: Path) -> dict:
  fields = {"lora_dropout": 0.0, **read_json_object(file, _FIELD)}
  kind, start = fields.get("peft_type"), fields.get("init_lora_weights")
  require(kind == "LORA", _FIELD, f"{file} describes no LoRA adapter (peft_type {kind!r})")
  for name, off in {**_OFF, **_OFF_WHERE_KNOWN, "bias": "none"}.items():
    value = fields.get(name, off)
    require(value in (off, None, []), _FIELD, f"{file} has {name} = {value!r}, which is not supported")
  require(start in _INITS, _FIELD, f"{file} has init_lora_weights = {start!r}, which changes the base model; let PEFT"
          " convert it to a plain adapter (save_pretrained's path_initial_model_for_weight_conversion)")
  for name, kind, types in (("r", "an integer", (int,)), ("lora_alpha", "a finite number", (int, float)),
                            ("lora_dropout", "a number", (int, float))):
    value = fields.get(name)
    require(value is not None, _FIELD, f"{file} lacks the field {name!r}")
    require(type(value) in types and math.isfinite(value), _FIELD, f"{file}: {name} must be {kind}, not {value!r}")
  return fields
