"""Hugging Face layouts: what a family's config.json says, and how its weights are called. Here: LLaDA's and Dream's.

The others are in files of their own; families.py has all.
"""

from collections.abc import Callable, Mapping
import dataclasses
import types
from typing import Any

from gdsd_jax.huggingface.config_fields import check_fields, check_sizes, rope, tied, token_ids
from gdsd_jax.models.config import DenoiserConfig


class Field(str):
  """A field of DenoiserConfig, in the place of its value."""


class Layout:
  """How a family writes its models: what its config.json says, and how its weights are called.

  One's own (docs/own.md) is a subclass; its weights are those of the network in models/weights.py.
  """

  # Parameter path -> weight name, with {layer} where it is stacked along `layers`, and {expert} where each expert has
  # its own; `weight_names` makes it. Files hold linear layers as PyTorch does, [out, in]. Query, key and value of one
  # name are the rows of one weight, in this order.
  weight_names: Mapping[str, str]
  # Names that files may have instead for all experts' weights in one, [experts, out, in].
  merged_experts: Mapping[str, str] = types.MappingProxyType({})
  # Other names of the LM head, under which files may hold it, or the embedding of a model whose head is tied to it.
  head_aliases: tuple[str, ...] = ()

  def parse_config(self, fields: Mapping[str, Any]) -> DenoiserConfig:
    """DenoiserConfig from the fields of config.json. Raises ValueError on what the transformer cannot compute."""
    raise NotImplementedError(f"{type(self).__name__} must have `parse_config`")

  def format_config(self, config: DenoiserConfig, dtype: str) -> dict[str, Any]:
    """The fields of config.json for weights of this dtype, of which `parse_config` makes the same config again."""
    raise NotImplementedError(f"{type(self).__name__} must have `format_config`")

  def zero_biases(self, config: DenoiserConfig) -> dict[str, int]:
    """{weight name: size} of biases that the files have and the network does not: they must be zero."""
    return {}


