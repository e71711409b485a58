"""Attention kernels against plain attention, with padding, grouped heads, a mesh, and gradients."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gdsd_jax.models import attention
from gdsd_jax.models.attention import plain_attention
from gdsd_jax.models.attention_kernels import cudnn_attention, padding, splash_attention
from gdsd_jax.parallel.mesh import make_mesh

# Where their kernels do not run: the TPU's by an interpreter, and cuDNN's sorting of the keys before XLA's products.
KERNELS = {
  "splash": functools.partial(splash_attention, interpret=True),
  "cudnn": lambda *arguments: of_mask(*arguments, implementation="xla"),
}


def of_mask(query, key, value, mask, **options):
  return cudnn_attention(query, key, value, None if mask is None else padding(mask), **options)


def random_case(keys=130, queries=130, heads=4, kv_heads=2, width=128, batch=4):
  rng = np.random.default_rng(0)
  shapes = (batch, queries, heads, width), (batch, keys, kv_heads, width), (batch, keys, kv_heads, width)
  arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
  padding = np.arange(batch)[:, None] * 9  # at the left
  return arrays, np.arange(keys)[None] >= padding


@pytest.mark.parametrize("masked", [None, "padding", "pairs"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_on_a_cpu_attention_is_the_softmax_in_float64(masked, kv_heads):
  (query, key, value), padding = random_case(keys=12, queries=10, kv_heads=kv_heads, width=8, batch=2)
  pairs = np.random.default_rng(1).random((2, 1, 10, 12)) < 0.5
  mask = {None: None, "padding": padding[:, None, None], "pairs": pairs}[masked]

  def exactly(query, key, value):
    key, value = (jnp.repeat(x, 4 // kv_heads, axis=2) for x in (key, value))
    scores = jnp.einsum("btnh,bsnh->bnts", query, key) / np.sqrt(8)
    shares = jax.nn.softmax(scores if mask is None else jnp.where(mask, scores, -jnp.inf), axis=-1)
    return jnp.einsum("bnts,bsnh->btnh", shares, value)

  both = lambda attend: jax.value_and_grad(lambda arrays: jnp.sum(jnp.sin(attend(*arrays))))
  with jax.enable_x64():
    expected = both(exactly)([x.astype(np.float64) for x in (query, key, value)])
  found = jax.jit(both(functools.partial(attention._by_heads, mask=mask)))([query, key, value])
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), found, expected)


def test_a_query_that_may_see_nothing_has_a_number():
  arrays, _ = random_case(keys=12, queries=10, width=8, batch=2)
  assert np.all(np.isfinite(plain_attention(*arrays, np.zeros((2, 12), bool))))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("queries", [130, 256])
def test_kernels_agree_with_plain_attention(kernel, padded, queries):
  arrays, mask = random_case(queries=queries)
  mask = mask if padded else None
  actual, expected = (jax.jit(attend)(*arrays, mask) for attend in (KERNELS[kernel], plain_attention))
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
  mesh = make_mesh(2, 2, 2)
  attend = functools.partial(splash_attention, mesh=mesh, interpret=True)
  np.testing.assert_allclose(jax.jit(attend)(*arrays, mask), jax.jit(plain_attention)(*arrays, mask), atol=2e-5)


def lowered(platform, attend, gradient=False):
  """StableHLO for a platform that need not be there."""
  shape = lambda heads, tokens=256: jax.ShapeDtypeStruct((2, tokens, heads, 128), jnp.bfloat16)
  mask = jax.ShapeDtypeStruct((2, 256), bool)
  loss = lambda *arguments: jnp.sum(attend(*arguments).astype(jnp.float32))
  function = jax.jit(jax.grad(loss, (0, 1, 2)) if gradient else attend)
  return function.trace(shape(4), shape(2), shape(2), mask).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("gradient", [False, True])
def test_on_a_gpu_cudnn_is_told_of_padding_by_lengths(monkeypatch, gradient):
  cudnn = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
  monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)  # as where there is one
  monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)
  monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda _: False, raising=False)
  text = lowered("cuda", of_mask, gradient)
  assert "fmhaSoftmax" in text and "PADDING" in text
  assert ("fmhaSoftmaxBackward" in text) == gradient
  assert "256x256" not in text  # a mask of every query and key
  assert "scatter" not in text  # keys find their way back by a gather, too


def test_on_a_tpu_attention_is_a_kernel():
  text = lowered("tpu", splash_attention)
  assert "tpu_custom_call" in text and "256x256" not in text


@pytest.mark.parametrize("capability", ["9.0"])
@pytest.mark.parametrize("platform, dtype, width, queries, kernel", [
  ("cpu", "bfloat16", 128, 256, plain_attention),
  ("gpu", "bfloat16", 128, 256, cudnn_attention),
  ("gpu", "bfloat16", 128, 32, cudnn_attention),
  ("gpu", "float32", 128, 256, plain_attention),
  ("gpu", "bfloat16", 12, 256, plain_attention),
  ("tpu", "bfloat16", 128, 256, splash_attention),
  ("tpu", "float32", 128, 256, plain_attention),
  ("tpu", "bfloat16", 64, 256, plain_attention),
  ("tpu", "bfloat16", 128, 32, plain_attention),
])
def test_the_kernel_is_chosen_by_where_it_runs(platform, dtype, width, queries, kernel, capability):
  device = types.SimpleNamespace(platform=platform, compute_capability=capability)
  mesh = types.SimpleNamespace(devices=np.array([device]))
  query = jax.ShapeDtypeStruct((2, queries, 4, width), jnp.dtype(dtype))
  assert attention._kernel(query, mesh) is kernel


@pytest.mark.parametrize("capability", ["7.0", "gfx942"])
def test_gpus_without_flash_attention_in_cudnn_do_without(capability):
  test_the_kernel_is_chosen_by_where_it_runs("gpu", "bfloat16", 128, 256, plain_attention, capability)
