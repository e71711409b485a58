"""Fast-dLLM's samplers (arXiv 2505.22618): keys and values kept within a block, and many tokens committed in a step.

Both kinds of sampler go block by block here. The first step of a block computes the whole sequence; with a cache, the
others compute the block alone (dual) or with what is behind it (prefix), and take the keys and values of all other
tokens from the first step, though these would change with the block. What a step commits is what the exact sampler of
the same kind would (llada: evenly; dream: by its times, which run from 1 to eps in every block), or follows from the
confidence alone (threshold, factor).
"""

import jax
import jax.numpy as jnp
import numpy as np

from gdsd_jax.diffusion import dream, llada, prediction
from gdsd_jax.diffusion.config import Rollout, SamplerConfig
from gdsd_jax.diffusion.early_stop import unless_ended
from gdsd_jax.diffusion.ranking import descending_rank
from gdsd_jax.models.denoiser import Denoiser


def denoise(denoiser: Denoiser, params, prompt, attention_mask, key, config: SamplerConfig) -> Rollout:
  """See `sampling.sample`. prompt: int32[B, P]; attention_mask: bool[B, P+L] or None.

  Raises:
    ValueError: there is no prompt, whose last token would predict the first of a block.
  """
  L, K = config.completion_length, config.block_length
  batch, prompt_length = prompt.shape
  if denoiser.config.shifted_output and prompt_length == 0:
    raise ValueError("prompt: must have a token, by whose output this model predicts the first of the completion")
  mask_id = denoiser.config.mask_token_id
  plan = _plan(config)

  def predict(hidden, key):
    """A token for each position of hidden states [B, K, D], and the confidence in it."""
    if config.kind == "llada":
      return prediction.predict(denoiser.head(params), hidden, key, mask_id, config.temperature)
    return dream.predict(denoiser, params, hidden, key, config)

  def denoise_block(state, block):
    start, block_key = block
    step_keys = jax.random.split(block_key, len(plan))
    within = lambda x: jax.lax.dynamic_slice_in_dim(x, start, K, axis=1)
    put = lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, start, axis=1)
    sequence = lambda state: jnp.concatenate([prompt, state[0]], axis=1)

    def commit(state, step, hidden):
      """The state after a step whose hidden states of the block are [B, K, D]."""
      completion, confidence = state
      token_key, position_key = jax.random.split(step_keys[step])
      tokens, sureness = predict(hidden, token_key)
      chosen = choose(sureness, within(completion) == mask_id, jnp.asarray(plan)[step], position_key, config)
      return (put(completion, jnp.where(chosen, tokens, within(completion))),
              put(confidence, jnp.where(chosen, sureness, within(confidence))))

    def of_block(hidden):
      return jax.lax.dynamic_slice_in_dim(hidden, prompt_length + start, K, axis=1)

    first = 0
    if config.cache == "none":
      hidden_of_block = lambda state: of_block(denoiser.hidden(params, sequence(state), attention_mask))
    else:
      hidden, cache = denoiser.hidden_and_cache(params, sequence(state), attention_mask)
      state, first = commit(state, 0, of_block(hidden)), 1
      width = K if config.cache == "dual" else L - start
      hidden_of_block = lambda state: denoiser.window(
        params, sequence(state), prompt_length + start, width, cache, attention_mask
      )[:, :K]

    def unfinished(loop):
      step, state = loop
      return jnp.any(within(state[0]) == mask_id) if config.is_parallel else step < len(plan)

    def denoising_step(loop):
      step, state = loop
      return step + 1, commit(state, step, hidden_of_block(state))

    _, state = jax.lax.while_loop(unfinished, denoising_step, (jnp.int32(first), state))
    return state, None

  if config.early_stop:
    denoise_block = unless_ended(denoise_block, K, denoiser.config.eos_token_id)
  state = jnp.full((batch, L), mask_id, jnp.int32), jnp.zeros((batch, L), jnp.float32)
  keys = jax.random.split(key, config.num_blocks)
  if config.cache == "prefix":  # what is behind a block has another length for each
    for index in range(config.num_blocks):
      state, _ = denoise_block(state, (index * K, keys[index]))
  else:
    state, _ = jax.lax.scan(denoise_block, state, (jnp.arange(config.num_blocks) * K, keys))
  return Rollout(*state)


def _plan(config: SamplerConfig) -> np.ndarray:
  """What each step of a block commits at least: int[steps] tokens, or, of alg "origin", float[steps] shares."""
  if config.is_parallel:
    return np.ones(config.block_length, np.int32)
  if config.kind == "llada":
    return np.array(llada.commits_per_step(config), np.int32)
  steps = config.steps // config.num_blocks
  if config.alg == "origin":
    return dream.unmask_shares(steps, config.eps)
  return np.array([n for n in dream.commits_per_step(config.block_length, steps, config.eps) if n], np.int32)


def choose(confidence, masked, planned, key, config: SamplerConfig):
  """Positions of a block that a step commits, bool[B, K].

  Args:
    confidence: float32[B, K] in the predictions.
    masked: bool[B, K].
    planned: of the step, see `_plan`.
    key: random key of samplers that choose at random.
    config: of the sampler.
  """
  if config.kind == "dream" and not config.is_parallel:
    return dream.choose(confidence, masked, planned, key, config)
  priority = confidence
  if config.kind == "llada" and config.remasking == "random":
    priority = jax.random.uniform(key, masked.shape)
  rank = descending_rank(jnp.where(masked, priority, -jnp.inf))  # 0: the surest
  chosen = rank < planned
  if config.threshold is not None:
    chosen |= confidence > config.threshold
  if config.factor is not None:  # the nth surest has rank n - 1; the left side grows with the rank
    chosen |= (rank + 2) * (1 - confidence) < config.factor
  return masked & chosen
