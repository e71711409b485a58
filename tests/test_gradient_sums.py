"""Gradients that layers add to a sum in place: the sum is that of gradients made apart, in one array's memory."""

import dataclasses
import functools

import chex
from conftest import slow
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdsd_jax
from gdsd_jax.models.config import ExpertsConfig
from gdsd_jax.models.gradient_sums import added, with_sums
from gdsd_jax.models.lora import LoraConfig

LORA = LoraConfig(rank=8, dropout=0.1)
EXPERTS = ExpertsConfig(count=4, per_token=2, size=16, shared_size=16, dense_layers=1)
TOKENS = np.arange(72).reshape(3, 2, 12) % 50


@functools.partial(jax.jit, static_argnames=("denoiser", "in_place"))
def summed(params, tokens, denoiser, in_place: bool):
  """The gradient of what is trained, of samples int[S, B, T] one after the other."""
  trained = {"lora": params["lora"]} if denoiser.lora else params

  def add_sample(total, tokens):
    def hidden_of(trained):
      own = with_sums(trained, total) if in_place else trained
      return denoiser.hidden({**params, **own}, tokens, dropout_key=jax.random.key(1))

    hidden, back = jax.vjp(hidden_of, trained)
    gradient, = back(jnp.cos(hidden))
    return added(total, gradient) if in_place else jax.tree.map(jnp.add, total, gradient), None

  return jax.lax.scan(add_sample, jax.tree.map(jnp.ones_like, trained), tokens)[0]


@pytest.mark.parametrize("lora, remat, experts", [
  (LORA, "full", None), slow(LORA, "none", EXPERTS), slow(None, "products", None), slow(None, "full", EXPERTS),
])
def test_the_sum_is_that_of_gradients_made_apart(tiny_config, lora, remat, experts):
  config = dataclasses.replace(tiny_config, experts=experts)
  denoiser = gdsd_jax.Denoiser(config, lora=lora, remat=remat)
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda spec: jnp.asarray(rng.normal(size=spec.shape) / 8, spec.dtype),
                        denoiser.abstract_params())
  found, expected = (summed(params, TOKENS, denoiser, in_place) for in_place in (True, False))
  chex.assert_trees_all_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("lora", [LORA, slow(None)])
def test_the_gradient_of_a_sample_is_not_in_memory_beside_the_sum(tiny_config, lora):
  denoiser = gdsd_jax.Denoiser(dataclasses.replace(tiny_config, num_layers=16), lora=lora, remat="full")
  params = denoiser.abstract_params()
  temporaries = [summed.lower(params, TOKENS, denoiser, in_place).compile().memory_analysis().temp_size_in_bytes
                 for in_place in (True, False)]
  of_layers = params["lora"] if lora else params["blocks"]
  size = sum(4 * leaf.size for leaf in jax.tree.leaves(of_layers))
  assert temporaries[0] < temporaries[1] - 0.9 * size
