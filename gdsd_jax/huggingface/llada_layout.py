"""LLaDA's Hugging Face layout: config.json fields and weight names."""

from collections.abc import Mapping
from typing import Any

from gdsd_jax.models.config import DenoiserConfig

HUB_NAME = "GSAI-ML/LLaDA-8B-Instruct"  # the published model, whose layout its kin share

# What the layout can express but this transformer does not compute: such a model is refused, not miscomputed.
_REQUIRED = {
  "block_type": "llama",
  "activation_type": "silu",
  "layer_norm_type": "rms",
  "rope": True,
  "alibi": False,
  "include_bias": False,
  "bias_for_layer_norm": False,
  "attention_layer_norm": False,
  "input_emb_norm": False,
  "scale_logits": False,
}


def parse_config(fields: Mapping[str, Any]) -> DenoiserConfig:
  """DenoiserConfig from the fields of config.json. Raises ValueError on what the transformer cannot compute."""
  for name, value in _REQUIRED.items():
    # None is the layout's own way to say "off".
    if name in fields and (fields[name] or False) != value:
      raise ValueError(f"{name} is {fields[name]!r}; only {value!r} is supported")
  width, heads = fields["d_model"], fields["n_heads"]
  for name in ("d_model", "n_heads"):
    if type(fields[name]) is not int or fields[name] < 1:
      raise ValueError(f"{name} must be a positive integer, not {fields[name]!r}")
  if width % heads:
    raise ValueError(f"d_model ({width}) must be a multiple of n_heads ({heads})")
  kv_heads = fields.get("n_kv_heads") or (1 if fields.get("multi_query_attention") else heads)
  return DenoiserConfig(
    vocab_size=fields.get("embedding_size") or fields["vocab_size"],
    hidden_size=width,
    num_layers=fields["n_layers"],
    num_heads=heads,
    num_kv_heads=kv_heads,
    head_dim=width // heads,
    mlp_size=fields.get("mlp_hidden_size") or int(fields["mlp_ratio"] * width),
    rope_theta=fields.get("rope_theta", 10000.0),
    norm_epsilon=fields.get("rms_norm_eps", 1e-5),
    max_positions=fields["max_sequence_length"],
    mask_token_id=fields["mask_token_id"],
    eos_token_id=fields["eos_token_id"],
    pad_token_id=fields.get("pad_token_id", fields["eos_token_id"]),
    qkv_bias=fields.get("include_qkv_bias") or False,
    tied_head=fields.get("weight_tying") or False,
    family="llada",
  )


def format_config(config: DenoiserConfig, dtype: str) -> dict[str, Any]:
  """The fields of config.json, all that the published modelling code reads."""
  return {
    "architectures": ["LLaDAModelLM"],
    # The published code, for `transformers` with trust_remote_code; this package never runs it.
    "auto_map": {
      "AutoConfig": f"{HUB_NAME}--configuration_llada.LLaDAConfig",
      "AutoModel": f"{HUB_NAME}--modeling_llada.LLaDAModelLM",
      "AutoModelForCausalLM": f"{HUB_NAME}--modeling_llada.LLaDAModelLM",
    },
    **_REQUIRED,
    "model_type": "llada",
    "attention_dropout": 0.0,
    "residual_dropout": 0.0,
    "embedding_dropout": 0.0,
    "attention_layer_norm_with_affine": True,
    "layer_norm_with_affine": True,
    "block_group_size": 1,
    "d_model": config.hidden_size,
    "embedding_size": config.vocab_size,
    "vocab_size": config.vocab_size,
    "n_layers": config.num_layers,
    "n_heads": config.num_heads,
    "n_kv_heads": config.num_kv_heads,
    "mlp_hidden_size": config.mlp_size,
    "mlp_ratio": 4,
    "max_sequence_length": config.max_positions,
    "rope_theta": config.rope_theta,
    "rope_full_precision": True,
    "rms_norm_eps": config.norm_epsilon,
    "include_qkv_bias": config.qkv_bias,
    "weight_tying": config.tied_head,
    "flash_attention": False,
    "init_device": "cpu",
    "precision": "amp_bf16",
    "mask_token_id": config.mask_token_id,
    "eos_token_id": config.eos_token_id,
    "pad_token_id": config.pad_token_id,
    "torch_dtype": dtype,
    "use_cache": False,
  }


# Parameter path -> weight name; `{layer}` marks the ones that are stacked along `layers`.
_BLOCK = "model.transformer.blocks.{layer}."
WEIGHT_NAMES = {
  "embedding": "model.transformer.wte.weight",
  "blocks.attention_norm": _BLOCK + "attn_norm.weight",
  "blocks.query": _BLOCK + "q_proj.weight",
  "blocks.key": _BLOCK + "k_proj.weight",
  "blocks.value": _BLOCK + "v_proj.weight",
  "blocks.query_bias": _BLOCK + "q_proj.bias",
  "blocks.key_bias": _BLOCK + "k_proj.bias",
  "blocks.value_bias": _BLOCK + "v_proj.bias",
  "blocks.output": _BLOCK + "attn_out.weight",
  "blocks.mlp_norm": _BLOCK + "ff_norm.weight",
  "blocks.gate": _BLOCK + "ff_proj.weight",
  "blocks.up": _BLOCK + "up_proj.weight",
  "blocks.down": _BLOCK + "ff_out.weight",
  "final_norm": "model.transformer.ln_f.weight",
  "head": "model.transformer.ff_out.weight",
}
