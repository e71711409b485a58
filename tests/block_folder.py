"""A small block-causal model on the disk: what a run of one can start from."""

import dataclasses

import jax

import gdsd_jax
from gdsd_jax.models.denoiser import Denoiser

K = 4  # tokens of its blocks
# How it is sampled, in fields of a recipe.
SAMPLED = {
  "sampler.kind": "block", "sampler.cache": "exact", "sampler.completion_length": 8, "sampler.block_length": K,
  "sampler.steps": 8, "sampler.prompt_buckets": (40,), "eval.lengths": (8,), "eval.block_length": K,
  "eval.steps_per_token": 1.0,
}


def write_block_folder(folder, **changes):
  """SDAR's layout and random weights, with the tokenizer of the embedded model; or a config with these changes."""
  denoiser, _ = gdsd_jax.load_pretrained("tiny")
  config = dataclasses.replace(
    denoiser.config, block_length=K, positions_skip_padding=True, qk_norm=True, family="sdar", num_layers=2,
    hidden_size=32, num_heads=2, num_kv_heads=2, head_dim=16, mlp_size=48, layout="published")
  config = dataclasses.replace(config, **changes)
  made = Denoiser(config)
  tokenizer = gdsd_jax.load_tokenizer("tiny", denoiser.config)
  gdsd_jax.save_pretrained(folder, made, jax.jit(made.init)(jax.random.key(0)), tokenizer=tokenizer)
  return folder
