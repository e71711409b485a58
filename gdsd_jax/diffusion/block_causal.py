"""The sampler of block-causal models: SDAR's, LLaDA 2.0's and JetEngine's.

A token sees its own block and all earlier ones, so a finished block's keys and values never change: they are computed
once, and a denoising step computes its block alone, exactly.

Blocks are counted from the first real token. The last tokens of a prompt share a block with the first new ones. Each
row is shifted so that these blocks begin in one column, and with them all later blocks; the prompt's whole blocks lie
before it. At the end each completion is cut out of its row. Its last block is sampled whole, and what exceeds the
completion is dropped, as in the authors' code.

In a step, the surest predictions are committed, as many as the steps of the block demand; with a threshold or factor,
all that are sure enough, and no fewer than that. The count starts anew in each block and never exceeds the masks left.

LLaDA 2.1's editing replaces set tokens, too, where another one is predicted surely enough. After its last mask a row's
block goes on until a step changes nothing in it, or it has had the most such steps.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gdsd_jax.checks import require
from gdsd_jax.diffusion import dream, prediction, random_keys
from gdsd_jax.diffusion.block_canvas import Canvas
from gdsd_jax.diffusion.block_step import all_masked
from gdsd_jax.diffusion.commits import choose, commit_plan
from gdsd_jax.diffusion.config import Rollout, SamplerConfig
from gdsd_jax.diffusion.open_places import at_open_places
from gdsd_jax.diffusion.trajectory import remembered
from gdsd_jax.diffusion.watching import step_or_end, Watcher
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.models.windows import window_of, with_chosen


def sample(denoiser: Denoiser, params, prompt, prompt_mask, key, config: SamplerConfig, record: frozenset[str],
           watcher: Watcher | None) -> Rollout:
  """As `blockwise.sample`, of cast params. Step numbers of a block begin at a multiple of `config.block_steps`."""
  config.require_same_attention(denoiser.config)
  require("predictions" not in record, "sampler.kind", "'block' predicts one block at a time, so predictions of the"
          " whole completion cannot be remembered")
  canvas = Canvas(prompt, prompt_mask, config)
  before, rollout = canvas.begun(
    all_masked(canvas.batch, canvas.length, denoiser.config.mask_token_id, config, record))
  sampler = BlockSampler(denoiser, params, config, record, watcher, canvas, before)
  whole = jnp.concatenate([before, rollout.tokens], axis=1)
  cache = canvas.prefilled(denoiser, params, whole, canvas.prompt_length) if config.cache == "exact" else None
  numbered = jnp.arange(config.num_blocks + 1, dtype=jnp.int32), jax.random.split(key, config.num_blocks + 1)
  (rollout, _), _ = jax.lax.scan(
    lambda carry, block: (sampler.denoise_block(*carry, *block), None), (rollout, cache), numbered)
  return canvas.ended(rollout)


class _Progress(NamedTuple):
  """A block at some time of its denoising."""

  rollout: Rollout
  post_steps: jax.Array  # int32[B], steps since a row's last mask, with editing; at their limit it is finished


class BlockSampler:
  """Denoises one block after the other of rollouts [B, length], whose columns are those of a canvas."""

  def __init__(self, denoiser, params, config, record, watcher, canvas: Canvas, before):
    self.denoiser, self.params, self.config, self.record, self.watcher = denoiser, params, config, record, watcher
    self.canvas, self.before, self.attention_mask = canvas, before, canvas.attention_mask

  def denoise_block(self, rollout: Rollout, cache, number, key):
    """(rollout, cache) after a block, which is left out where no row has anything to be sampled in it."""
    canvas, width = self.canvas, self.config.block_length
    start = number * width
    of_block = functools.partial(window_of, start=start, width=width)
    rows = jnp.any(of_block(canvas.is_wanted), axis=1)
    if self.config.early_stop:
      is_end = rollout.tokens == self.denoiser.config.eos_token_id
      rows &= ~jnp.any(is_end & canvas.is_new, axis=1)

    def denoise(rollout, cache):
      rollout = self._denoise(rollout, cache, number, key, rows)
      if cache is not None:
        _, cache = self.denoiser.window_and_cache(
          self.params, self._sequence(rollout), canvas.prompt_length + start, width, cache, self.attention_mask)
      return rollout, cache

    rollout, cache = jax.lax.cond(jnp.any(rows), denoise, lambda *same: same, rollout, cache)
    if self.config.early_stop:
      rollout = self._filled(rollout, of_block, start, rows)
    return rollout, cache

  def _filled(self, rollout: Rollout, of_block, start, rows) -> Rollout:
    """The rollout with the ends of text of a block that these rows, bool[B], do not sample, at confidence 1."""
    fill = of_block(self.canvas.is_new) & ~rows[:, None]
    put = lambda x, value: with_chosen(x, value, fill, start)
    return rollout.replace(tokens=put(rollout.tokens, self.denoiser.config.eos_token_id),
                           confidence=put(rollout.confidence, 1))

  def _sequence(self, rollout: Rollout):
    return jnp.concatenate([self.before, rollout.tokens], axis=1)

  def _denoise(self, rollout: Rollout, cache, number, key, rows) -> Rollout:
    """The rollout with a block of these rows, bool[B], denoised."""
    denoiser, config, width = self.denoiser, self.config, self.config.block_length
    plan, most_post = jnp.asarray(commit_plan(config)), config.max_post_steps if config.edits else 0
    keys, start = jax.random.split(key, len(plan)), number * width
    of_block = functools.partial(window_of, start=start, width=width)
    can_change = of_block(self.canvas.is_new) & rows[:, None]

    def masked(progress):
      return can_change & (of_block(progress.rollout.tokens) == denoiser.config.mask_token_id)

    def going(progress):
      return jnp.any(masked(progress), axis=1) | rows & (progress.post_steps < most_post)

    def hidden(rollout):
      arguments, first = (self.params, self._sequence(rollout)), self.canvas.prompt_length + start
      if cache is not None:
        return denoiser.window(*arguments, first, width, cache, self.attention_mask)
      return window_of(denoiser.hidden(*arguments, self.attention_mask), first, width)

    def step(index, progress):
      rollout, post_steps = progress
      may_change = can_change & going(progress)[:, None] if config.edits else masked(progress)
      new, chosen = self.commits(hidden(rollout), of_block(rollout.tokens), may_change, plan[index], keys[index])
      if config.edits:
        after = jnp.where(jnp.any(chosen, axis=1), post_steps + 1, most_post)
        post_steps = jnp.where(jnp.any(masked(progress), axis=1), post_steps, after)
      new = new.replace(steps=jnp.full(chosen.shape, number * config.block_steps + index, jnp.int32))
      return _Progress(with_chosen(rollout, new, chosen, start), post_steps)

    def next_step(loop):
      return step_or_end(self.watcher, denoiser.mesh, number * config.block_steps + loop[0], loop, step, len(plan),
                         lambda progress: self.canvas.completions(progress.rollout))

    unfinished = lambda loop: jnp.any(going(loop[1])) & (loop[0] < len(plan))
    first = _Progress(rollout, jnp.zeros(len(rows), jnp.int32))
    return jax.lax.while_loop(unfinished, next_step, (jnp.int32(0), first))[1].rollout

  def commits(self, hidden, now, may_change, planned, key):
    """(Rollout, bool[B, K]): predictions of a block, without steps, and which of them to commit.

    `now` is the block, int32[B, K], and `may_change` has its masks, and with editing what may be replaced, bool[B, K].
    Only these places go through the LM head, see `at_open_places`. `planned` is as of `choose`; the key is one for all,
    or one for each row, [B].
    """
    token_key, position_key = random_keys.split(key)

    def predict(of_places, places):
      states, before, open_ones = of_places
      is_mask = before == self.denoiser.config.mask_token_id
      tokens, confidence, *logp = self._predict(states, random_keys.at_places(token_key, places))
      told = remembered(self.denoiser, self.params, states, None, tokens, self.config, self.record, *logp)
      of_positions = random_keys.at_places(position_key, places)
      chosen = choose(confidence, open_ones & is_mask, planned, of_positions, self.config)
      if self.config.edits:
        other = (tokens != before) & (confidence > self.config.editing_threshold)
        chosen |= open_ones & ~is_mask & other
      return Rollout(tokens, confidence, **told), chosen

    return at_open_places(predict, may_change, (hidden, now, may_change))

  def _predict(self, hidden, key):
    """Tokens, the confidence in them and, at a temperature, the log-probability with which they were drawn.

    The confidence is then that probability, as in the authors' code; so it is where filters leave some tokens alone.
    """
    config, special, drawn = self.config, self.denoiser.config, self.config.temperature > 0
    if config.is_filtered:
      tokens, _, logp = dream.predict(self.denoiser, self.params, hidden, key, config, with_logp=True)
      return tokens, jnp.exp(logp), *([logp] if drawn else [])
    found = prediction.predict(
      self.denoiser.head(self.params), hidden, key, special.mask_token_id, config.temperature, noise=config.noise,
      penalized=special.end_token_ids, penalty=config.eos_penalty, with_logp=drawn)
    return (found[0], jnp.exp(found[2]), found[2]) if drawn else found
