"""Models as a class of transformers' own: EuroBERT's, which is the network of LLaDA and Dream, and asks for no code.

It is a LLaMA that attends both ways with an LM head, in transformers since release 5: `AutoModelForMaskedLM` opens what
is written here, offline and without `trust_remote_code`. The published layouts need their authors' code instead.
Source: transformers/models/eurobert. Dream has biases where EuroBERT has all or none, so that one more, of the
attention's output, is written as zeros. Where Dream's output is shifted, so is the class's: position i predicts i + 1.
"""

from collections.abc import Mapping
from typing import Any

from gdsd_jax.huggingface.config_fields import check_fields, check_sizes, rope, tied, token_ids
from gdsd_jax.huggingface.families import FAMILIES
from gdsd_jax.huggingface.layouts import DREAM, Layout
from gdsd_jax.models.config import DenoiserConfig

MODEL_TYPE, CLASS, MODULE = "eurobert", "EuroBertForMaskedLM", "transformers.models.eurobert.modeling_eurobert"
_FAMILY = "diffusion_family"  # the field that says whose kin it is; transformers carries it along
_INTEGERS = {
  "vocab_size": "vocab_size", "hidden_size": "hidden_size", "intermediate_size": "mlp_size",
  "num_hidden_layers": "num_layers", "num_attention_heads": "num_heads", "num_key_value_heads": "num_kv_heads",
  "head_dim": "head_dim", "max_position_embeddings": "max_positions",
}
_TOKENS = ("mask_token_id", "eos_token_id", "pad_token_id")
_HARMLESS = ("rope_theta", "rope_scaling", "rope_parameters", "rms_norm_eps", "attention_bias", "tie_word_embeddings")


class EuroBertLayout(Layout):
  """As `Layout`, of any family whose network EuroBERT's class computes."""

  weight_names = DREAM.weight_names  # both are those of LLaMA
  head_aliases = DREAM.head_aliases

  def parse_config(self, fields: Mapping[str, Any]) -> DenoiserConfig:
    check_fields(fields, {"hidden_act": "silu", "mlp_bias": False}, (*_INTEGERS, *_TOKENS, *_HARMLESS, _FAMILY))
    family = fields.get(_FAMILY, "llada")
    if family not in FAMILIES:
      raise ValueError(f"{_FAMILY} is {family!r}; known are {', '.join(FAMILIES)}")
    check_sizes(fields, "hidden_size", "num_attention_heads")
    shifted, heads = family == "dream", fields["num_attention_heads"]
    given = {"num_key_value_heads": heads, "head_dim": fields["hidden_size"] // heads, **fields}
    return DenoiserConfig(
      **{field: given[name] for name, field in _INTEGERS.items()}, **token_ids(fields),
      norm_epsilon=fields.get("rms_norm_eps", 1e-5), qkv_bias=fields.get("attention_bias") or False,
      tied_head=tied(fields, "tie_word_embeddings"), shifted_output=shifted, positions_skip_padding=shifted,
      family=family, layout="transformers", **rope(fields, 10000.0),
    )

  def computes(self, config: DenoiserConfig) -> bool:
    """Whether the class has such a network."""
    options = config.block_length, config.experts, config.qk_norm or None
    return config.hidden_size % config.num_heads == 0 and config.rotary_share == 1 and options == (None, None, None)

  def format_config(self, config: DenoiserConfig, dtype: str) -> dict[str, Any]:
    """Raises ValueError where the class has no such network."""
    if not self.computes(config):
      raise ValueError(f"{CLASS} has no network of the family {config.family} with hidden_size {config.hidden_size} and"
                       f" num_heads {config.num_heads}; write the published layout")
    scaled = config.rope_factor != 1
    positions = {"rope_type": "linear", "factor": config.rope_factor} if scaled else {"rope_type": "default"}
    return {
      "architectures": [CLASS], "model_type": MODEL_TYPE, _FAMILY: config.family,
      **{name: getattr(config, field) for name, field in _INTEGERS.items()},
      **{name: getattr(config, name) for name in _TOKENS}, "bos_token_id": None,
      "hidden_act": "silu", "mlp_bias": False, "attention_bias": config.qkv_bias, "attention_dropout": 0.0,
      "rms_norm_eps": config.norm_epsilon, "rope_parameters": {**positions, "rope_theta": config.rope_theta},
      "tie_word_embeddings": config.tied_head, "dtype": dtype, "use_cache": False,
    }

  def zero_biases(self, config: DenoiserConfig) -> dict[str, int]:
    name, layers = self.weight_names["blocks.output"].replace(".weight", ".bias"), range(config.num_layers)
    return {name.format(layer=layer): config.hidden_size for layer in layers} if config.qkv_bias else {}


EUROBERT = EuroBertLayout()
