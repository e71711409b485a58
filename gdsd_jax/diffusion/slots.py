"""Rollouts that never wait: completions of many prompts in a few slots, each at its own block and step.

A pass computes one denoising step of every slot. A completion that is done, because all of its blocks are or because
of its end of text, gives its slot to the next prompt, and so no completion waits for another. Over a mesh, the prompts
that lie on a device are worked at there: slots move no prompt, and no cache.

What a completion draws depends on its prompt's place in the batch, its block and its step alone: on no other prompt, on
neither the number of slots nor the mesh. Steps commit what the samplers of `blockwise.py` and `block_causal.py` do.

With a cache of keys and values, each slot has its own. Dual: the first step of a slot's block computes the whole
sequence, one slot after the other (one on each device at a time), so that it costs what it would in a batch. Exact:
so a new prompt is computed; a finished block is computed once more, clean, in place of a denoising step.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gdsd_jax.checks import require
from gdsd_jax.diffusion import block_step, random_keys
from gdsd_jax.diffusion.block_canvas import Canvas, prefilled
from gdsd_jax.diffusion.block_causal import BlockSampler
from gdsd_jax.diffusion.commits import commit_plan
from gdsd_jax.diffusion.config import Rollout, SamplerConfig
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.models.transformer import KeysAndValues
from gdsd_jax.models.windows import window_of, with_chosen
from gdsd_jax.parallel.mesh import constrain, split_into


def batch_axis(sampler: SamplerConfig) -> str:
  """The logical axis that a sampler's batch is split by: with a cache, no sequence is split, and so the batch more."""
  return "batch" if sampler.is_own or sampler.cache == "none" else "batch_over_context"


def sample(denoiser: Denoiser, params, prompt, mask, key, config: SamplerConfig, record: frozenset[str]) -> Rollout:
  """As `blockwise.sample`, of cast params and a mask bool[B, P + L], or None. The rollouts tell their `passes`.

  Raises ValueError where there are more slots than prompts, or where the mesh does not divide either.
  """
  (batch, width), count, model = prompt.shape, config.slots, denoiser.config
  axis = batch_axis(config)
  shards = split_into(axis, denoiser.mesh)
  require(count <= batch, "sampler.slots", f"{count} are more than the {batch} prompts that are sampled together")
  require(count % shards == 0 and batch % shards == 0, "sampler.slots", f"{count} slots of {batch} prompts cannot be"
          f" split over the {shards} devices that share the prompts; give a multiple of {shards}")
  canvas, is_new, blocks = None, jnp.ones((batch, config.completion_length), bool), jnp.full(batch, config.num_blocks)
  if config.kind == "block":
    canvas = Canvas(prompt, None if mask is None else mask[:, :width], config)
    is_new, blocks, mask = canvas.is_new, blocks + (canvas.partial > 0), canvas.attention_mask
  rollout = block_step.all_masked(batch, is_new.shape[1], model.mask_token_id, config, record)
  if canvas is not None:
    prompt, rollout = canvas.begun(rollout)
  prompts = _Prompts(jnp.arange(batch, dtype=jnp.int32), prompt, mask, is_new, blocks.astype(jnp.int32))
  rollout = rollout.replace(passes=jnp.zeros((batch, 2), jnp.int32))
  work = _Work(denoiser, params, key, config, record, prompts, canvas, _Shards(denoiser.mesh, axis))
  rollout = jax.lax.while_loop(work.is_left, work.step, work.begun(rollout)).rollout
  if config.early_stop:  # what no step unmasked is behind an end of text
    left = is_new & (rollout.tokens == model.mask_token_id)
    rollout = rollout.replace(tokens=jnp.where(left, model.eos_token_id, rollout.tokens),
                              confidence=jnp.where(left, 1, rollout.confidence))
  return rollout if canvas is None else canvas.ended(rollout)


class _Prompts(NamedTuple):
  """What stays as it is of B prompts, or of those that slots work at."""

  number: jax.Array  # int32[B], their places in the batch
  tokens: jax.Array  # int32[B, P]
  mask: jax.Array | None  # bool[B, P + T], what is real of the prompt and the T tokens behind it
  is_new: jax.Array  # bool[B, T], which of these are not the prompt's
  blocks: jax.Array  # int32[B], to be denoised


class _State(NamedTuple):
  """Between two passes. Prompts are counted by device, which is a shard: B / shards are on each."""

  rollout: Rollout  # of all B prompts
  prompt: jax.Array  # int32[S], the one that each slot works at; B / shards for none
  block: jax.Array  # int32[S]
  step: jax.Array  # int32[S], in the block
  next_prompt: jax.Array  # int32[shards], the first that no slot has taken; B / shards for none
  number: jax.Array  # int32[], of the next pass
  cache: KeysAndValues | None  # of the slots, [layers, S, P + T, K, H]


