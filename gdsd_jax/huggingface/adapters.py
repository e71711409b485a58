"""LoRA adapters as PEFT keeps them: adapter_config.json and adapter_model.safetensors, in and out."""

from collections.abc import Mapping
import dataclasses
import functools
import json
import math
from pathlib import Path
import re

from flax import traverse_util
import numpy as np
from safetensors import safe_open, SafetensorError
from safetensors.numpy import load_file, save_file

from gdsd_jax.checks import require
from gdsd_jax.huggingface import adapter_config, adapter_modules, eurobert
from gdsd_jax.huggingface.adapter_config import AdapterConfig, CONFIG, FIELD, read_adapter_config
from gdsd_jax.huggingface.base_fingerprint import base_fingerprint, check_base
from gdsd_jax.huggingface.files import refuse_pointer, written_whole
from gdsd_jax.huggingface.finite import require_finite
from gdsd_jax.huggingface.origin import check_same, NAME as ORIGIN
from gdsd_jax.huggingface.stored_layers import layers_of, pattern_of
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.models.lora import LEAVES_OF, LoraConfig
from gdsd_jax.models.weights import weights_of
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

  Raises ValueError where files have no place for it (`adapter_modules.require_whole_modules`), and OSError, one line
  naming the folder, when it cannot be written, or would replace a run or something else.
  """
  lora, factors, modules, patterns = denoiser.lora, {}, adapter_modules.modules_of(denoiser.config), {}
  adapter_modules.require_whole_modules(denoiser.config, lora.leaves)
  adapter = adapter_modules.adapted_leaves(params["lora"])
  for leaf in (leaf for leaf in modules if leaf in adapter):  # parts of a module in the order of their rows
    of_all = {factor: np.asarray(adapter[leaf][factor]) for factor in "ab"}
    for place, module in np.ndenumerate(modules[leaf]):
      a, b = of_all["a"][place].reshape(-1, lora.rank), of_all["b"][place].reshape(lora.rank, -1)
      factors[module] = np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)
    # A pattern, because LLaDA's LM head has the same last name as its down projection.
    name = re.escape(pattern_of(denoiser.config, leaf).removesuffix(".weight"))
    patterns[re.sub(r"\\{(layer|expert)\\}", r"\\d+", name)] = None
  factors = adapter_modules.join_parts(factors)
  tensors = {_tensor_name(name, factor): value for name, pair in factors.items() for factor, value in zip("ab", pair)}
  joint = {module: len(a) for module, (a, _) in factors.items() if len(a) != lora.rank}
  uniform = adapter_config.UNIFORM | {
    "rank_pattern": joint, "alpha_pattern": {module: lora.alpha * rank / lora.rank for module, rank in joint.items()}
  }
  fields = {
    "peft_type": "LORA", "task_type": None, "base_model_name_or_path": base_model, "revision": revision,
    "inference_mode": True,
    "r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout,
    "target_modules": f"({'|'.join(patterns)})", "bias": "none", "init_lora_weights": True, **adapter_config.OFF,
    **uniform,
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
  tensors, ranks = _split(config, file, tensors, modules, denoiser)
  present = {leaf for leaf, names in modules.items() if any(_is_adapted(name, tensors) for name in names.flat)}
  adapted = dataclasses.replace(denoiser, lora=_lora_config(config, modules, present, tensors, ranks))
  shardings = param_shardings(adapted.mesh, adapted)["lora"]
  adapter, used = {}, set()
  for leaf, factors in adapter_modules.adapted_leaves(adapted.abstract_params()["lora"]).items():
    path = adapter_modules.in_adapter(leaf)
    sharding = functools.reduce(lambda tree, name: tree[name], path, shardings)
    for factor, spec in factors.items():
      stacked = _stacked(config, file, tensors, ranks, leaf, modules[leaf], factor, spec.shape, adapted)
      adapter[(*path, factor)] = lay_out(spec.shape, sharding[factor], stacked.__getitem__)
      used.update(_tensor_name(module, factor) for module in modules[leaf].flat)
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


def _tensor_name(module: str, factor: str) -> str:
  return f"{_PREFIX}{module}.lora_{factor.upper()}.weight"


def _is_adapted(module: str, tensors) -> bool:
  return any(_tensor_name(module, factor) in tensors for factor in "ab")


def _adapted_modules(denoiser: Denoiser, tensors) -> dict[str, np.ndarray]:
  """`modules_of` the model in that layout by whose names the tensors adapt some; empty where they adapt none."""
  for layout in adapter_modules.layouts_of(denoiser.config):
    modules = adapter_modules.modules_of(denoiser.config, layout)
    if any(_is_adapted(adapter_modules.module_of(name), tensors) for names in modules.values() for name in names.flat):
      return modules
  return {}


def _split(config: AdapterConfig, file: Path, tensors, modules, denoiser: Denoiser):
  """(tensors with those of joint modules as their parts', ranks of these by their names)."""
  tensors, ranks, parts, rows = dict(tensors), {}, {}, {}
  for leaf, names in modules.items():
    for name in (name for name in names.flat if adapter_modules.module_of(name) != name):
      parts.setdefault(adapter_modules.module_of(name), []).append(name)
      _, *outputs = weights_of(denoiser.config, None)[leaf].shape[1:]
      rows[name] = math.prod(outputs)
  for module, names in parts.items():
    pair = [tensors.pop(_tensor_name(module, factor), None) for factor in "ab"]
    lacking = [_tensor_name(module, factor) for factor, tensor in zip("ab", pair) if tensor is None]
    if len(lacking) == 2:
      continue
    require(not lacking, FIELD, f"{file} lacks {', '.join(lacking)}")
    expected, of_names = config.rank(module), [rows[name] for name in names]
    fits = len(pair[0]) == expected and pair[1].shape == (sum(of_names), expected)
    require(fits, FIELD, f"{module} in {file} has factors of shapes {pair[0].shape}, {pair[1].shape}, not of rank"
            f" {expected} for {sum(of_names)} outputs")
    for name, factors in adapter_modules.split_parts(names, of_names, *pair, config.fields["r"]).items():
      ranks[name] = len(factors[0])
      tensors |= {_tensor_name(name, factor): value for factor, value in zip("ab", factors)}
  return tensors, ranks


def _lora_config(config: AdapterConfig, modules, present: set[str], tensors, ranks: dict[str, int]) -> LoraConfig:
  """One adapter that can hold all modules: the largest rank, and the largest scale."""
  names = [name for leaf in present for name in modules[leaf].flat if _tensor_name(name, "a") in tensors]
  rank = max((ranks.get(name) or config.rank(name) for name in names), default=config.fields["r"])
  scale = max((config.scale(adapter_modules.module_of(name)) for name in names), default=1.0)
  alpha, leaves = config.fields["lora_alpha"], {leaf.rpartition(".")[2] for leaf in present}
  targets = tuple(target for target, known in LEAVES_OF.items() if leaves & set(known))
  return LoraConfig(rank, alpha if alpha / rank == scale else scale * rank, config.dropout, targets)


def _stacked(config: AdapterConfig, file: Path, tensors, ranks, leaf: str, modules: np.ndarray, factor: str,
             shape: tuple[int, ...], denoiser: Denoiser) -> np.ndarray:
  """The factor A or B of a leaf in all of its layers, float32[shape]."""
  lora, layers = denoiser.lora, layers_of(denoiser.config, leaf)
  stacked, size = np.zeros(shape, np.float32), math.prod(shape[modules.ndim:]) // lora.rank
  for place, module in np.ndenumerate(modules):
    name, whole = _tensor_name(module, factor), adapter_modules.module_of(module)
    rank = ranks.get(module) or config.rank(module)
    if name not in tensors:
      asked = config.adapts(whole, layers[place[0]]) or _is_adapted(module, tensors)
      require(not asked, FIELD, f"{file} lacks {name}, which {CONFIG} asks for")
      continue
    expected, actual = (rank, size) if factor == "a" else (size, rank), tensors[name].shape
    said = " by its rank_pattern" if rank != config.fields["r"] else ""
    require(actual == expected, FIELD, f"{name} in {file} has shape {actual}, not {expected}{said}")
    require_finite(tensors[name], FIELD, f"{name} in {file}")
    values = tensors[name].T.astype(np.float32)
    if factor == "a":
      stacked[place].reshape(size, lora.rank)[:, :rank] = values
    else:
      share = config.scale(whole) / lora.scale
      stacked[place].reshape(lora.rank, size)[:rank] = values if share == 1 else values * np.float32(share)
  return stacked
