"""The layout of iLLaDA (arXiv 2606.25331): a LLaMA with grouped queries that attends both ways."""

from collections.abc import Mapping
from typing import Any

from gdsd_jax.huggingface.config_fields import rope, tied
from gdsd_jax.huggingface.layouts import DREAM, Field, PublishedLayout


def _illada(fields: Mapping[str, Any]) -> dict[str, Any]:
  return dict(
    num_kv_heads=fields.get("num_key_value_heads") or fields["num_attention_heads"],
    norm_epsilon=fields.get("rms_norm_eps") or fields.get("layer_norm_eps") or 1e-6,
    tied_head=tied(fields, "tie_word_embeddings"), family="illada", **rope(fields, 10000.0),
  )


ILLADA = PublishedLayout(
  hub_name="GSAI-ML/iLLaDA-8B-Base", architecture="ILLaDAForCausalLM", classes={},
  required={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}, refused={"use_sliding_window": False},
  harmless=("layer_norm_eps", "rope_scaling", "rope_parameters"),
  config={
    "model_type": "illada", "attention_dropout": 0.0, "resid_pdrop": 0.0, "hidden_size": Field("hidden_size"),
    "initializer_range": 0.02, "intermediate_size": Field("mlp_size"), "layer_norm_eps": None,
    "max_position_embeddings": Field("max_positions"), "num_attention_heads": Field("num_heads"),
    "num_hidden_layers": Field("num_layers"), "num_key_value_heads": Field("num_kv_heads"),
    "rms_norm_eps": Field("norm_epsilon"), "rope_scaling": None, "rope_theta": Field("rope_theta"),
    "tie_word_embeddings": Field("tied_head"), "vocab_size": Field("vocab_size"),
    "mask_token_id": Field("mask_token_id"), "eos_token_id": Field("eos_token_id"),
    "pad_token_id": Field("pad_token_id"),
  },
  # The published files name no mask token.
  special=_illada, tokens={"mask_token_id": 5}, weight_names=DREAM.weight_names, head_aliases=DREAM.head_aliases,
)
