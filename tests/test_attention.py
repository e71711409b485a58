"""Attention kernels against plain attention, with padding, grouped heads, a mesh, and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gdsd_jax import parallel
from gdsd_jax.models.attention import cudnn_attention, plain_attention, splash_attention

# Where their kernels do not run: the TPU's by an interpreter, and cuDNN's sorting of the keys before XLA's products.
KERNELS = {
  "splash": functools.partial(splash_attention, interpret=True),
  "cudnn": functools.partial(cudnn_attention, implementation="xla"),
}


def random_case(keys=130, queries=130, heads=4, kv_heads=2, width=128, batch=4):
  parts = jax.random.split(jax.random.key(0), 3)
  shapes = (batch, queries, heads, width), (batch, keys, kv_heads, width), (batch, keys, kv_heads, width)
  arrays = [jax.random.normal(part, shape) for part, shape in zip(parts, shapes)]
  padding = jnp.arange(batch)[:, None] * 9  # at the left
  return arrays, jnp.arange(keys)[None] >= padding


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("queries", [130, 256])
def test_kernels_agree_with_plain_attention(kernel, padded, queries):
  arrays, mask = random_case(queries=queries)
  mask = mask if padded else None
  actual, expected = KERNELS[kernel](*arrays, mask), plain_attention(*arrays, mask)
  np.testing.assert_allclose(actual, expected, atol=2e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_of_kernels_agree_with_those_of_plain_attention(kernel):
  arrays, mask = random_case(batch=2)
  # Queries of padding give nothing that counts.
  loss = lambda attend: lambda arrays: jnp.sum(jnp.sin(attend(*arrays, mask)) * mask[:, :, None, None])
  actual, expected = (jax.jit(jax.grad(loss(attend)))(arrays) for attend in (KERNELS[kernel], plain_attention))
  for a, e in zip(actual, expected):
    np.testing.assert_allclose(a, e, atol=5e-5)


def test_the_tpu_kernel_runs_on_each_chip_of_a_mesh():
  arrays, mask = random_case()
  mesh = parallel.make_mesh(2, 2, 2)
  attend = functools.partial(splash_attention, mesh=mesh, interpret=True)
  np.testing.assert_allclose(jax.jit(attend)(*arrays, mask), plain_attention(*arrays, mask), atol=2e-5)
