"""The layout of LLaDA 2.0 and 2.1: experts behind a sigmoid, attention from block to block, query, key and value fused.

Source: inclusionAI's modeling_llada2_moe. Its code divides the scores of a token's experts by their sum, and adds the
bias, whatever norm_topk_prob and moe_router_enable_expert_bias say.
"""

from collections.abc import Mapping
from typing import Any

from gdsd_jax.huggingface.config_fields import rope, tied
from gdsd_jax.huggingface.layouts import Field, PublishedLayout, weight_names
from gdsd_jax.models.config import DenoiserConfig, ExpertsConfig

_BLOCK_LENGTH = 32  # that the published models were trained with; their config.json names none


def _llada2(fields: Mapping[str, Any]) -> dict[str, Any]:
  size, per_token = fields["moe_intermediate_size"], fields["num_experts_per_tok"]
  experts = ExpertsConfig(
    count=fields["num_experts"], per_token=per_token, size=size, router="sigmoid", normalised=per_token > 1,
    scale=fields["routed_scaling_factor"], selection_bias=True, groups=fields.get("n_group") or 1,
    groups_per_token=fields.get("topk_group") or 1, shared_size=size * (fields.get("num_shared_experts") or 0),
    dense_layers=fields.get("first_k_dense_replace") or 0,
  )
  return dict(
    num_kv_heads=fields.get("num_key_value_heads") or fields["num_attention_heads"], qk_norm=True, experts=experts,
    norm_epsilon=fields.get("rms_norm_eps", 1e-6), tied_head=tied(fields, "tie_word_embeddings"),
    block_length=fields.get("block_size") or fields.get("block_length") or _BLOCK_LENGTH, positions_skip_padding=True,
    family="llada2_moe", **rope(fields, 10000.0, partial=True),
  )


def _shared(config: DenoiserConfig) -> int:
  experts, rest = divmod(config.experts.shared_size, config.experts.size)
  if rest:
    raise ValueError(f"the shared expert's {config.experts.shared_size} is no multiple of the experts'"
                     f" {config.experts.size}, as LLaDA 2's is")
  return experts


LLADA2 = PublishedLayout(
  hub_name="inclusionAI/LLaDA2.0-mini", architecture="LLaDA2MoeModelLM",
  classes={
    "AutoConfig": "configuration_llada2_moe.LLaDA2MoeConfig", "AutoModel": "modeling_llada2_moe.LLaDA2MoeModel",
    "AutoModelForCausalLM": "modeling_llada2_moe.LLaDA2MoeModelLM",
  },
  required={
    "hidden_act": "silu", "use_sliding_window": False, "use_qkv_bias": False, "use_bias": False, "use_qk_norm": True,
    "use_rmsnorm": True, "score_function": "sigmoid",
  },
  refused={"norm_head": False, "using_split_qkv_in_self_attention": False},
  # What the published code does not read, or computes in one way whatever they say.
  harmless=(
    "rotary_dim", "norm_topk_prob", "moe_router_enable_expert_bias", "router_dtype", "norm_softmax", "sliding_window",
    "max_window_layers", "output_router_logits", "router_aux_loss_coef", "rope_scaling", "rope_parameters",
    "block_length",
  ),
  config={
    "model_type": "llada2_moe", "attention_dropout": 0.0, "embedding_dropout": 0.0, "output_dropout": 0.0,
    "block_size": Field("block_length"), "first_k_dense_replace": lambda config: config.experts.dense_layers,
    "head_dim": Field("head_dim"), "hidden_size": Field("hidden_size"), "initializer_range": 0.02,
    "intermediate_size": Field("mlp_size"), "max_position_embeddings": Field("max_positions"),
    "max_window_layers": Field("num_layers"), "moe_intermediate_size": lambda config: config.experts.size,
    "moe_router_enable_expert_bias": True, "n_group": lambda config: config.experts.groups, "norm_topk_prob": True,
    "num_attention_heads": Field("num_heads"), "num_experts": lambda config: config.experts.count,
    "num_experts_per_tok": lambda config: config.experts.per_token, "num_hidden_layers": Field("num_layers"),
    "num_key_value_heads": Field("num_kv_heads"), "num_shared_experts": _shared,
    "partial_rotary_factor": Field("rotary_share"), "rms_norm_eps": Field("norm_epsilon"), "rope_scaling": None,
    "rope_theta": Field("rope_theta"), "rotary_dim": lambda config: config.rotary_dim,
    "routed_scaling_factor": lambda config: config.experts.scale, "router_dtype": "fp32", "sliding_window": None,
    "tie_word_embeddings": Field("tied_head"), "topk_group": lambda config: config.experts.groups_per_token,
    "vocab_size": Field("vocab_size"), "mask_token_id": Field("mask_token_id"), "eos_token_id": Field("eos_token_id"),
    "pad_token_id": Field("pad_token_id"),
  },
  special=_llada2, tokens={"mask_token_id": 156895, "eos_token_id": 156892},
  weight_names=weight_names(
    embedding="model.word_embeddings", final_norm="model.norm", head="lm_head", block="model.layers.{layer}",
    attention_norm="input_layernorm", query="attention.query_key_value", key="attention.query_key_value",
    value="attention.query_key_value", query_norm="attention.query_layernorm", key_norm="attention.key_layernorm",
    output="attention.dense", mlp_norm="post_attention_layernorm", gate="mlp.gate_proj", up="mlp.up_proj",
    down="mlp.down_proj", router="mlp.gate", expert_gate="mlp.experts.{expert}.gate_proj",
    expert_up="mlp.experts.{expert}.up_proj", expert_down="mlp.experts.{expert}.down_proj",
    shared_gate="mlp.shared_experts.gate_proj", shared_up="mlp.shared_experts.up_proj",
    shared_down="mlp.shared_experts.down_proj",
  ) | {"blocks.router_bias": "model.layers.{layer}.mlp.gate.expert_bias"},
  head_aliases=("lm_head.weight",),
  # As dFactory writes them, whose model_type is llada2_moe_veomni.
  merged_experts={
    f"blocks.expert_{name}": f"model.layers.{{layer}}.mlp.experts.{name}_proj" for name in ("gate", "up", "down")
  },
)
