"""The sampler of block-causal models: SDAR's, LLaDA 2.0's and JetEngine's.

A token sees its own block and all earlier ones, so a finished block's keys and values never change: they are computed
once, and a denoising step computes its block alone, exactly.

Blocks are counted from the first real token. The last tokens of a prompt share a block with the first new ones. Each
row is shifted so that these blocks begin in one column, and with them all later blocks; the prompt's whole blocks lie
before it. At the end each completion is cut out of its row. Its last block is sampled whole, and what exceeds the
completion is dropped, as in the authors' code.

In a step, the surest predictions are committed, as many as the steps of the block demand; with a threshold or factor,
all that are sure enough, and no fewer than that. The count starts anew in each block and never exceeds the masks left.
"""

import functools

import jax
import jax.numpy as jnp

from gdsd_jax.checks import require
from gdsd_jax.diffusion import prediction
from gdsd_jax.diffusion.commits import choose, commit_plan
from gdsd_jax.diffusion.config import Rollout, SamplerConfig
from gdsd_jax.diffusion.trajectory import remembered
from gdsd_jax.diffusion.watching import step_or_end, Watcher
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.models.transformer import KeysAndValues

_FEWEST = 8  # positions whose logits are computed together at least


def sample(denoiser: Denoiser, params, prompt, prompt_mask, key, config: SamplerConfig, record: frozenset[str],
           watcher: Watcher | None) -> Rollout:
  """As `blockwise.sample`, of cast params. Step numbers of a block begin at a multiple of `config.block_steps`."""
  model, (batch, prompt_length), width = denoiser.config, prompt.shape, config.block_length
  config.require_same_attention(model)
  require("predictions" not in record, "sampler.kind", "'block' predicts one block at a time, so predictions of the"
          " whole completion cannot be remembered")
  real = jnp.ones(prompt.shape, bool) if prompt_mask is None else prompt_mask.astype(bool)
  partial = jnp.sum(real, axis=1) % width  # the prompt's tokens in the first block that is denoised
  canvas = _Canvas(denoiser, params, config, record, watcher, prompt_length, partial)
  rows = lambda fill, dtype, *more: jnp.full((batch, canvas.length, *more), fill, dtype)
  numbers = lambda: rows(0, jnp.float32)
  rollout = Rollout(rows(model.mask_token_id, jnp.int32), numbers(), rows(config.most_steps, jnp.int32),
                    numbers(), numbers()).only({"steps", *record})
  aligned, mask = canvas.align(prompt.astype(jnp.int32), real, rollout.tokens)
  rollout = rollout.replace(tokens=aligned[:, prompt_length:])
  context = aligned[:, :prompt_length], mask
  cache = canvas.prefill(*context) if config.cache == "exact" else None
  numbered = jnp.arange(config.num_blocks + 1, dtype=jnp.int32), jax.random.split(key, config.num_blocks + 1)
  (rollout, _), _ = jax.lax.scan(
    lambda carry, block: (canvas.denoise_block(*carry, context, *block), None), (rollout, cache), numbered)
  return canvas.completions(rollout)


