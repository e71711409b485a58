"""Attention of queries to keys and values: the one place that chooses how it is computed, by where it is computed.

Where a kernel of the accelerator's takes the shapes and the dtype, nothing as large as queries times keys is in memory.
Padding needs no such array either: cuDNN is told how many keys a sequence has, the TPU kernel which tokens are padding.
"""

import functools
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gdsd_jax.models.attention_kernels import cudnn_attention, LANES, Padding, padding, splash_attention
from gdsd_jax.parallel.mesh import constrain, device_of, on_chips

TILE = 256  # queries that are attended from at a time where no kernel takes their blocks


class BlockCausal(NamedTuple):
  """Attention of blocks of tokens: a token sees its own block and all earlier ones.

  Behind a sequence there may be copies of its end, one after the other. A block of a copy sees itself and, of the
  sequence, the blocks before it (copies.py).
  """

  length: int  # tokens of a block
  # Positions of queries int[B, T] and keys int[B, S], by which blocks are counted; None where both are 0, 1, …
  query: jax.Array | None = None
  key: jax.Array | None = None
  start: int = 0  # position of the first token that copies have, a multiple of the length
  width: int | None = None  # tokens of a copy, a multiple of the length; None where there are no copies

  def block_and_copy(self, positions):
    """The block that a token at a position is in, and of which copy it is, 0 for the sequence itself."""
    if self.width is None:
      return positions // self.length, 0 * positions
    copy = (positions >= self.start) * ((positions - self.start) // self.width)
    return (positions - copy * self.width) // self.length, copy

  def sees(self, query, key):
    """Whether tokens at positions int[..., T] see those at int[..., S]: bool[..., T, S]."""
    (of_query, copy), (of_key, other) = self.block_and_copy(query), self.block_and_copy(key)
    of_query, copy, of_key, other = of_query[..., None], copy[..., None], of_key[..., None, :], other[..., None, :]
    return (other == 0) & (of_key < of_query) | (other == copy) & (of_key == of_query)


def attend(query, key, value, mask, mesh: Mesh | None, blocks: BlockCausal | None = None,
           axes: tuple[str, str | None] = ("batch", "tokens")):
  """Softmax attention, scaled by the root of the head's width; the softmax is in float32.

  Args:
    query: [B, T, N, H], rotated.
    key, value: [B, S, K, H], the key rotated; each serves N / K query heads.
    mask: bool[B, S], True at keys that may be attended to, or `padding` of that; None for all.
    mesh: the mesh that the arrays are laid out over, or None.
    blocks: which blocks of the sequence a query attends to; None for all.
    axes: logical axes of B and T, and of B and S of keys and values. Each chip attends from its own tokens to all.

  Returns:
    [B, T, N, H].
  """
  if blocks is None and (kernel := _kernel(query, mesh)) is cudnn_attention:
    return kernel(query, key, value, mask if mask is None or isinstance(mask, Padding) else padding(mask), mesh, axes)
  mask = mask.mask if isinstance(mask, Padding) else mask
  kernel = kernel if blocks is None else _block_kernel(query, mesh, blocks)
  if kernel is not splash_attention:
    key, value = (constrain(x, mesh, axes[0], None, "kv_heads", None) for x in (key, value))
  return kernel(query, key, value, mask, mesh, blocks, axes)


def _block_kernel(query, mesh: Mesh | None, blocks: BlockCausal):
  """The TPU's kernel skips the tiles that no query attends to; cuDNN is told what some queries at a time see."""
  device = device_of(mesh)
  if blocks.query is None and _kernel(query, mesh) is splash_attention:
    return splash_attention
  if device.platform == "cpu" or query.shape[1] <= TILE:
    return plain_attention
  return tiled_cudnn_attention if _kernel(query, mesh) is cudnn_attention else tiled_attention


def _kernel(query, mesh: Mesh | None):
  device = device_of(mesh)
  _, length, _, width = query.shape
  half = query.dtype in (jnp.bfloat16, jnp.float16)
  if device.platform == "gpu" and half and width <= 128 and width % 8 == 0 and _has_flash_attention(device):
    return cudnn_attention
  # A few queries, such as one block's, are cheaper than the tile that they would be padded to.
  if device.platform == "tpu" and half and width % LANES == 0 and length >= LANES:
    return splash_attention
  return plain_attention


def _has_flash_attention(gpu) -> bool:
  """Whether cuDNN has it: on NVIDIA's GPUs from Ampere on. AMD's name their architecture, like gfx942."""
  capability = re.fullmatch(r"(\d+)\.\d+", str(gpu.compute_capability))
  return capability is not None and int(capability[1]) >= 8


def plain_attention(query, key, value, mask, mesh: Mesh | None = None, blocks: BlockCausal | None = None, axes=None):
  """By XLA's own products, with [B, N, T, S] in memory."""
  del axes  # the partitioner goes by how the arrays lie
  mask = None if mask is None else mask[:, None, None, :]
  if blocks is not None:
    positions = (jnp.arange(query.shape[1])[None], jnp.arange(key.shape[1])[None])
    visible = blocks.sees(*(positions if blocks.query is None else (blocks.query, blocks.key)))[:, None]
    mask = visible if mask is None else mask & visible
  if device_of(mesh).platform == "cpu":
    return _by_heads(query, key, value, mask)
  return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="xla")


