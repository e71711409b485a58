"""A sampler of one's own: each step commits the surest of the first `window` masked tokens, so 1 is left to right.

  gdsd-train --config=gdsd_math:tiny --config.sampler.kind=examples/own_sampler.py:sliding_window \
    --config.sampler.window=2 --config.masks.kind=uniform
"""

import jax
import jax.numpy as jnp

import gdsd_jax
from gdsd_jax.diffusion.prediction import predict


def sliding_window(denoiser, params, prompt, prompt_mask, key, config, *, window: int = 4):
  (batch, prompt_length), length = prompt.shape, config.completion_length
  if config.steps != length:
    raise ValueError(f"sampler.steps: must be completion_length, {length}: a step commits one token")
  attention_mask = jnp.concatenate([prompt_mask, jnp.ones((batch, length), bool)], axis=1)
  mask_id = denoiser.config.mask_token_id

  def step(index, rollout):
    sequence = jnp.concatenate([prompt, rollout.tokens], axis=1)
    hidden = denoiser.hidden(params, sequence, attention_mask)[:, prompt_length:]
    # A token for each position and its probability; greedy at temperature 0, as evaluations ask for.
    step_key = jax.random.fold_in(key, index)
    tokens, confidence = predict(denoiser.head(params), hidden, step_key, mask_id, config.temperature)
    masked = rollout.tokens == mask_id
    near = masked & (jnp.cumsum(masked, axis=1) <= window)
    chosen = jnp.arange(length) == jnp.argmax(jnp.where(near, confidence, -1.0), axis=1)[:, None]
    return gdsd_jax.Rollout(
      jnp.where(chosen, tokens, rollout.tokens), jnp.where(chosen, confidence, rollout.confidence)
    )

  masks = gdsd_jax.Rollout(jnp.full((batch, length), mask_id, jnp.int32), jnp.zeros((batch, length), jnp.float32))
  return jax.lax.fori_loop(0, length, step, masks)
