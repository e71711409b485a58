"""Sampling: from prompts to rollouts, as one compiled function."""

import functools

import jax
import jax.numpy as jnp

from gdsd_jax.diffusion import blockwise
from gdsd_jax.diffusion.config import Rollout, SamplerConfig
from gdsd_jax.models.denoiser import Denoiser


@functools.partial(jax.jit, static_argnames=("denoiser", "config"))
def sample(denoiser: Denoiser, params, prompt, prompt_mask, key, config: SamplerConfig) -> Rollout:
  """Samples one completion for each prompt. Compiled once per shape, denoiser and config.

  Args:
    denoiser, params: the model, as `load_pretrained` returns it.
    prompt: int[B, P], left-padded.
    prompt_mask: bool[B, P], False at padding; None when no prompt is padded.
    key: random key; ignored where the config leaves nothing to chance.
    config: the sampler.

  Returns:
    The rollout of int32[B, L] tokens and float32[B, L] confidence.

  Raises:
    ValueError: prompt and completion exceed the model's positions, or prompt_mask has another shape than prompt. Or
      there is no prompt, although a sampler of Fast-dLLM needs the output at the token before the completion.
  """
  batch, prompt_length = prompt.shape
  length = config.completion_length
  if prompt_length + length > denoiser.config.max_positions:
    raise ValueError(
      f"prompt ({prompt_length}) and completion ({length}) exceed the model's {denoiser.config.max_positions} positions"
    )
  attention_mask = None
  if prompt_mask is not None:
    if prompt_mask.shape != prompt.shape:
      raise ValueError(f"prompt_mask {prompt_mask.shape} must have the shape of the prompt, {prompt.shape}")
    attention_mask = jnp.concatenate([prompt_mask.astype(bool), jnp.ones((batch, length), bool)], axis=1)
  if config.is_fast and denoiser.config.shifted_output and prompt_length == 0:
    raise ValueError("prompt: must have a token, by whose output this model predicts the first of the completion")
  params = denoiser.cast(params)  # Once, not in each of the steps.
  return blockwise.denoise(denoiser, params, prompt.astype(jnp.int32), attention_mask, config, key)