class _Shards(NamedTuple):
  """Rows that lie on devices, each of which has equally many of them."""

  mesh: Mesh | None
  axis: str  # the logical one that they are split by

  @property
  def count(self) -> int:
    return split_into(self.axis, self.mesh)

  def take(self, tree, places):
    """Rows [N, ...] of arrays [M, ...], whose places are counted on each device, int32[N]; the last ones beyond."""
    get = jax.vmap(lambda x, places: x.at[places].get(mode="clip"))
    return jax.tree.map(lambda x: self._laid_out(get(self._split(x), self._split(places)), len(places)), tree)

  def put(self, x, places, new):
    """The array [M, ...] with rows [N, ...] in these places, as of `take`; none in those beyond."""
    put = jax.vmap(lambda x, places, new: x.at[places].set(new, mode="drop"))
    return self._laid_out(put(*map(self._split, (x, places, new))), len(x))

  def put_in_layers(self, places, x, new):
    """As `put`, of arrays [layers, M, ...] and [layers, N, ...] that lie as a cache does."""
    put = jax.vmap(jax.vmap(lambda x, places, new: x.at[places].set(new, mode="drop")), (0, None, 0))
    split = jax.vmap(self._split)
    return put(split(x), self._split(places), split(new)).reshape(x.shape)

  def _split(self, x):
    return x.reshape(self.count, -1, *x.shape[1:])

  def _laid_out(self, x, count: int):
    x = x.reshape(count, *x.shape[2:])
    return constrain(x, self.mesh, self.axis, *[None] * (x.ndim - 1))


