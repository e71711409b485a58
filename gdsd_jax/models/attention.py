"""Attention of queries to keys and values: the one place that chooses how it is computed, by where it is computed.

Where a kernel of the accelerator's takes the shapes and the dtype, nothing as large as queries times keys is in memory.
Padding needs no such array either: cuDNN is told how many keys a sequence has, the TPU kernel which tokens are padding.
"""

import re

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gdsd_jax.models.attention_kernels import cudnn_attention, LANES, splash_attention


def attend(query, key, value, mask, mesh: Mesh | None):
  """Softmax attention, bidirectional, scaled by the root of the head's width; the softmax is in float32.

  Args:
    query: [B, T, N, H], rotated.
    key, value: [B, S, K, H], the key rotated; each serves N / K query heads.
    mask: bool[B, S], True at keys that may be attended to; None for all.
    mesh: the mesh that the arrays are laid out over, or None.

  Returns:
    [B, T, N, H].
  """
  return _kernel(query, mesh)(query, key, value, mask, mesh)


def _kernel(query, mesh: Mesh | None):
  device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
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


def plain_attention(query, key, value, mask, mesh: Mesh | None = None):
  """By XLA's own products, with [B, N, T, S] in memory."""
  del mesh
  mask = None if mask is None else mask[:, None, None, :]
  return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="xla")
