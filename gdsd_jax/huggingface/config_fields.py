"""Fields of config.json, each read, refused or known to change nothing; what is none of these is told in a warning."""

from collections.abc import Collection, Mapping
import functools
import logging
from typing import Any

_log = logging.getLogger(__name__)

# What transformers says of any model: about files, outputs, generation and training, not about what is computed.
_OF_ANY_MODEL = frozenset((
  "architectures", "auto_map", "model_type", "transformers_version", "torch_dtype", "dtype", "_name_or_path",
  "name_or_path", "_commit_hash", "use_cache", "return_dict", "output_hidden_states", "output_attentions", "id2label",
  "label2id", "problem_type", "tokenizer_class", "prefix", "bos_token_id", "sep_token_id", "cls_token_id",
  "decoder_start_token_id", "task_specific_params", "finetuning_task", "torchscript", "use_bfloat16", "pruned_heads",
  "chunk_size_feed_forward", "is_encoder_decoder", "add_cross_attention", "cross_attention_hidden_size",
  "tie_encoder_decoder", "initializer_range", "pretraining_tp", "classifier_pooling", "gradient_checkpointing",
  "_attn_implementation", "attn_implementation", "_attn_implementation_autoset", "unsloth_version", "unsloth_fixed",
  "max_length", "min_length", "do_sample", "temperature", "top_k", "top_p", "num_beams", "repetition_penalty",
))
# Words for what this network does not compute, with the value that leaves it as it is; unset does, too.
_ONLY = {
  "partial_rotary_factor": 1, "qk_layernorm": False, "use_qk_norm": False, "qk_norm": False, "clip_qkv": None,
  "logit_scale": 1, "logits_scaling": 1, "final_logit_softcapping": None, "attn_logit_softcapping": None,
  "residual_multiplier": 1, "embedding_multiplier": 1, "scale_emb": 1, "query_pre_attn_scalar": None,
  "num_experts": 0, "num_local_experts": 0, "n_routed_experts": 0, "is_causal": False, "is_decoder": False,
  "use_sliding_window": False, "use_mrope": False, "attention_sinks": False, "compression_config": None,
}
_DROPOUTS = ("attention_dropout", "residual_dropout", "embedding_dropout", "resid_pdrop", "hidden_dropout",
             "output_dropout")


def check_fields(fields: Mapping[str, Any], required: Mapping[str, Any], read: Collection[str]) -> None:
  """Raises ValueError on what the network cannot compute, and warns of what is not known to it.

  Args:
    fields: those of config.json.
    required: the only value of a field that is computed. None and False are a layout's ways to say "off".
    read: the fields that the layout reads, or knows to change nothing.
  """
  for name, value in required.items():
    if name in fields and (fields[name] or False) != value:
      raise ValueError(f"{name} is {fields[name]!r}; only {value!r} is supported")
  if quantization := fields.get("quantization_config"):
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else quantization
    raise ValueError(f"its weights are quantised (quantization_config, {method!r}), which are not supported; name the"
                     " model that they were made from, or let transformers write it again after `dequantize()`")
  for name, value in _ONLY.items():
    if name not in (*required, *read) and (fields.get(name) or value or 0) != (value or 0):
      raise ValueError(f"{name} is {fields[name]!r}; only {value!r} is supported")
  others = [kind for kind in fields.get("layer_types") or () if kind != "full_attention"]
  if others:
    raise ValueError(f"layer_types has {others[0]!r}; only 'full_attention' is supported")
  for name in _DROPOUTS:
    if fields.get(name):
      _warn(f"{name} is {fields[name]}, which is not applied in training")
  known = {*required, *read, *_ONLY, *_DROPOUTS, *_OF_ANY_MODEL, "layer_types", "quantization_config"}
  if unknown := sorted(name for name, value in fields.items() if name not in known and value):
    _warn(f"what these fields ask for is not known here, and left out: {', '.join(unknown)}")


@functools.cache  # a run reads config.json several times
def _warn(message: str) -> None:
  _log.warning("config.json: %s", message)


