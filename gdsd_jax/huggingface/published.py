"""The published models: their hub names, and architectures, so that a run can be planned without files or a network."""

from collections.abc import Mapping
from pathlib import Path

from gdsd_jax.checks import require
from gdsd_jax.huggingface.families import FAMILIES
from gdsd_jax.huggingface.folder import load_config, resolve_path
from gdsd_jax.huggingface.layouts import DREAM, LLADA
from gdsd_jax.huggingface.llada2 import LLADA2
from gdsd_jax.huggingface.llada_moe import LLADA_MOE
from gdsd_jax.huggingface.sdar import SDAR
from gdsd_jax.huggingface.stated import completed, require_heeded
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.paths import expanded

# Preset of the recipes -> hub name. Any other model of the same family goes by --config.model.path: a folder,
# GSAI-ML/LLaDA-1.5, GSAI-ML/LLaDA-8B-Base, Dream-org/Dream-v0-Base-7B, apple/DiffuCoder-7B-Instruct,
# JetLM/SDAR-4B-Chat, Gen-Verse/TraDo-8B-Instruct, inclusionAI/LLaDA2.1-mini.
HUB_NAMES = {
  "llada_8b": LLADA.hub_name, "dream_7b": DREAM.hub_name, "sdar_8b": SDAR.hub_name,
  "sdar_1.7b": "JetLM/SDAR-1.7B-Chat", "llada2_mini": LLADA2.hub_name, "illada_8b": "GSAI-ML/iLLaDA-8B-Instruct",
  "llada_moe": LLADA_MOE.hub_name,
}

_SDAR = {
  "model_type": "sdar", "head_dim": 128, "num_key_value_heads": 8, "vocab_size": 151936, "tie_word_embeddings": False,
  "max_position_embeddings": 32768, "rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "block_size": 4,
  "mask_token_id": 151669, "eos_token_id": 151643,
}
_LLADA2 = {
  "model_type": "llada2_moe", "head_dim": 128, "num_key_value_heads": 4, "vocab_size": 157184,
  "tie_word_embeddings": False, "rope_theta": 600000.0, "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-6,
  "num_experts": 256, "num_experts_per_tok": 8, "num_shared_experts": 1, "n_group": 8, "topk_group": 4,
  "routed_scaling_factor": 2.5, "first_k_dense_replace": 1, "pad_token_id": 156892,
}
_LLADA2_MINI = {**_LLADA2, "hidden_size": 2048, "num_hidden_layers": 20, "num_attention_heads": 16,
                "intermediate_size": 5120, "moe_intermediate_size": 512, "max_position_embeddings": 32768}

# What the hub's config.json files state, as far as `parse_config` reads it. Those of iLLaDA and LLaDA-MoE are not known
# here: their presets read the files.
PUBLISHED = {
  LLADA.hub_name: {
    "model_type": "llada", "d_model": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 32, "mlp_hidden_size": 12288,
    "embedding_size": 126464, "vocab_size": 126464, "weight_tying": False, "max_sequence_length": 4096,
    "include_qkv_bias": False, "rope_theta": 500000.0, "rms_norm_eps": 1e-5,
    "mask_token_id": 126336, "eos_token_id": 126081, "pad_token_id": 126081,
  },
  DREAM.hub_name: {
    "model_type": "Dream", "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 152064, "tie_word_embeddings": False,
    "max_position_embeddings": 131072, "rope_theta": 1000000.0, "rms_norm_eps": 1e-6,
    "mask_token_id": 151666, "eos_token_id": 151643, "pad_token_id": 151643,
  },
  "JetLM/SDAR-1.7B-Chat": {**_SDAR, "hidden_size": 2048, "num_hidden_layers": 28, "num_attention_heads": 16,
                           "intermediate_size": 6144},
  "JetLM/SDAR-4B-Chat": {**_SDAR, "hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32,
                         "intermediate_size": 9728},
  "JetLM/SDAR-8B-Chat": {**_SDAR, "hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32,
                         "intermediate_size": 12288},
  "JetLM/SDAR-30B-A3B-Chat": {
    **_SDAR, "model_type": "sdar_moe", "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32,
    "num_key_value_heads": 4, "intermediate_size": 6144, "num_experts": 128, "num_experts_per_tok": 8,
    "moe_intermediate_size": 768, "norm_topk_prob": True,
  },
  "inclusionAI/LLaDA2.0-mini": _LLADA2_MINI, "inclusionAI/LLaDA2.1-mini": _LLADA2_MINI,
  "inclusionAI/LLaDA2.0-flash": {**_LLADA2, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
                                 "intermediate_size": 9216, "moe_intermediate_size": 1024,
                                 "max_position_embeddings": 16384},
}


def published_architecture(hub_name: str, stated: Mapping[str, int] | None = None) -> DenoiserConfig | None:
  """DenoiserConfig of a published model, `stated` as in `load_config`; None where nothing but its files tells."""
  fields, stated = PUBLISHED.get(hub_name), stated or {}
  if fields is None:
    return None
  config = FAMILIES[fields["model_type"].lower()].parse_config(completed(fields, stated))
  require_heeded(config, stated, hub_name)
  return config


def architecture(path_or_hub_name: str, layout: str | None = None,
                 stated: Mapping[str, int] | None = None) -> DenoiserConfig:
  """DenoiserConfig of a folder with a config.json, of an embedded model, or of a published one by its hub name.

  `layout` and `stated` are as in `load_config`. Nothing is downloaded. Raises ValueError or OSError, one line.
  """
  name = expanded(path_or_hub_name, "model.path").removeprefix("hf://")
  is_folder = Path(name).is_dir()
  if not is_folder and name in PUBLISHED:
    return published_architecture(name, stated)
  require(is_folder or "/" not in name, "model.path", f"{name!r} is no folder, and of the hub's models only"
          f" {', '.join(PUBLISHED)} are known without their files; name a folder that holds its config.json, by"
          " --config.model.path=FOLDER")
  return load_config(resolve_path(name), layout, stated)
