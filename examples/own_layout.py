"""A layout of one's own, for a model whose config.json has "model_type": "gpt_diffusion", which is unknown here.

  gdsd-train --config=gdsd_math:tiny --config.model.path=FOLDER \
    --config.model.layout=examples/own_layout.py:GptNames
"""

import gdsd_jax

# Field of config.json -> field of DenoiserConfig.
FIELDS = {
  "vocab_size": "vocab_size", "n_embd": "hidden_size", "n_layer": "num_layers", "n_head": "num_heads",
  "n_kv_head": "num_kv_heads", "head_dim": "head_dim", "n_inner": "mlp_size", "rope_theta": "rope_theta",
  "norm_eps": "norm_epsilon", "n_positions": "max_positions", "mask_token_id": "mask_token_id",
  "eos_token_id": "eos_token_id", "pad_token_id": "pad_token_id", "tie_word_embeddings": "tied_head",
}


class GptNames(gdsd_jax.Layout):
  weight_names = gdsd_jax.weight_names(
    embedding="wte", final_norm="ln_f", head="lm_head", block="h.{layer}", attention_norm="ln_1", query="attn.q",
    key="attn.k", value="attn.v", output="attn.c_proj", mlp_norm="ln_2", gate="mlp.w1", up="mlp.w3", down="mlp.w2",
  )

  def parse_config(self, fields):
    return gdsd_jax.DenoiserConfig(**{ours: fields[theirs] for theirs, ours in FIELDS.items()})

  def format_config(self, config, dtype):
    values = {theirs: getattr(config, ours) for theirs, ours in FIELDS.items()}
    return {"model_type": "gpt_diffusion", "torch_dtype": dtype, **values}
