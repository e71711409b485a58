"""The layout of LLaDA-MoE: OLMoE's network, attending both ways. Source: inclusionAI's modeling_lladamoe.

Its code weighs a token's experts by their shares in the softmax over all, whatever norm_topk_prob,
routed_scaling_factor and the fields of groups say.
"""

from collections.abc import Mapping
from typing import Any

from gdsd_jax.huggingface.config_fields import rope, tied
from gdsd_jax.huggingface.layouts import Field, PublishedLayout, weight_names
from gdsd_jax.models.config import DenoiserConfig, ExpertsConfig


def _llada_moe(fields: Mapping[str, Any]) -> dict[str, Any]:
  experts = ExpertsConfig(
    count=fields["num_experts"], per_token=fields["num_experts_per_tok"], size=fields["expert_intermediate_size"],
    shared_size=fields.get("shared_expert_intermediate_size") or 0, dense_layers=_dense_layers(fields),
  )
  return dict(
    num_kv_heads=fields.get("num_key_value_heads") or fields["num_attention_heads"], experts=experts,
    # The width of the MLP plays no part where every layer has experts.
    mlp_size=fields.get("dense_intermediate_size") or experts.size, qk_norm=fields.get("qk_layernorm") or False,
    norm_epsilon=fields.get("rms_norm_eps", 1e-5), tied_head=tied(fields, "tie_word_embeddings"), family="lladamoe",
    **rope(fields, 10000.0, partial=True),
  )


def _dense_layers(fields: Mapping[str, Any]) -> int:
  """How many of the first layers have an MLP, by `moe_layer_freq`, which is 0 there."""
  stated, layers = fields.get("moe_layer_freq"), fields["num_hidden_layers"]
  if stated is None:
    return 0
  sparse = [bool(layer) for layer in stated] if isinstance(stated, list) else [bool(stated)] * layers
  first = sparse.index(True) if any(sparse) else len(sparse)
  if len(sparse) != layers or not all(sparse[first:]) or first == layers:
    raise ValueError(f"moe_layer_freq is {stated!r}; of the {layers} layers only the first may be without experts")
  return first


def _frequencies(config: DenoiserConfig) -> list[int]:
  return [int(layer >= config.experts.dense_layers) for layer in range(config.num_layers)]


LLADA_MOE = PublishedLayout(
  hub_name="inclusionAI/LLaDA-MoE-7B-A1B-Instruct", architecture="LLaDAMoEModelLM",
  classes={
    "AutoConfig": "configuration_lladamoe.LLaDAConfig", "AutoModel": "modeling_lladamoe.LLaDAMoEModelLM",
    "AutoModelForCausalLM": "modeling_lladamoe.LLaDAMoEModelLM",
  },
  # A bias would enter the weights of the experts, too.
  required={"hidden_act": "silu", "attention_bias": False, "moe_router_enable_expert_bias": False},
  refused={"moe_router_score_function": "softmax"},
  harmless=(
    "norm_topk_prob", "routed_scaling_factor", "router_num_group", "router_topk_group", "router_aux_loss_coef",
    "output_router_logits", "rope_scaling", "rope_parameters",
  ),
  config={
    "model_type": "lladamoe", "attention_dropout": 0.0, "clip_qkv": None, "dense_intermediate_size": Field("mlp_size"),
    "expert_intermediate_size": lambda config: config.experts.size, "hidden_size": Field("hidden_size"),
    "initializer_range": 0.02, "max_position_embeddings": Field("max_positions"), "moe_layer_freq": _frequencies,
    "moe_router_score_function": "softmax", "norm_topk_prob": None, "num_attention_heads": Field("num_heads"),
    "num_experts": lambda config: config.experts.count,
    "num_experts_per_tok": lambda config: config.experts.per_token, "num_hidden_layers": Field("num_layers"),
    "num_key_value_heads": Field("num_kv_heads"), "partial_rotary_factor": Field("rotary_share"),
    "qk_layernorm": Field("qk_norm"), "rms_norm_eps": Field("norm_epsilon"), "rope_scaling": None,
    "rope_theta": Field("rope_theta"), "routed_scaling_factor": 1.0, "router_num_group": None,
    "router_topk_group": None, "shared_expert_intermediate_size": lambda config: config.experts.shared_size or None,
    "tie_word_embeddings": Field("tied_head"), "vocab_size": Field("vocab_size"),
    "mask_token_id": Field("mask_token_id"), "eos_token_id": Field("eos_token_id"),
    "pad_token_id": Field("pad_token_id"),
  },
  special=_llada_moe, tokens={"mask_token_id": 156895, "eos_token_id": 156892},
  weight_names=weight_names(
    embedding="model.embed_tokens", final_norm="model.norm", head="lm_head", block="model.layers.{layer}",
    attention_norm="input_layernorm", query="self_attn.q_proj", key="self_attn.k_proj", value="self_attn.v_proj",
    query_norm="self_attn.q_norm", key_norm="self_attn.k_norm", output="self_attn.o_proj",
    mlp_norm="post_attention_layernorm", gate="mlp.gate_proj", up="mlp.up_proj", down="mlp.down_proj",
    router="mlp.gate", expert_gate="mlp.experts.{expert}.gate_proj", expert_up="mlp.experts.{expert}.up_proj",
    expert_down="mlp.experts.{expert}.down_proj", shared_gate="shared_expert.gate_proj",
    shared_up="shared_expert.up_proj", shared_down="shared_expert.down_proj",
  ),
  head_aliases=("lm_head.weight",),
)
