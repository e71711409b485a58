"""The published models: their hub names, and architectures, so that a run can be planned without files or a network."""

from pathlib import Path

from gdsd_jax.checks import require
from gdsd_jax.huggingface.families import FAMILIES
from gdsd_jax.huggingface.folder import load_config, resolve_path
from gdsd_jax.huggingface.layouts import DREAM, LLADA
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.paths import expanded

# Preset of the recipes -> hub name. Any other model of the same family goes by --config.model.path: a folder,
# GSAI-ML/LLaDA-1.5, GSAI-ML/LLaDA-8B-Base, Dream-org/Dream-v0-Base-7B, apple/DiffuCoder-7B-Instruct.
HUB_NAMES = {"llada_8b": LLADA.hub_name, "dream_7b": DREAM.hub_name}

# What the hub's config.json files state, as far as `parse_config` reads it.
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
}


def architecture(path_or_hub_name: str, layout: str | None = None) -> DenoiserConfig:
  """DenoiserConfig of a folder with a config.json, of an embedded model, or of a published one by its hub name.

  `layout` is as in `load_config`. Nothing is downloaded. Raises ValueError or OSError, one line.
  """
  name = expanded(path_or_hub_name, "model.path").removeprefix("hf://")
  is_folder = Path(name).is_dir()
  if not is_folder and name in PUBLISHED:
    fields = PUBLISHED[name]
    return FAMILIES[fields["model_type"].lower()].parse_config(fields)
  require(is_folder or "/" not in name, "model.path", f"{name!r} is no folder, and of the hub's models only"
          f" {' and '.join(PUBLISHED)} are known without their files; name a folder that holds its config.json")
  return load_config(resolve_path(name), layout)
