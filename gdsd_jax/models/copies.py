"""Clean sequences and noised copies of their completions side by side: a block-causal model scores them in one pass.

A block of a copy sees itself and the clean blocks before it: what a sampler's step sees. So all blocks of a copy are
computed together, each in a state of its own (BD3-LM, arXiv 2503.09573; SDAR, arXiv 2510.06303).

Each row is shifted so that the block in which its completion begins is at one column, and with it all others: which
columns see which is then the same in every row, as kernels have it. A copy begins with that block, and so repeats the
tokens of the prompt that lie in it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gdsd_jax.models.attention import BlockCausal
from gdsd_jax.models.config import DenoiserConfig


class Copies(NamedTuple):
  """Sequences as the network takes them: clean columns, behind them those of C copies, and some that fill up parts."""

  tokens: jax.Array  # int[B, columns]
  mask: jax.Array  # bool[B, columns], False where nothing attends to
  positions: jax.Array  # int[B, columns], the same in the clean sequence and its copies
  blocks: BlockCausal  # which column sees which
  places: jax.Array  # int[B, L], in each copy, where the completion's tokens are
  count: int  # C

  def of_completions(self, x):
    """[B, C, L, ...], the copies' completions, of something that each column has, x [B, columns, ...]."""
    copies = x[:, self.blocks.start + self.blocks.width:]
    copies = copies[:, :self.count * self.blocks.width].reshape(len(x), self.count, self.blocks.width, *x.shape[2:])
    return jax.vmap(lambda row, places: row[:, places])(copies, self.places)


def side_by_side(tokens, noised, attention_mask, block_length: int, parts: int = 1) -> Copies:
  """Sequences beside noised copies of their completions.

  Args:
    tokens: int[B, P+L], prompts and completions, clean.
    noised: int[B, C, L], C noised copies of the completions.
    attention_mask: bool or int[B, P+L], zero at padding, left of the prompt or at a completion's end; None for none.
    block_length: K of the model; its blocks are counted from the first real token.
    parts: into how many parts of whole blocks the columns can be split; the last are filled up by padding.
  """
  (batch, total), length = tokens.shape, noised.shape[2]
  prompt = total - length
  real = jnp.ones(tokens.shape, bool) if attention_mask is None else attention_mask.astype(bool)
  known = jnp.sum(real[:, :prompt], axis=1, dtype=jnp.int32)[:, None]
  partial = known % block_length  # the prompt's tokens in the completion's first block
  rounded_up = lambda count: -(-count // block_length) * block_length
  start, width = rounded_up(prompt), rounded_up(length + block_length - 1)
  source = jnp.arange(start + width) - (start - prompt) - partial  # of each clean column
  exists, source = (source >= 0) & (source < total), jnp.clip(source, 0, total - 1)
  take = lambda x: jnp.take_along_axis(x, source, axis=1)
  copies = jnp.concatenate([jnp.broadcast_to(tokens[:, None, :prompt], (*noised.shape[:2], prompt)), noised], axis=2)
  copies = jnp.take_along_axis(copies, source[:, None, start:], axis=2).reshape(batch, -1)
  beside = lambda x: jnp.concatenate([x, jnp.tile(x[:, start:], (1, noised.shape[1]))], axis=1)
  positions = jnp.maximum(jnp.arange(start + width) - start + known - partial, 0)
  columns = jnp.concatenate([take(tokens), copies], axis=1), beside(take(real) & exists), beside(positions)
  filled_up = lambda x: jnp.pad(x, [(0, 0), (0, -x.shape[1] % (parts * block_length))])
  return Copies(*map(filled_up, columns), BlockCausal(block_length, start=start, width=width),
                partial + jnp.arange(length), noised.shape[1])


def completion_blocks(config: DenoiserConfig, prompt_lengths, length: int) -> jax.Array | None:
  """The block of each of a completion's L tokens, int32[B, L], counted from the one that it begins in.

  `prompt_lengths` are int[B], without padding. None of a model whose tokens all see each other.
  """
  if config.block_length is None:
    return None
  return (prompt_lengths[:, None] % config.block_length + jnp.arange(length, dtype=jnp.int32)) // config.block_length


def block_bounds(blocks) -> tuple[jax.Array, jax.Array]:
  """(first, end) of each token's block among the completion's L tokens, int32[B, L], by `completion_blocks`."""
  place = lambda side: jax.vmap(lambda row: jnp.searchsorted(row, row, side=side).astype(jnp.int32))(blocks)
  return place("left"), place("right")
