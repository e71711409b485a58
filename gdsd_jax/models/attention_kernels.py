"""Attention by the kernels of accelerators; `attention.attend` chooses among them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from gdsd_jax.models.experts import permuted
from gdsd_jax.parallel.mesh import partition

LANES = 128  # a TPU's kernels take lengths and head widths in multiples of it


class Padding(NamedTuple):
  """Which keys of sequences are real, and how these come first: made once for all layers of a pass, by `padding`."""

  mask: jax.Array  # bool[B, S], True at real keys
  order: jax.Array  # int[B, S], a permutation by which real keys come first
  back: jax.Array  # int[B, S], its inverse
  counts: jax.Array  # int32[B], real keys


def padding(mask) -> Padding:
  """What a kernel asks of a mask bool[B, S]. What no kernel asks for, is not computed in a compiled program."""
  order = jnp.argsort(~mask, axis=1, stable=True)
  return Padding(mask, order, jnp.argsort(order, axis=1), jnp.sum(mask, axis=1, dtype=jnp.int32))


def cudnn_attention(query, key, value, padded: Padding | None, mesh: Mesh | None = None, implementation: str = "cudnn"):
  """By cuDNN's flash attention, which splits itself over a mesh by batch and heads.

  It skips keys beyond a sequence's length, and so padding must come last. The order of keys does not matter to a
  softmax over them, their positions being in their rotation.
  """
  del mesh
  counts = None
  if padded is not None:
    key, value = (jax.vmap(permuted)(x, padded.order, padded.back) for x in (key, value))
    counts = padded.counts
  return jax.nn.dot_product_attention(query, key, value, key_value_seq_lengths=counts, implementation=implementation)


def splash_attention(query, key, value, mask, mesh: Mesh | None = None, blocks=None, interpret: bool = False):
  """By JAX's TPU kernel, on every chip for its own sequences and heads. `interpret` runs it where there is no TPU.

  `blocks` is as in `attention.attend`, counted from the first token of the arrays.
  """
  # Half a second to import, for those who have no TPU.
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
    splash_attention_mask as masks,
  )

  length, width = query.shape[1], query.shape[3]
  if mask is None:
    mask = jnp.ones(key.shape[:2], bool)
  padded = lambda x: jnp.pad(x, [(0, 0), (0, -x.shape[1] % LANES), *[(0, 0)] * (x.ndim - 2)])
  query, key, value, mask = padded(query * width**-0.5), padded(key), padded(value), padded(mask)

  def on_a_chip(query, key, value, mask):
    queries, keys, heads = query.shape[1], key.shape[1], query.shape[2]
    q, kv = _block(queries), _block(keys)
    sizes = splash.BlockSizes(block_q=q, block_kv=kv, block_q_dkv=q, block_kv_dkv=kv, block_q_dq=q, block_kv_dq=kv)
    mask_of_head = masks.FullMask((queries, keys)) if blocks is None else _block_mask(queries, keys, blocks)
    kernel = splash.make_splash_mha(
      masks.MultiHeadMask([mask_of_head] * heads), block_sizes=sizes, head_shards=1, q_seq_shards=1,
      interpret=interpret,
    )
    # Queries of padding attend to the real tokens, too: what they give means nothing, but must be finite.
    segments = splash.SegmentIds(jnp.ones(query.shape[:2], jnp.int32), mask.astype(jnp.int32))
    heads_first = lambda x: jnp.swapaxes(x, 1, 2)
    return heads_first(jax.vmap(kernel)(*map(heads_first, (query, key, value)), segments))

  if mesh is not None and mesh.size > 1:
    split = lambda x, *axes: partition(axes, x.shape, mesh)
    query_split, key_split = split(query, "batch", None, "heads", None), split(key, "batch", None, "kv_heads", None)
    in_specs = query_split, key_split, key_split, split(mask, "batch", None)
    on_a_chip = jax.shard_map(on_a_chip, mesh=mesh, in_specs=in_specs, out_specs=query_split, check_vma=False)
  return on_a_chip(query, key, value, mask)[:, :length].astype(query.dtype)


def _block_mask(queries: int, keys: int, blocks):
  """The mask of blocks of tokens, computed tile by tile as the kernel is made, which skips the empty ones."""
  from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask import Mask

  class BlockMask(Mask):
    shape = queries, keys

    def __getitem__(self, index) -> np.ndarray:
      return blocks.sees(*(np.arange(size)[part] for part, size in zip(index, self.shape)))

  return BlockMask()


def _block(length: int) -> int:
  """The largest tile of at most 512 tokens that divides a length."""
  return max(size for size in range(LANES, 512 + 1, LANES) if length % size == 0)