class _Work:
  """A pass over all slots, and what it is made of."""

  def __init__(self, denoiser, params, key, config, record, prompts: _Prompts, canvas, shards: _Shards):
    self.denoiser, self.params, self.key, self.config, self.record = denoiser, params, key, config, record
    self.prompts, self.shards = prompts, shards
    self.of_blocks = None  # of a block-causal model
    if canvas is not None:
      self.of_blocks = BlockSampler(denoiser, params, config, record, None, canvas, prompts.tokens)
    self.count = len(prompts.number) // shards.count  # prompts of a device
    self.width = config.block_width
    self.front = prompts.tokens.shape[1]
    self.plan = jnp.asarray(commit_plan(config))

  def begun(self, rollout: Rollout) -> _State:
    slots, shards = self.config.slots, self.shards.count
    zeros, each, cache = jnp.zeros(slots, jnp.int32), slots // shards, None
    if self.config.cache != "none":
      sequences = jnp.zeros((slots, self.front + rollout.tokens.shape[1]), jnp.int32)
      shapes = jax.eval_shape(self.denoiser.hidden_and_cache, self.params, sequences)[1]
      cache = self.denoiser.laid_out(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))
    first = jnp.tile(jnp.arange(each, dtype=jnp.int32), shards)
    return _State(rollout, first, zeros, zeros, jnp.full(shards, each, jnp.int32), jnp.int32(0), cache)

  def is_left(self, state: _State):
    # As if each prompt took all steps that it may and, where the cache is exact, a clean pass behind each block: those
    # that take fewer leave their slots no later. A plan counts as many.
    clean = self.config.num_blocks + 1 if self.config.cache == "exact" else 0
    most = math.ceil(self.count * self.shards.count / self.config.slots) * (self.config.most_steps + clean)
    return jnp.any(state.prompt < self.count) & (state.number < most)

  def step(self, state: _State) -> _State:
    """The state after one pass: a denoising step of each slot, and what becomes of the slots then."""
    config, special = self.config, self.denoiser.config
    of_slots, rollout = self.shards.take((self.prompts, state.rollout), state.prompt)
    active, start = state.prompt < self.count, state.block * self.width
    of_block = lambda x: window_of(x, start, self.width)
    masked = active[:, None] & of_block(of_slots.is_new) & (of_block(rollout.tokens) == special.mask_token_id)
    hidden, unconditional, cache = self._hidden(state, of_slots, rollout.tokens, start, active)
    number = state.block * config.block_steps + state.step
    new, chosen = self._commits(
      hidden, unconditional, of_block(rollout.tokens), masked, state.step, of_slots.number, number)
    new = new.replace(steps=jnp.broadcast_to(number[:, None], chosen.shape))
    first, rollout = rollout.passes[:, 0], rollout.replace(passes=None)
    rollout = with_chosen(rollout, new, chosen, start)
    first = jnp.where((state.block == 0) & (state.step == 0), state.number, first)
    ended = config.early_stop & jnp.any(of_slots.is_new & (rollout.tokens == special.eos_token_id), axis=1)
    rollout = rollout.replace(passes=jnp.stack([first, jnp.full_like(first, state.number + 1)], axis=1))

    clean = ~jnp.any(masked & ~chosen, axis=1)
    done = active & clean & (ended | (state.block + 1 >= of_slots.blocks))
    finished = ~jnp.any(masked, axis=1) if config.cache == "exact" else clean  # where the cache has the clean block
    prompt, next_prompt = self._refilled(state, done)
    return _State(
      jax.tree.map(lambda whole, new: self.shards.put(whole, state.prompt, new), state.rollout, rollout),
      prompt, jnp.where(done, 0, state.block + finished), jnp.where(done | finished, 0, state.step + 1), next_prompt,
      state.number + 1, cache)

  def _refilled(self, state: _State, done):
    """(prompt, next_prompt) of the next pass: slots that are done, bool[S], take the next prompts on their device."""
    of_devices = done.reshape(self.shards.count, -1)
    taken = state.next_prompt[:, None] + jnp.cumsum(of_devices, axis=1, dtype=jnp.int32) - 1
    prompt = jnp.where(done, jnp.minimum(taken, self.count).reshape(-1), state.prompt)
    return prompt, jnp.minimum(state.next_prompt + jnp.sum(of_devices, axis=1, dtype=jnp.int32), self.count)

  def _commits(self, hidden, unconditional, now, masked, step, prompt, number):
    """As `block_step.commits`, by the random numbers of the prompts' steps."""
    planned = self.plan[jnp.minimum(step, len(self.plan) - 1)][:, None]
    key = random_keys.of_rows(self.key, prompt, number)
    if self.of_blocks is not None:
      return self.of_blocks.commits(hidden, now, masked, planned, key)
    places = jnp.broadcast_to(jnp.arange(self.width), masked.shape)
    keys = [random_keys.at_places(of_rows, places) for of_rows in random_keys.split(key)]
    return block_step.commits(
      self.denoiser, self.params, hidden, unconditional, masked, planned, keys, self.config, self.record)

  def _hidden(self, state: _State, prompts: _Prompts, tokens, start, active):
    """(hidden, unconditional, cache): hidden states of the slots' blocks, [S, K, D], those for guidance or None."""
    config, first = self.config, self.front + start
    sequences = jnp.concatenate([prompts.tokens, tokens], axis=1)
    if config.cache == "none":
      of_block = lambda tokens: self.denoiser.hidden_of_window(self.params, tokens, first, self.width, prompts.mask)
      without = sequences.at[:, :self.front].set(self.denoiser.config.mask_token_id)
      return of_block(sequences), of_block(without) if config.cfg_scale > 0 else None, None
    if config.cache == "exact":
      entering = active & (state.block == 0) & (state.step == 0)
      _, cache = self._entered(entering, prompts.mask, sequences, first, state.cache)
      hidden, cache = self.denoiser.window_and_cache(
        self.params, sequences, first, self.width, cache, prompts.mask)
      return hidden, None, cache
    entering = active & (state.step == 0)
    fresh, cache = self._entered(entering, prompts.mask, sequences, first, state.cache)
    hidden = self.denoiser.window(self.params, sequences, first, self.width, cache, prompts.mask)
    return jnp.where(entering[:, None, None], fresh, hidden), None, cache

  def _entered(self, entering, mask, sequences, first, cache: KeysAndValues):
    """(hidden, cache) with slots that are `entering`, bool[S], computed whole, one after the other on each device."""

    def enter(loop):
      waits, hidden, cache = loop
      of_devices = waits.reshape(self.shards.count, -1)
      slot = jnp.where(jnp.any(of_devices, axis=1), jnp.argmax(of_devices, axis=1), of_devices.shape[1])
      one, visible, start = self.shards.take((sequences, mask, first), slot)
      if self.of_blocks is not None:
        entered, block = prefilled(self.denoiser, self.params, one, visible, self.front), hidden
      else:
        states, entered = self.denoiser.hidden_and_cache(self.params, one, visible)
        block = self.shards.put(hidden, slot, window_of(states, start, self.width))
      put = functools.partial(self.shards.put_in_layers, slot)
      cache = self.denoiser.laid_out(jax.tree.map(put, cache, entered))
      return self.shards.put(waits, slot, jnp.zeros(slot.shape, bool)), block, cache

    none = jnp.zeros((len(entering), self.width, self.denoiser.config.hidden_size), self.denoiser.dtype)
    return jax.lax.while_loop(lambda loop: jnp.any(loop[0]), enter, (entering, none, cache))[1:]