def check_sizes(fields: Mapping[str, Any], *names: str) -> None:
  """Raises ValueError where one of the fields, which are divided by each other, is no positive integer."""
  for name in names:
    if type(fields[name]) is not int or fields[name] < 1:
      raise ValueError(f"{name} must be a positive integer, not {fields[name]!r}")


def token_ids(fields: Mapping[str, Any], known: Mapping[str, int] | None = None) -> dict[str, int]:
  """`mask_token_id`, `eos_token_id` and `pad_token_id` of DenoiserConfig, which checks them.

  `known` are the family's own, where config.json names none. Of several ends of text the first is the model's own; all
  stop a completion (huggingface/tokenizer.py). Padding that is not stated is an end of text. Raises KeyError or
  ValueError where one is missing or is no token.
  """
  fields = {**fields, **{name: token for name, token in (known or {}).items() if fields.get(name) is None}}
  ids = {name: fields[name] for name in ("mask_token_id", "eos_token_id")}
  ends = ids["eos_token_id"] if isinstance(ids["eos_token_id"], list) else [ids["eos_token_id"]]
  if not ends or not all(type(end) is int for end in ends):
    raise ValueError(f"eos_token_id is {ids['eos_token_id']!r}; it must be a token's id, or a list of them")
  size = max((fields[name] for name in ("vocab_size", "embedding_size") if type(fields.get(name)) is int), default=0)
  if outside := [end for end in ends[1:] if not 0 <= end < size]:
    raise ValueError(f"eos_token_id ({outside[0]}) must lie in the vocabulary of {size}")
  if ids["mask_token_id"] in ends:
    raise ValueError(f"eos_token_id is {ids['eos_token_id']!r}, which holds the mask token")
  pad = fields.get("pad_token_id")
  return {**ids, "eos_token_id": ends[0], "pad_token_id": ends[0] if pad is None else pad}


def tied(fields: Mapping[str, Any], *names: str) -> bool:
  """Whether the LM head is the embedding, by the first of these fields that is set."""
  return next((fields[name] for name in names if fields.get(name) is not None), False)


def rope(fields: Mapping[str, Any], default: float, partial: bool = False) -> dict[str, float]:
  """`rope_theta` and `rope_factor` of DenoiserConfig, wherever releases of transformers write them.

  And `rotary_share` where the family has a `partial` one. What rope_scaling and rope_parameters say goes before
  `rope_theta` itself, as in transformers. Raises ValueError on a scaling that is not linear, and where they contradict
  each other.
  """
  thetas, factors, shares = {}, {}, {}
  if partial and fields.get("partial_rotary_factor") is not None:
    shares["partial_rotary_factor"] = fields["partial_rotary_factor"]
  for name in ("rope_scaling", "rope_parameters"):  # transformers 5 writes the latter, with the base in it
    if not (stated := fields.get(name)):
      continue
    kind = stated.get("rope_type", stated.get("type", "default")) if isinstance(stated, Mapping) else None
    known = {"rope_theta", "rope_type", "type"} | ({"factor"} if kind == "linear" else set())
    if partial or isinstance(stated, Mapping) and stated.get("partial_rotary_factor") == 1:
      known.add("partial_rotary_factor")
    if kind not in ("default", "linear") or {key for key in stated if stated[key] is not None} - known:
      raise ValueError(f"{name} is {stated!r}; only unscaled and linearly scaled positions are supported")
    if stated.get("rope_theta") is not None:
      thetas[f"{name}.rope_theta"] = stated["rope_theta"]
    if partial and stated.get("partial_rotary_factor") is not None:
      shares[f"{name}.partial_rotary_factor"] = stated["partial_rotary_factor"]
    factors[name] = stated.get("factor") if kind == "linear" else 1.0
    if factors[name] is None:
      raise ValueError(f"{name} is {stated!r}, which lacks the factor")
  for found in (thetas, factors, shares):
    if any(value != next(iter(found.values())) for value in found.values()):
      raise ValueError(f"{' and '.join(f'{name} ({value})' for name, value in found.items())} contradict each other")
  theta = next(iter(thetas.values()), fields.get("rope_theta", default))
  share = {"rotary_share": next(iter(shares.values()), 1.0)} if partial else {}
  return {"rope_theta": theta, "rope_factor": next(iter(factors.values()), 1.0), **share}