def _by_heads(query, key, value, mask):
  """As `jax.nn.dot_product_attention`, with the heads first: XLA's CPU backend then copies no array of [T, S].

  The shares of the keys are divided by their sum after the product, of which there is less. `mask` is bool[B, 1, T or
  1, S], or None.
  """
  batch, length, heads, width = query.shape
  query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
  query = query.reshape(batch, key.shape[1], -1, width)  # with all queries that a head of keys serves, [B, K, N/K T, H]
  products = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  scores = products("bkth,bksh->bkts", query, key) / math.sqrt(width)
  if mask is not None:  # What sees nothing, as padding may, sees everything: any number but NaN is as good.
    mask = mask if mask.shape[2] == 1 else jnp.tile(mask, (1, 1, heads // key.shape[1], 1))
    scores += jnp.where(mask, 0, -0.5 * jnp.finfo(jnp.float32).max)
  shares = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
  attended = products("bkts,bksh->bkth", shares.astype(value.dtype), value) / jnp.sum(shares, axis=-1, keepdims=True)
  return jnp.swapaxes(attended.astype(value.dtype).reshape(batch, heads, length, width), 1, 2)


def tiled_attention(query, key, value, mask, mesh: Mesh | None = None, blocks: BlockCausal | None = None,
                    axes: tuple[str, str | None] = ("batch", "tokens"), implementation: str = "xla"):
  """As `plain_attention`, some queries at a time, in the backward pass, too: [B, TILE, S] of a mask in memory.

  XLA's products have [B, N, TILE, S] besides. Where there are copies, queries are shown the keys of the sequence and,
  since a tile has whole blocks, of their own tile. A chip that has a part of the tokens has whole blocks, too.
  """
  of_query, of_key = (jnp.arange(x.shape[1])[None] for x in (query, key))
  if blocks.query is not None:
    of_query, of_key = blocks.query, blocks.key
  of_query, of_key = (jnp.broadcast_to(of, x.shape[:2]) for of, x in ((of_query, query), (of_key, key)))
  mask = jnp.ones(of_key.shape, bool) if mask is None else mask
  whole = key, value, mask, of_key
  own = whole if blocks.width is not None else ()
  if own:
    clean = blocks.start + blocks.width
    whole = tuple(x[:, :clean] for x in whole)
  attend_from = functools.partial(_in_tiles, blocks=blocks, implementation=implementation)
  arrays = query, of_query, whole, own
  if mesh is None or mesh.size == 1:
    return attend_from(*arrays)
  of_keys = axes[0], None, "kv_heads"
  return on_chips(attend_from, mesh, arrays, ((*axes, "heads"), axes, of_keys, (*axes, "kv_heads")))


def _in_tiles(query, of_query, whole, own, blocks: BlockCausal, implementation: str):
  """`tiled_attention` of queries at positions int[B, T].

  `whole` and `own` are (keys, values, mask, positions), of what all may see, and of what only those of a tile see,
  which are as many as the queries.
  """
  batch, length, clean = *query.shape[:2], whole[0].shape[1]
  even = blocks.length * (1 + blocks.length % 2)  # as queries and keys must be for cuDNN's gradient
  tile = max(TILE // even, 1) * even
  rest = -length % tile
  tiles = lambda x: jnp.moveaxis(
    jnp.pad(x, [(0, 0), (0, rest), *[(0, 0)] * (x.ndim - 2)]).reshape(batch, -1, tile, *x.shape[2:]), 1, 0)

  @jax.checkpoint
  def of_tile(part):
    queries, positions, own = part
    keys, values, seen, places = whole
    if own:
      own = *own[:2], own[2] & (own[3] >= clean), own[3]  # those of the sequence are there already
      keys, values, seen, places = (jnp.concatenate(parts, axis=1) for parts in zip(whole, own))
    visible = seen[:, None, None] & blocks.sees(positions, places)[:, None]
    odd = keys.shape[1] % 2
    keys, values = (jnp.pad(x, [(0, 0), (0, odd), (0, 0), (0, 0)]) for x in (keys, values))
    visible = jnp.pad(visible, [(0, 0), (0, 0), (0, 0), (0, odd)])
    return jax.nn.dot_product_attention(queries, keys, values, mask=visible, implementation=implementation)

  attended = jax.lax.map(of_tile, (tiles(query), tiles(of_query), tuple(map(tiles, own))))
  return jnp.moveaxis(attended, 0, 1).reshape(batch, length + rest, *query.shape[2:])[:, :length]


tiled_cudnn_attention = functools.partial(tiled_attention, implementation="cudnn")