class _Canvas:
  """Rollouts whose blocks begin in the same columns: the partial block first, then as many as a completion has."""

  def __init__(self, denoiser, params, config, record, watcher, prompt_length: int, partial):
    self.denoiser, self.params, self.config, self.record, self.watcher = denoiser, params, config, record, watcher
    self.prompt_length, self.partial = prompt_length, partial
    self.length = config.completion_length + config.block_length
    self.columns = jnp.arange(self.length)[None]
    self.is_new = self.columns >= partial[:, None]  # bool[B, length], no token of the prompt
    self.is_wanted = self.is_new & (self.columns < (partial + config.completion_length)[:, None])

  def align(self, prompt, real, masks):
    """(tokens, mask): prompts and masks, [B, P + length], shifted so that blocks line up, and what is real of them."""
    tokens = jnp.concatenate([prompt, masks], axis=1)
    mask = jnp.concatenate([real, jnp.ones(masks.shape, bool)], axis=1)
    source = jnp.arange(tokens.shape[1])[None] - self.partial[:, None]
    take = lambda x: jnp.take_along_axis(x, jnp.maximum(source, 0), axis=1)
    return take(tokens), take(mask) & (source >= 0)

  def completions(self, rollout: Rollout) -> Rollout:
    """Each row's completion alone, [B, L]."""
    places = self.partial[:, None] + jnp.arange(self.config.completion_length)
    return jax.tree.map(lambda x: jnp.take_along_axis(x, places, axis=1), rollout)

  def prefill(self, prompt, mask) -> KeysAndValues:
    """The cache of the whole sequence, which knows the prompt's whole blocks."""
    count = self.prompt_length
    if count == 0:
      one = jax.eval_shape(self.denoiser.hidden_and_cache, self.params, jnp.zeros((len(mask), 1), jnp.int32))[1]
      return jax.tree.map(lambda x: jnp.zeros((*x.shape[:2], self.length, *x.shape[3:]), x.dtype), one)
    _, cache = self.denoiser.hidden_and_cache(self.params, prompt, mask[:, :count])
    return jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (0, 0), (0, self.length), (0, 0), (0, 0)]), cache)

  def denoise_block(self, rollout: Rollout, cache, context, number, key):
    """(rollout, cache) after a block, which is left out where no row has anything to be sampled in it."""
    width = self.config.block_length
    start = number * width
    of_block = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=width, axis=1)
    rows = jnp.any(of_block(self.is_wanted), axis=1)
    if self.config.early_stop:
      is_end = rollout.tokens == self.denoiser.config.eos_token_id
      rows &= ~jnp.any(is_end & self.is_new, axis=1)

    def denoise(rollout, cache):
      rollout = self._denoise(rollout, cache, context, number, key, rows)
      if cache is not None:
        cache = self.denoiser.extended(self.params, self._sequence(rollout, context), self.prompt_length + start, width,
                                       cache, context[1])
      return rollout, cache

    rollout, cache = jax.lax.cond(jnp.any(rows), denoise, lambda *same: same, rollout, cache)
    if self.config.early_stop:
      rollout = self._filled(rollout, of_block, start, rows)
    return rollout, cache

  def _filled(self, rollout: Rollout, of_block, start, rows) -> Rollout:
    """The rollout with the ends of text of a block that these rows, bool[B], do not sample, at confidence 1."""
    fill = of_block(self.is_new) & ~rows[:, None]
    put = lambda x, value: jax.lax.dynamic_update_slice_in_dim(
      x, jnp.where(fill, jnp.asarray(value, x.dtype), of_block(x)), start, axis=1)
    return rollout.replace(tokens=put(rollout.tokens, self.denoiser.config.eos_token_id),
                           confidence=put(rollout.confidence, 1))

  def _sequence(self, rollout: Rollout, context):
    return jnp.concatenate([context[0], rollout.tokens], axis=1)

  def _denoise(self, rollout: Rollout, cache, context, number, key, rows) -> Rollout:
    """The rollout with a block of these rows, bool[B], denoised."""
    denoiser, config, width = self.denoiser, self.config, self.config.block_length
    plan = jnp.asarray(commit_plan(config))
    keys, start = jax.random.split(key, len(plan)), number * width
    of_block = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=width, axis=1)
    can_change = of_block(self.is_new) & rows[:, None]
    masked = lambda rollout: can_change & (of_block(rollout.tokens) == denoiser.config.mask_token_id)

    def hidden(rollout):
      arguments, first = (self.params, self._sequence(rollout, context)), self.prompt_length + start
      if cache is not None:
        return denoiser.window(*arguments, first, width, cache, context[1])
      return jax.lax.dynamic_slice_in_dim(denoiser.hidden(*arguments, context[1]), first, width, axis=1)

    def step(index, rollout):
      new, chosen = self._commits(hidden(rollout), masked(rollout), plan[index], keys[index])
      new = new.replace(steps=jnp.full(chosen.shape, number * config.block_steps + index, jnp.int32))
      new = jax.tree.map(lambda new, whole: jnp.where(chosen, new, of_block(whole)), new, rollout)
      return jax.tree.map(lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, start, axis=1), rollout, new)

    def next_step(loop):
      return step_or_end(self.watcher, denoiser.mesh, number * config.block_steps + loop[0], loop, step, len(plan),
                         self.completions)

    unfinished = lambda loop: jnp.any(masked(loop[1])) & (loop[0] < len(plan))
    return jax.lax.while_loop(unfinished, next_step, (jnp.int32(0), rollout))[1]

  def _commits(self, hidden, masked, planned, key):
    """(Rollout, bool[B, K]): predictions of a block's masked positions, without steps, and which of them to commit.

    Only these positions go through the LM head: as many in each row as the row with the most masks has, rounded up to
    the block's half, quarter, … of at least 8. So it is one of a few programs.
    """
    width, (token_key, position_key) = masked.shape[1], jax.random.split(key)
    first = jnp.argsort(~masked, axis=1, stable=True)
    back = jnp.argsort(first, axis=1)
    in_order = lambda x, places: jnp.take_along_axis(x, places.reshape(*places.shape, *[1] * (x.ndim - 2)), axis=1)

    def predict(count: int, hidden):
      places = first[:, :count]
      states, open_ones = in_order(hidden, places), in_order(masked, places)
      tokens, confidence, *logp = self._predict(states, token_key)
      told = remembered(self.denoiser, self.params, states, None, tokens, self.config, self.record, *logp)
      chosen = choose(confidence, open_ones, planned, position_key, self.config)
      whole = lambda x: in_order(jnp.pad(x, [(0, 0), (0, width - count), *[(0, 0)] * (x.ndim - 2)]), back)
      return jax.tree.map(whole, (Rollout(tokens, confidence, **told), chosen))

    counts = [width]
    while counts[-1] % 2 == 0 and counts[-1] > _FEWEST:
      counts.append(counts[-1] // 2)
    needed = jnp.max(jnp.sum(masked, axis=1))
    branch = sum((needed <= count).astype(jnp.int32) for count in counts[1:])
    return jax.lax.switch(branch, [functools.partial(predict, count) for count in counts], hidden)

  def _predict(self, hidden, key):
    """Tokens, the confidence in them and, at a temperature, the log-probability with which they were drawn.

    The confidence is then that probability, as in the authors' code.
    """
    config, special = self.config, self.denoiser.config
    found = prediction.predict(
      self.denoiser.head(self.params), hidden, key, special.mask_token_id, config.temperature, noise=config.noise,
      penalized=special.end_token_ids, penalty=config.eos_penalty, with_logp=config.temperature > 0)
    return found if config.temperature == 0 else (found[0], jnp.exp(found[2]), found[2])
