"""The layouts of SDAR: Qwen3's network, dense or of experts, attending from block to block. Source: JetAstra/SDAR.

TraDo and DiRL have it, too, and SDAR's own variants with blocks of other lengths.
"""

from collections.abc import Mapping
from typing import Any

from gdsd_jax.huggingface.config_fields import rope, tied
from gdsd_jax.huggingface.layouts import Field, PublishedLayout, weight_names
from gdsd_jax.models.config import ExpertsConfig

_BLOCK_LENGTH = 4  # the models' own, where config.json names none
_NAMES = dict(
  embedding="model.embed_tokens", final_norm="model.norm", head="lm_head", block="model.layers.{layer}",
  attention_norm="input_layernorm", query="self_attn.q_proj", key="self_attn.k_proj", value="self_attn.v_proj",
  query_norm="self_attn.q_norm", key_norm="self_attn.k_norm", output="self_attn.o_proj",
  mlp_norm="post_attention_layernorm",
)
# For speed or memory alone; the window of a sliding attention that is off; what is read elsewhere.
_HARMLESS = (
  "fuse_cross_entropy", "ep_size", "micro_forward", "skip_checkpoint", "use_deepep", "debug", "max_window_layers",
  "sliding_window", "rope_scaling", "rope_parameters", "router_aux_loss_coef", "output_router_logits",
)
_CONFIG = {
  "attention_dropout": 0.0, "block_size": Field("block_length"), "head_dim": Field("head_dim"),
  "hidden_size": Field("hidden_size"), "initializer_range": 0.02, "intermediate_size": Field("mlp_size"),
  "max_position_embeddings": Field("max_positions"), "max_window_layers": Field("num_layers"),
  "num_attention_heads": Field("num_heads"), "num_hidden_layers": Field("num_layers"),
  "num_key_value_heads": Field("num_kv_heads"), "rms_norm_eps": Field("norm_epsilon"), "rope_scaling": None,
  "rope_theta": Field("rope_theta"), "sliding_window": None, "tie_word_embeddings": Field("tied_head"),
  "vocab_size": Field("vocab_size"), "mask_token_id": Field("mask_token_id"), "bos_token_id": Field("eos_token_id"),
  "eos_token_id": Field("eos_token_id"), "pad_token_id": Field("pad_token_id"),
}
_REQUIRED = {"hidden_act": "silu", "use_sliding_window": False, "attention_bias": False}
_TOKENS = {"mask_token_id": 151669, "eos_token_id": 151643}


def _sdar(fields: Mapping[str, Any]) -> dict[str, Any]:
  return dict(
    num_kv_heads=fields.get("num_key_value_heads") or fields["num_attention_heads"], qk_norm=True,
    norm_epsilon=fields.get("rms_norm_eps", 1e-6), tied_head=tied(fields, "tie_word_embeddings"),
    block_length=fields.get("block_size") or _BLOCK_LENGTH, positions_skip_padding=True, family="sdar",
    **rope(fields, 10000.0),
  )


def _sdar_moe(fields: Mapping[str, Any]) -> dict[str, Any]:
  if fields.get("mlp_only_layers"):
    raise ValueError(f"mlp_only_layers is {fields['mlp_only_layers']!r}; only layers of experts are supported")
  experts = ExpertsConfig(
    count=fields["num_experts"], per_token=fields["num_experts_per_tok"], size=fields["moe_intermediate_size"],
    normalised=fields.get("norm_topk_prob") or False,
  )
  return _sdar(fields) | dict(experts=experts, family="sdar_moe")


SDAR = PublishedLayout(
  hub_name="JetLM/SDAR-8B-Chat", architecture="SDARForCausalLM",
  classes={"AutoConfig": "configuration_sdar.SDARConfig", "AutoModel": "modeling_sdar.SDARForCausalLM",
           "AutoModelForCausalLM": "modeling_sdar.SDARForCausalLM"},
  required=_REQUIRED, harmless=_HARMLESS, config={"model_type": "sdar", **_CONFIG}, special=_sdar, tokens=_TOKENS,
  weight_names=weight_names(**_NAMES, gate="mlp.gate_proj", up="mlp.up_proj", down="mlp.down_proj"),
  head_aliases=("lm_head.weight",),
)

SDAR_MOE = PublishedLayout(
  hub_name="JetLM/SDAR-30B-A3B-Chat", architecture="SDARMoeForCausalLM",
  classes={"AutoConfig": "configuration_sdar_moe.SDARMoeConfig", "AutoModel": "modeling_sdar_moe.SDARMoeForCausalLM",
           "AutoModelForCausalLM": "modeling_sdar_moe.SDARMoeForCausalLM"},
  required=_REQUIRED, refused={"decoder_sparse_step": 1}, harmless=(*_HARMLESS, "mlp_only_layers"),
  config={
    "model_type": "sdar_moe", **_CONFIG, "num_experts": lambda config: config.experts.count,
    "num_experts_per_tok": lambda config: config.experts.per_token, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "moe_intermediate_size": lambda config: config.experts.size,
    "norm_topk_prob": lambda config: config.experts.normalised,
  },
  special=_sdar_moe, tokens=_TOKENS,
  weight_names=weight_names(
    **_NAMES, router="mlp.gate", expert_gate="mlp.experts.{expert}.gate_proj",
    expert_up="mlp.experts.{expert}.up_proj", expert_down="mlp.experts.{expert}.down_proj",
  ),
  head_aliases=("lm_head.weight",),
)
