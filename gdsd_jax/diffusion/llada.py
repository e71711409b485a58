"""LLaDA's sampler: block by block from left to right (arXiv 2502.09992, section 2.4 and its appendix).

Each denoising step predicts every masked token of the block and commits the predictions it is most confident in;
nothing returns to the host before the completion is whole.
"""

import functools

import jax
import jax.numpy as jnp

from gdsd_jax.diffusion.config import Rollout, SamplerConfig
from gdsd_jax.diffusion.early_stop import unless_ended
from gdsd_jax.diffusion.prediction import predict
from gdsd_jax.diffusion.ranking import descending_rank
from gdsd_jax.models.denoiser import Denoiser


def commits_per_step(config: SamplerConfig) -> tuple[int, ...]:
  """Tokens that each denoising step of a block commits: evenly, the remainder on the first steps."""
  steps = config.steps // config.num_blocks
  each, remainder = divmod(config.block_length, steps)
  commits = (each + (step < remainder) for step in range(steps))
  return tuple(count for count in commits if count)  # a step that commits nothing changes nothing


def denoise(denoiser: Denoiser, params, prompt, attention_mask, key, config: SamplerConfig) -> Rollout:
  """See `sampling.sample`. prompt: int32[B, P]; attention_mask: bool[B, P+L] or None."""
  L, K = config.completion_length, config.block_length
  batch, prompt_length = prompt.shape
  mask_id = denoiser.config.mask_token_id
  commits = jnp.array(commits_per_step(config))

  def predict_block(completion, start, key):
    """(tokens, probability) of the block, [B, K] each: only its positions go through the LM head."""

    def conditioned_on(prompt):
      hidden = denoiser.hidden(params, jnp.concatenate([prompt, completion], axis=1), attention_mask)
      return jax.lax.dynamic_slice_in_dim(hidden, prompt_length + start, K, axis=1)

    unconditional = conditioned_on(jnp.full_like(prompt, mask_id)) if config.cfg_scale > 0 else None
    return predict(
      denoiser.head(params), conditioned_on(prompt), key, mask_id, config.temperature, unconditional, config.cfg_scale
    )

  def denoising_step(carry, step):
    completion, confidence, start = carry
    commit, step_key = step
    gumbel_key, remasking_key = jax.random.split(step_key)
    tokens, probability = predict_block(completion, start, gumbel_key)
    block = jax.lax.dynamic_slice_in_dim(completion, start, K, axis=1)
    priority = probability if config.remasking == "low_confidence" else jax.random.uniform(remasking_key, block.shape)
    masked = block == mask_id
    chosen = masked & (descending_rank(jnp.where(masked, priority, -jnp.inf)) < commit)
    block_confidence = jax.lax.dynamic_slice_in_dim(confidence, start, K, axis=1)
    update = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=1)
    completion = update(completion, jnp.where(chosen, tokens, block))
    confidence = update(confidence, jnp.where(chosen, probability, block_confidence))
    return (completion, confidence, start), None

  def denoise_block(carry, block):
    start, block_key = block
    keys = jax.random.split(block_key, len(commits))
    (completion, confidence, _), _ = jax.lax.scan(denoising_step, (*carry, start), (commits, keys))
    return (completion, confidence), None

  blank = jnp.full((batch, L), mask_id, jnp.int32), jnp.zeros((batch, L), jnp.float32)
  blocks = jnp.arange(config.num_blocks) * K, jax.random.split(key, config.num_blocks)
  if config.early_stop:
    denoise_block = unless_ended(denoise_block, K, denoiser.config.eos_token_id)
  (tokens, confidence), _ = jax.lax.scan(denoise_block, blank, blocks)
  return Rollout(tokens, confidence)
