"""Hidden states of a part of a sequence are those of all of it, at less than the last layer's cost."""

import dataclasses

from conftest import slow
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_context import made, MODELS, over, REAL, TOKENS

from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.models.lora import LoraConfig
from gdsd_jax.models.quantised import QuantizeConfig
from gdsd_jax.parallel.mesh import make_mesh

WIDTH = 4
EXPERTS = dataclasses.replace(
  MODELS["experts"], block_length=None, experts=dataclasses.replace(MODELS["experts"].experts, dense_layers=1))


@pytest.mark.parametrize("start", [0, 1, 8, (0, 8, 3, 5)], ids=str)
@pytest.mark.parametrize("name, mesh, options", [
  ("llada", None, {"lora": LoraConfig(rank=2)}), ("dream", None, {}), ("experts", None, {}),
  ("llada", None, {"quantize": QuantizeConfig("int8", 4), "lora": LoraConfig(rank=2)}),
  slow("dream", dict(data=2, fsdp=2, tensor=2), {"lora": LoraConfig(rank=2)}), slow("llada", dict(context=2), {}),
  slow("block", None, {}),
], ids=str)
def test_a_window_s_hidden_states_are_those_of_the_whole_sequence(name, mesh, options, start, monkeypatch):
  monkeypatch.setitem(MODELS, "experts", EXPERTS)
  mesh = mesh and make_mesh(**{"data": 1, **mesh}, devices=jax.devices()[:np.prod(list(mesh.values()))])
  denoiser, params = made(name, mesh, **options)
  start, (tokens, real) = jnp.asarray(start), over(mesh, TOKENS, REAL)
  whole = np.asarray(jax.jit(denoiser.hidden)(params, tokens, real))
  window = lambda params, tokens, real, start: denoiser.hidden_of_window(params, tokens, start, WIDTH, real)
  found = jax.jit(window)(params, tokens, real, start)
  rows, places = np.arange(len(TOKENS))[:, None], np.broadcast_to(start, len(TOKENS))[:, None] + np.arange(WIDTH)
  real_ones = REAL[rows, places]
  np.testing.assert_allclose(found[real_ones], whole[rows, places][real_ones], rtol=1e-5, atol=1e-5)


def test_a_window_may_be_all_of_the_sequence():
  denoiser, params = made("dream", None)
  np.testing.assert_allclose(denoiser.hidden_of_window(params, TOKENS, 0, TOKENS.shape[1]),
                             denoiser.hidden(params, TOKENS), rtol=1e-5, atol=1e-5)


def test_the_last_layer_costs_the_window_s_share_and_keys_and_values():
  config = dataclasses.replace(MODELS["llada"], num_layers=1, mlp_size=256, max_positions=512)
  denoiser = Denoiser(config)
  tokens = jax.ShapeDtypeStruct((2, 256), jnp.int32)
  count = lambda compute: jax.jit(compute).lower(denoiser.abstract_params(), tokens).compile().cost_analysis()["flops"]
  whole, part = count(denoiser.hidden), count(lambda params, tokens: denoiser.hidden_of_window(params, tokens, 200, 16))
  keys_and_values = 2 * 512 * 16 * 2 * 8  # of 512 tokens, 16 numbers by 2 projections to 2 heads of 4
  assert part < whole / 12 + keys_and_values * 2