@dataclasses.dataclass(frozen=True)
class PublishedLayout(Layout):
  """The layout of a family whose models are published."""

  hub_name: str  # the published model, whose layout its kin share
  architecture: str  # the published class, by which config.json calls it, too
  classes: Mapping[str, str]  # the published code, for `transformers` with trust_remote_code: never run here
  required: Mapping[str, Any]  # what this transformer computes in no other way: any other value is refused
  # All else that the published code reads: constants, fields of DenoiserConfig, and functions of it.
  config: Mapping[str, Any]
  # From config.json to the fields of DenoiserConfig that it may leave out, or has other words for.
  special: Callable[[Mapping[str, Any]], dict[str, Any]]
  weight_names: Mapping[str, str]
  head_aliases: tuple[str, ...] = ()
  refused: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # as `required`, not written, and may be null
  harmless: tuple[str, ...] = ()  # what config.json may say besides: it is read elsewhere, or nothing depends on it
  tokens: Mapping[str, int] = dataclasses.field(default_factory=dict)  # the family's ids where config.json names none
  merged_experts: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def parse_config(self, fields: Mapping[str, Any]) -> DenoiserConfig:
    """DenoiserConfig from the fields of config.json. Raises ValueError on what the transformer cannot compute."""
    stated = {name: value for name, value in self.refused.items() if fields.get(name) is not None}
    check_fields(fields, {**self.required, **stated}, (*self.config, *self.refused, *self.harmless))
    names = {field: name for name, field in self.config.items() if isinstance(field, Field)}
    width, heads = fields[names["hidden_size"]], fields[names["num_heads"]]
    check_sizes(fields, names["hidden_size"], names["num_heads"])
    head_dim = fields.get(names["head_dim"]) if "head_dim" in names else None
    if width % heads and not head_dim:
      raise ValueError(f"{names['hidden_size']} ({width}) must be a multiple of {names['num_heads']} ({heads})")
    values = {"head_dim": head_dim or width // heads, **token_ids(fields, self.tokens), **self.special(fields)}
    return DenoiserConfig(**{field: fields[name] for field, name in names.items() if field not in values}, **values)

  def format_config(self, config: DenoiserConfig, dtype: str) -> dict[str, Any]:
    """The fields of config.json, all that the published modelling code reads."""
    auto_map = {name: f"{self.hub_name}--{path}" for name, path in self.classes.items()}
    of_config = lambda v: getattr(config, v) if isinstance(v, Field) else v(config) if callable(v) else v
    values = {name: of_config(value) for name, value in self.config.items()}
    if config.rope_factor != 1 and "rope_scaling" in values:
      values["rope_scaling"] = {"rope_type": "linear", "factor": config.rope_factor}
    return {"architectures": [self.architecture], **({"auto_map": auto_map} if auto_map else {}), **self.required,
            **values, "torch_dtype": dtype, "use_cache": False}


def weight_names(embedding: str, final_norm: str, head: str, block: str, **modules: str) -> dict[str, str]:
  """`Layout.weight_names` from the names of modules, without ".weight".

  `block` is a transformer block's, with {layer} in it, and `modules` are those of its weights: attention_norm, query,
  key, value, output, mlp_norm, gate, up and down, and those of its options (`models.weights.block_weights`). Names of
  what a model lacks, such as a head of its own, play no part.
  """
  paths = {"embedding": embedding, "final_norm": final_norm, "head": head}
  paths |= {f"blocks.{leaf}": f"{block}.{module}" for leaf, module in modules.items()}
  biases = {f"blocks.{leaf}_bias": f"{block}.{modules[leaf]}.bias" for leaf in ("query", "key", "value")}
  return {path: f"{module}.weight" for path, module in paths.items()} | biases


def _llada(fields: Mapping[str, Any]) -> dict[str, Any]:
  return dict(
    vocab_size=fields.get("embedding_size") or fields["vocab_size"],
    num_kv_heads=fields.get("n_kv_heads") or (1 if fields.get("multi_query_attention") else fields["n_heads"]),
    mlp_size=fields.get("mlp_hidden_size") or int(fields["mlp_ratio"] * fields["d_model"]),
    norm_epsilon=fields.get("rms_norm_eps", 1e-5), qkv_bias=fields.get("include_qkv_bias") or False,
    tied_head=tied(fields, "weight_tying", "tie_word_embeddings"), family="llada", **rope(fields, 10000.0),
  )


LLADA = PublishedLayout(
  hub_name="GSAI-ML/LLaDA-8B-Instruct", architecture="LLaDAModelLM",
  classes={
    "AutoConfig": "configuration_llada.LLaDAConfig", "AutoModel": "modeling_llada.LLaDAModelLM",
    "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
  },
  required={
    "block_type": "llama", "activation_type": "silu", "layer_norm_type": "rms", "rope": True, "alibi": False,
    "include_bias": False, "bias_for_layer_norm": False, "attention_layer_norm": False, "input_emb_norm": False,
    "scale_logits": False,
  },
  refused={"layer_norm_with_affine": True, "block_group_size": 1},
  # The slope of an alibi that is off, an affine norm of queries that there is none of; how weights begin; how much of
  # the rotation is float32, which it is here; which kernel or device computes.
  harmless=(
    "alibi_bias_max", "init_fn", "init_std", "init_cutoff_factor", "multi_query_attention", "rope_scaling",
    "rope_parameters", "tie_word_embeddings", "layer_norm_eps", "attention_layer_norm_with_affine",
  ),
  config={
    "model_type": "llada", "attention_dropout": 0.0, "residual_dropout": 0.0, "embedding_dropout": 0.0,
    "attention_layer_norm_with_affine": True, "layer_norm_with_affine": True, "block_group_size": 1,
    "d_model": Field("hidden_size"), "embedding_size": Field("vocab_size"), "vocab_size": Field("vocab_size"),
    "n_layers": Field("num_layers"), "n_heads": Field("num_heads"), "n_kv_heads": Field("num_kv_heads"),
    "mlp_hidden_size": Field("mlp_size"), "mlp_ratio": 4, "max_sequence_length": Field("max_positions"),
    "rope_theta": Field("rope_theta"), "rope_full_precision": True, "rms_norm_eps": Field("norm_epsilon"),
    "include_qkv_bias": Field("qkv_bias"), "weight_tying": Field("tied_head"), "flash_attention": False,
    "init_device": "cpu", "precision": "amp_bf16", "mask_token_id": Field("mask_token_id"),
    "eos_token_id": Field("eos_token_id"), "pad_token_id": Field("pad_token_id"),
  },
  special=_llada,
  weight_names=weight_names(
    embedding="model.transformer.wte", final_norm="model.transformer.ln_f", head="model.transformer.ff_out",
    block="model.transformer.blocks.{layer}", attention_norm="attn_norm", query="q_proj", key="k_proj", value="v_proj",
    output="attn_out", mlp_norm="ff_norm", gate="ff_proj", up="up_proj", down="ff_out",
  ),
  head_aliases=("model.transformer.ff_out.weight", "lm_head.weight"),
)


def _dream(fields: Mapping[str, Any]) -> dict[str, Any]:
  return dict(
    num_kv_heads=fields.get("num_key_value_heads") or fields["num_attention_heads"],
    norm_epsilon=fields.get("rms_norm_eps", 1e-6), qkv_bias=True, tied_head=tied(fields, "tie_word_embeddings"),
    shifted_output=True, positions_skip_padding=True, family="dream", **rope(fields, 10000.0),
  )


DREAM = PublishedLayout(
  hub_name="Dream-org/Dream-v0-Instruct-7B", architecture="DreamModel",
  classes={"AutoConfig": "configuration_dream.DreamConfig", "AutoModel": "modeling_dream.DreamModel"},
  required={"hidden_act": "silu", "use_sliding_window": False},
  refused={"attention_bias": True, "qkv_bias": True, "mlp_bias": False},
  # The window of a sliding attention that is off; how weights begin; where rotary positions are stated is read.
  harmless=("max_window_layers", "sliding_window", "rope_scaling", "rope_parameters", "initializer_range"),
  config={
    "model_type": "Dream", "attention_dropout": 0.0, "hidden_size": Field("hidden_size"),
    "head_dim": Field("head_dim"), "initializer_range": 0.02, "intermediate_size": Field("mlp_size"),
    "max_position_embeddings": Field("max_positions"), "max_window_layers": Field("num_layers"),
    "num_attention_heads": Field("num_heads"), "num_hidden_layers": Field("num_layers"),
    "num_key_value_heads": Field("num_kv_heads"), "rms_norm_eps": Field("norm_epsilon"), "rope_scaling": None,
    "rope_theta": Field("rope_theta"), "sliding_window": None, "tie_word_embeddings": Field("tied_head"),
    "vocab_size": Field("vocab_size"), "mask_token_id": Field("mask_token_id"),
    "bos_token_id": Field("eos_token_id"), "eos_token_id": Field("eos_token_id"),
    "pad_token_id": Field("pad_token_id"),
  },
  special=_dream,
  weight_names=weight_names(
    embedding="model.embed_tokens", final_norm="model.norm", head="lm_head", block="model.layers.{layer}",
    attention_norm="input_layernorm", query="self_attn.q_proj", key="self_attn.k_proj", value="self_attn.v_proj",
    output="self_attn.o_proj", mlp_norm="post_attention_layernorm", gate="mlp.gate_proj", up="mlp.up_proj",
    down="mlp.down_proj",
  ),
  head_aliases=("lm_head.weight",),
)
