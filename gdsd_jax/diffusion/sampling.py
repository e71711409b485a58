"""Sampling: from prompts of real tokens and completions of masks to rollouts, as one compiled function."""

import functools

import jax
import jax.numpy as jnp

from gdsd_jax.diffusion import dream, fast_dllm, llada
from gdsd_jax.diffusion.config import Rollout, SamplerConfig
from gdsd_jax.models.denoiser import Denoiser


@functools.partial(jax.jit, static_argnames=("denoiser", "config"))
def sample(denoiser: Denoiser, params, prompt, prompt_mask, key, config: SamplerConfig) -> Rollout:
  """Samples one completion for each prompt. Compiled once per shape, denoiser and config.

  Args:
    denoiser, params: as `load_pretrained` returns them.
    prompt: int[B, P], left-padded.
    prompt_mask: bool[B, P], False at padding; None when no prompt is padded.
    key: random key; ignored where the config leaves nothing to chance.
    config: kind of sampler, lengths, steps, temperature.

  Returns:
    Rollout of int32[B, L] tokens and float32[B, L] confidence.

  Raises:
    ValueError: prompt and completion exceed the model's positions, or prompt_mask has another shape than prompt.
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
  params = denoiser.cast(params)  # once, not at each of the steps
  exact = {"llada": llada.denoise, "dream": dream.denoise}[config.kind]
  denoise = fast_dllm.denoise if config.is_fast else exact
  return denoise(denoiser, params, prompt.astype(jnp.int32), attention_mask, key, config)
