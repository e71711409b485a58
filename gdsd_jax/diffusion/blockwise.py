"""The block-wise sampler: LLaDA's, Dream's, and Fast-dLLM's variants of both.

A completion begins as masks and is denoised block by block, from left to right. Each step predicts all masked tokens of
the block and commits some of the predictions. Nothing returns to the host before the completion is whole.

LLaDA (arXiv 2502.09992, section 2.4 and its appendix) commits equally many tokens in every step, the surest first.

Dream (arXiv 2508.15487) has one block, the whole completion, unless it is asked for more. Time runs from 1 to eps in
even steps, in every block where there are several. From time t to s, a step commits the share 1 − s/t of the tokens of
the block that are still masked.

Fast-dLLM (arXiv 2505.22618) goes block by block with both. With a cache, only the first step of a block computes the
whole sequence. The other steps compute the block alone (dual), or the block and what is behind it (prefix). They take
the keys and values of all other tokens from the first step, although these would change with the block. With a
threshold or a factor, the confidence decides how many tokens a step commits.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp

from gdsd_jax.checks import require
from gdsd_jax.diffusion import block_causal, own, slots
from gdsd_jax.diffusion.block_step import all_masked, commits, predict
from gdsd_jax.diffusion.commits import commit_plan
from gdsd_jax.diffusion.config import Rollout, SamplerConfig
from gdsd_jax.diffusion.trajectory import by_probability, with_step
from gdsd_jax.diffusion.watching import if_wanted, step_or_end, unwatchable, Watcher
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.models.windows import window_of, with_chosen, with_window
from gdsd_jax.parallel.mesh import constrain


@functools.partial(jax.jit, static_argnames=("denoiser", "config", "record", "watcher"))
def sample(denoiser: Denoiser, params, prompt, prompt_mask, key, config: SamplerConfig,
           record: frozenset[str] = frozenset(), watcher: Watcher | None = None) -> Rollout:
  """Samples one completion for each prompt. Compiled once per shape, denoiser and config.

  Args:
    denoiser, params: the model, as `load_pretrained` returns it.
    prompt: int[B, P], left-padded.
    prompt_mask: bool[B, P], False at padding; None when no prompt is padded.
    key: random key; ignored where the config leaves nothing to chance.
    config: the sampler, whose kind may be one's own (docs/own.md).
    record: what the rollout remembers beside its steps: "logp" costs next to nothing; "entropy" a second pass of the LM
      head; "kept", for dream with top_k, a third; "predictions" cost one of the whole completion.
    watcher: sees the completions before each step, and may end them there (`diffusion/watching.py`); each object
      compiles anew. None: the program is without it.

  Returns:
    The rollout, see `Rollout`.

  Raises:
    ValueError: prompt and completion exceed the model's positions, or prompt_mask has another shape than prompt. Or
      there is no prompt, although a sampler of Fast-dLLM needs the output at the token before the completion. Or the
      steps of the sampler do not predict all masked tokens, and predictions are to be remembered. Or a watcher is
      given where none can be.
  """
  rollout = _sampled(denoiser, params, prompt, prompt_mask, key, config, record, watcher)
  return jax.tree.map(lambda x: constrain(x, denoiser.mesh, "batch", *[None] * (x.ndim - 1)), rollout)


def _sampled(denoiser: Denoiser, params, prompt, prompt_mask, key, config: SamplerConfig, record, watcher) -> Rollout:
  """As `sample`."""
  (batch, prompt_length), length, limit = prompt.shape, config.completion_length, denoiser.config.max_positions
  if prompt_length + length > limit:
    raise ValueError(f"prompt ({prompt_length}) and completion ({length}) exceed the model's {limit} positions")
  attention_mask = None
  if prompt_mask is not None:
    if prompt_mask.shape != prompt.shape:
      raise ValueError(f"prompt_mask {prompt_mask.shape} must have the shape of the prompt, {prompt.shape}")
    attention_mask = jnp.concatenate([prompt_mask.astype(bool), jnp.ones((batch, length), bool)], axis=1)
  if watcher is not None and (why := unwatchable(config)):
    raise ValueError(f"watcher: {why}")
  if config.is_own:
    return own.sample(denoiser, denoiser.cast(params), prompt, prompt_mask, key, config)
  config.require_same_attention(denoiser.config)
  if config.kind == "block" and config.slots is None:
    return block_causal.sample(denoiser, denoiser.cast(params), prompt, prompt_mask, key, config, record, watcher)
  require("predictions" not in record or config.predicts_all, "sampler.cache, threshold, factor, early_stop, slots",
          "must be unset where predictions are remembered: with one of them steps do not predict all masked tokens")
  readable = prompt_length > 0 or not (config.is_fast and denoiser.config.shifted_output)
  require(readable, "prompt", "must have a token, by whose output this model predicts the first of the completion")
  params, prompt = denoiser.cast(params), prompt.astype(jnp.int32)  # cast once, not in each of the steps
  if config.slots is not None:
    return slots.sample(denoiser, params, prompt, attention_mask, key, config, record)
  denoise_block = functools.partial(_denoise_block, denoiser, params, prompt, attention_mask, config, record, watcher)
  if watcher is not None and config.cache != "none":  # the first step of a block is then none of its loop's
    denoise_block = _unless_stopped(denoise_block, watcher, denoiser.mesh, config)
  if config.early_stop:
    denoise_block = _unless_ended(denoise_block, config.block_width, denoiser.config.eos_token_id)
  rollout = all_masked(batch, length, denoiser.config.mask_token_id, config, record)
  keys = jax.random.split(key, config.num_blocks) if config.is_blockwise else key[None]
  if config.cache == "prefix":  # What a step computes has another length in each block.
    for index in range(config.num_blocks):
      rollout = denoise_block(rollout, index * config.block_width, keys[index])
    return rollout
  blocks = jnp.arange(config.num_blocks, dtype=jnp.int32) * config.block_width, keys
  rollout, _ = jax.lax.scan(lambda rollout, block: (denoise_block(rollout, *block), None), rollout, blocks)
  return rollout


def _unless_stopped(denoise_block: Callable, watcher: Watcher, mesh, config: SamplerConfig) -> Callable:
  """`denoise_block`, but a block stays as it is where the watcher does not want its first step."""

  def denoise_or_leave(rollout, start, key):
    step = start // config.block_width * config.block_steps
    return if_wanted(watcher, mesh, step, rollout, lambda rollout: denoise_block(rollout, start, key))[1]

  return denoise_or_leave


def _unless_ended(denoise_block: Callable, block_length: int, eos_token_id: int) -> Callable:
  """`denoise_block`, but once every completion has an end of text, a block is filled with it, at confidence 1."""

  def denoise_or_fill(rollout, start, key):

    def fill(rollout):
      put = lambda x, value: with_window(x, jnp.full((len(x), block_length), value, x.dtype), start)
      return rollout.replace(tokens=put(rollout.tokens, eos_token_id), confidence=put(rollout.confidence, 1))

    ended = jnp.all(jnp.any(rollout.tokens == eos_token_id, axis=1))
    # `start` is closed over, because it may have to stay a plain number.
    return jax.lax.cond(ended, fill, lambda rollout: denoise_block(rollout, start, key), rollout)

  return denoise_or_fill


def _denoise_block(
  denoiser: Denoiser, params, prompt, attention_mask, config: SamplerConfig, record, watcher, rollout, start, key
):
  """The rollout with the block that begins at `start` of the completion denoised."""
  mask_id, prompt_length = denoiser.config.mask_token_id, prompt.shape[1]
  block_length = config.block_width
  plan = jnp.asarray(commit_plan(config))
  keys = jax.random.split(key, len(plan))
  of_block = lambda x, before=0: window_of(x, before + start, block_length)
  sequence = lambda prompt, rollout: jnp.concatenate([prompt, rollout.tokens], axis=1)
  masked = lambda rollout: of_block(rollout.tokens) == mask_id
  number_of = lambda index: start // block_length * config.block_steps + index

  def full_pass(prompt, rollout):
    """Hidden states of the block, and of the whole completion where these are asked for."""
    tokens = sequence(prompt, rollout)
    if "predictions" not in record:
      return denoiser.hidden_of_window(params, tokens, prompt_length + start, block_length, attention_mask), None
    of_all = denoiser.hidden(params, tokens, attention_mask)[:, prompt_length:]
    return of_block(of_all), of_all

  def commit(index, rollout, hidden, unconditional=None, of_all=None):
    """The rollout after a step, given its hidden states of the block, [B, K, D]: only these go through the LM head.

    Unless it remembers its predictions, which are made of those of the whole completion, [B, L, D].
    """
    step, of_draws = number_of(index), jax.random.split(keys[index])
    predicted, chosen = commits(
      denoiser, params, hidden, unconditional, masked(rollout), plan[index], of_draws, config, record)
    predictions, rollout = rollout.predictions, rollout.replace(predictions=None)
    if predictions is not None:
      probable = functools.partial(predict, denoiser, params, config=by_probability(config))
      found = predicted.tokens, probable(hidden, unconditional, of_draws[0], given=predicted.tokens)[1]
      if config.num_blocks > 1:
        elsewhere = probable(*of_all, jax.random.fold_in(of_draws[0], 1))
        found = with_window(elsewhere, found, start)
      predictions = with_step(predictions, step, *found, rollout.tokens, mask_id)
    predicted = predicted.replace(steps=jnp.full(chosen.shape, step, jnp.int32))
    return with_chosen(rollout, predicted, chosen, start).replace(predictions=predictions)

  first = 0
  if config.cache == "none":

    def step(index, rollout):
      without_prompt = full_pass(jnp.full_like(prompt, mask_id), rollout) if config.cfg_scale > 0 else (None, None)
      hidden, of_all = zip(full_pass(prompt, rollout), without_prompt)
      return commit(index, rollout, *hidden, of_all)

  else:
    hidden, cache = denoiser.hidden_and_cache(params, sequence(prompt, rollout), attention_mask)
    rollout, first = commit(0, rollout, of_block(hidden, prompt_length)), 1
    window = prompt_length + start, block_length if config.cache == "dual" else config.completion_length - start

    def step(index, rollout):
      hidden = denoiser.window(params, sequence(prompt, rollout), *window, cache, attention_mask)
      return commit(index, rollout, hidden[:, :block_length])

  def next_step(index, rollout):
    return step_or_end(watcher, denoiser.mesh, number_of(index), (index, rollout), step, len(plan))

  if not config.is_parallel:
    return jax.lax.fori_loop(first, len(plan), lambda *loop: next_step(*loop)[1], rollout)
  unfinished = lambda loop: jnp.any(masked(loop[1])) & (loop[0] < len(plan))
  _, rollout = jax.lax.while_loop(unfinished, lambda loop: next_step(*loop), (first, rollout))
  return rollout
