"""Dream's Hugging Face layout: config.json fields and weight names."""

from collections.abc import Mapping
from typing import Any

from gdsd_jax.models.config import DenoiserConfig

HUB_NAME = "Dream-org/Dream-v0-Instruct-7B"  # the published model, whose layout its kin share

# What the layout can express but this transformer does not compute: such a model is refused, not miscomputed.
_REQUIRED = {"hidden_act": "silu", "use_sliding_window": False}


def parse_config(fields: Mapping[str, Any]) -> DenoiserConfig:
  """DenoiserConfig from the fields of config.json. Raises ValueError on what the transformer cannot compute."""
  for name, value in _REQUIRED.items():
    if name in fields and (fields[name] or False) != (value or False):
      raise ValueError(f"{name} is {fields[name]!r}; only {value!r} is supported")
  width, heads = fields["hidden_size"], fields["num_attention_heads"]
  for name in ("hidden_size", "num_attention_heads"):
    if type(fields[name]) is not int or fields[name] < 1:
      raise ValueError(f"{name} must be a positive integer, not {fields[name]!r}")
  if width % heads and not fields.get("head_dim"):
    raise ValueError(f"hidden_size ({width}) must be a multiple of num_attention_heads ({heads})")
  pad = fields.get("pad_token_id")
  return DenoiserConfig(
    vocab_size=fields["vocab_size"],
    hidden_size=width,
    num_layers=fields["num_hidden_layers"],
    num_heads=heads,
    num_kv_heads=fields.get("num_key_value_heads") or heads,
    head_dim=fields.get("head_dim") or width // heads,
    mlp_size=fields["intermediate_size"],
    rope_theta=_rope_theta(fields),
    norm_epsilon=fields.get("rms_norm_eps", 1e-6),
    max_positions=fields["max_position_embeddings"],
    mask_token_id=fields["mask_token_id"],
    eos_token_id=fields["eos_token_id"],
    pad_token_id=fields["eos_token_id"] if pad is None else pad,
    qkv_bias=True,
    tied_head=fields.get("tie_word_embeddings") or False,
    shifted_output=True,
    positions_skip_padding=True,
    family="dream",
  )


def _rope_theta(fields: Mapping[str, Any]) -> float:
  """Base of the rotary frequencies: `rope_parameters` where transformers 5 wrote it, `rope_theta` otherwise."""
  theta = fields.get("rope_theta", 10000.0)
  for name in ("rope_scaling", "rope_parameters"):
    rope = fields.get(name) or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else None
    if kind != "default" or rope.keys() - {"rope_theta", "rope_type", "type"}:
      raise ValueError(f"{name} is {rope!r}; only unscaled positions are supported")
    theta = rope.get("rope_theta", theta)
  return theta


def format_config(config: DenoiserConfig, dtype: str) -> dict[str, Any]:
  """The fields of config.json, all that the published modelling code reads."""
  return {
    "architectures": ["DreamModel"],
    # The published code, for `transformers` with trust_remote_code; this package never runs it.
    "auto_map": {
      "AutoConfig": f"{HUB_NAME}--configuration_dream.DreamConfig",
      "AutoModel": f"{HUB_NAME}--modeling_dream.DreamModel",
    },
    **_REQUIRED,
    "model_type": "Dream",
    "attention_dropout": 0.0,
    "hidden_size": config.hidden_size,
    "head_dim": config.head_dim,
    "initializer_range": 0.02,
    "intermediate_size": config.mlp_size,
    "max_position_embeddings": config.max_positions,
    "max_window_layers": config.num_layers,
    "num_attention_heads": config.num_heads,
    "num_hidden_layers": config.num_layers,
    "num_key_value_heads": config.num_kv_heads,
    "rms_norm_eps": config.norm_epsilon,
    "rope_scaling": None,
    "rope_theta": config.rope_theta,
    "sliding_window": None,
    "tie_word_embeddings": config.tied_head,
    "vocab_size": config.vocab_size,
    "mask_token_id": config.mask_token_id,
    "bos_token_id": config.eos_token_id,
    "eos_token_id": config.eos_token_id,
    "pad_token_id": config.pad_token_id,
    "torch_dtype": dtype,
    "use_cache": False,
  }


# Parameter path -> weight name; `{layer}` marks the ones that are stacked along `layers`.
_BLOCK = "model.layers.{layer}."
WEIGHT_NAMES = {
  "embedding": "model.embed_tokens.weight",
  "blocks.attention_norm": _BLOCK + "input_layernorm.weight",
  "blocks.query": _BLOCK + "self_attn.q_proj.weight",
  "blocks.key": _BLOCK + "self_attn.k_proj.weight",
  "blocks.value": _BLOCK + "self_attn.v_proj.weight",
  "blocks.query_bias": _BLOCK + "self_attn.q_proj.bias",
  "blocks.key_bias": _BLOCK + "self_attn.k_proj.bias",
  "blocks.value_bias": _BLOCK + "self_attn.v_proj.bias",
  "blocks.output": _BLOCK + "self_attn.o_proj.weight",
  "blocks.mlp_norm": _BLOCK + "post_attention_layernorm.weight",
  "blocks.gate": _BLOCK + "mlp.gate_proj.weight",
  "blocks.up": _BLOCK + "mlp.up_proj.weight",
  "blocks.down": _BLOCK + "mlp.down_proj.weight",
  "final_norm": "model.norm.weight",
  "head": "lm_head.weight",
}
