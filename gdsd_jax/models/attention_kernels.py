"""Attention by the kernels of accelerators; `attention.attend` chooses among them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from gdsd_jax.models.experts import permuted
from gdsd_jax.parallel.mesh import CONTEXT, on_chips, partition, parts_of, split_into

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


def cudnn_attention(query, key, value, padded: Padding | None, mesh: Mesh | None = None, axes=("batch", "tokens"),
                    implementation: str = "cudnn"):
  """By cuDNN's flash attention, which splits itself over a mesh by batch and heads, but not by queries.

  It skips keys beyond a sequence's length, and so padding must come last. The order of keys does not matter to a
  softmax over them, their positions being in their rotation.
  """
  if parts_of(axes[1], query.shape[1], mesh) > 1:
    attend = lambda query, key, value, padded: cudnn_attention(
      query, *_of_all_chips(key, value), padded, implementation=implementation)
    of_keys = *axes, "kv_heads"
    return on_chips(attend, mesh, (query, key, value, padded), ((*axes, "heads"), of_keys, of_keys, axes[:1]))
  counts = None
  if padded is not None:
    key, value = (jax.vmap(permuted)(x, padded.order, padded.back) for x in (key, value))
    counts = padded.counts
  return jax.nn.dot_product_attention(query, key, value, key_value_seq_lengths=counts, implementation=implementation)


def _of_all_chips(*parts):
  """Keys or values [B, S, K, H] of each, from a chip's own; their gradients are scattered as they are summed."""
  return tuple(jax.lax.all_gather(part, CONTEXT, axis=1, tiled=True) for part in parts)


def splash_attention(query, key, value, mask, mesh: Mesh | None = None, blocks=None, axes=("batch", "tokens"),
                     interpret: bool = False):
  """By JAX's TPU kernel, on every chip for its own queries and heads. `interpret` runs it where there is no TPU.

  `blocks` is as in `attention.attend`, counted from the first token of the arrays.
  """
  # Half a second to import, for those who have no TPU.
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

  if mask is None:
    mask = jnp.ones(key.shape[:2], bool)
  chips, heads = parts_of(axes[1], query.shape[1], mesh), query.shape[2] // split_into("heads", mesh)
  each, scale = query.shape[1] // chips, query.shape[3]**-0.5
  kernel = _splash_kernel(each, key.shape[1], heads, chips, blocks, interpret)

  def on_a_chip(query, key, value, mask, kernel):
    if chips > 1:
      key, value = _of_all_chips(key, value)
    padded = lambda x: jnp.pad(x, [(0, 0), (0, -x.shape[1] % LANES), *[(0, 0)] * (x.ndim - 2)])
    query, key, value, mask = padded(query * scale), padded(key), padded(value), padded(mask)
    # Queries of padding attend to the real tokens, too: what they give means nothing, but must be finite.
    segments = splash.SegmentIds(jnp.ones(query.shape[:2], jnp.int32), mask.astype(jnp.int32))
    heads_first = lambda x: jnp.swapaxes(x, 1, 2)
    attended = heads_first(jax.vmap(kernel)(*map(heads_first, (query, key, value)), segments))
    return attended[:, :each].astype(query.dtype)

  if mesh is not None and mesh.size > 1:
    split = lambda x, *axes: partition(axes, x.shape, mesh)
    of_queries, of_keys = split(query, *axes, "heads"), split(key, *axes, "kv_heads")
    # Without blocks, all chips have the same kernel.
    by_queries = PartitionSpec(None, CONTEXT if chips > 1 and blocks is not None else None)
    of_kernel = kernel.manual_sharding_spec(NamedSharding(mesh, by_queries))
    specs = of_queries, of_keys, of_keys, split(mask, axes[0]), of_kernel
    on_a_chip = jax.shard_map(on_a_chip, mesh=mesh, in_specs=specs, out_specs=of_queries, check_vma=False)
  return on_a_chip(query, key, value, mask, kernel)


def _splash_kernel(queries: int, keys: int, heads: int, chips: int, blocks, interpret: bool):
  """The kernel for a chip's queries and heads; where there are blocks, for those of all chips that have a part."""
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
    splash_attention_mask as masks,
  )

  padded, keys = queries + -queries % LANES, keys + -keys % LANES
  q, kv = _block(padded), _block(keys)
  sizes = splash.BlockSizes(block_q=q, block_kv=kv, block_q_dkv=q, block_kv_dkv=kv, block_q_dq=q, block_kv_dq=kv)
  mask = masks.FullMask((padded, keys))
  if blocks is not None:
    mask = _block_mask(queries, padded, chips, keys, blocks)
  shards = mask.shape[0] // padded
  return splash.make_splash_mha(
    masks.MultiHeadMask([mask] * heads), block_sizes=sizes, head_shards=1, q_seq_shards=shards, interpret=interpret)


def _block_mask(queries: int, padded: int, chips: int, keys: int, blocks):
  """The mask of blocks of tokens, computed tile by tile as the kernel is made, which skips the empty ones.

  Each chip's queries are padded by some that see what its last one does.
  """
  from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask import Mask

  class BlockMask(Mask):
    shape = chips * padded, keys

    def __getitem__(self, index) -> np.ndarray:
      rows, columns = (np.arange(size)[part] for part, size in zip(index, self.shape))
      return blocks.sees(rows // padded * queries + np.minimum(rows % padded, queries - 1), columns)

  return BlockMask()


def _block(length: int) -> int:
  """The largest tile of at most 512 tokens that divides a length."""
  return max(size for size in range(LANES, 512 + 1, LANES) if length % size == 0)
