"""Only places that a step may commit go through the LM head: nothing that a rollout tells changes by that."""

import dataclasses
import functools

from conftest import slow
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gdsd_jax.diffusion import block_step
from gdsd_jax.diffusion.blockwise import sample
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.diffusion.open_places import at_open_places
from gdsd_jax.diffusion.replay import replay
from gdsd_jax.diffusion.trajectory import state_before
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.parallel.mesh import batch_sharding, make_mesh, param_shardings

LLADA = DenoiserConfig(
  vocab_size=24, hidden_size=16, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=4, mlp_size=16, rope_theta=100.0,
  norm_epsilon=1e-6, max_positions=64, mask_token_id=20, eos_token_id=21, pad_token_id=21,
)
MODELS = {"llada": LLADA, "dream": dataclasses.replace(
  LLADA, qkv_bias=True, shifted_output=True, positions_skip_padding=True, family="dream")}
GREEDY = SamplerConfig(completion_length=32, steps=16, block_length=16, temperature=0.0)
IN_SLOTS = {"slots": 2, "temperature": 1.0}  # whose places draw by random numbers of their own
PROMPT = np.random.default_rng(0).integers(0, 20, (4, 8))


@pytest.mark.parametrize("width, sizes", [(16, {16: 16, 12: 12, 8: 8, 4: 8}), (20, {20: 20, 15: 15, 10: 10, 5: 10}),
                                          (6, {6: 6, 3: 6}), (15, {15: 15, 5: 8}), (32, {17: 24, 16: 16, 8: 8, 1: 8})])
def test_as_many_places_as_the_row_with_the_most_has(width, sizes):
  numbers = np.random.default_rng(1).normal(size=(3, width, 2)).astype(np.float32)

  def compute(of_places, places):
    count = jnp.full(places.shape, places.shape[1])
    return {"sums": jnp.sum(of_places, axis=-1), "places": places, "count": count}

  run = jax.jit(functools.partial(at_open_places, compute))
  for most, size in sizes.items():
    is_open = np.zeros((3, width), bool)
    for row, count in enumerate((most, most // 2, 0)):
      is_open[row, np.random.default_rng(row).permutation(width)[:count]] = True
    found = jax.device_get(run(is_open, numbers))
    np.testing.assert_allclose(found["sums"][is_open], numbers.sum(axis=-1)[is_open], rtol=1e-6)
    np.testing.assert_array_equal(found["places"][is_open], np.nonzero(is_open)[1])
    assert set(found["count"][is_open]) == {size}


def model(family: str, mesh=None):
  denoiser = Denoiser(MODELS[family], mesh=mesh)
  params = jax.jit(Denoiser(denoiser.config).init)(jax.random.key(1))
  params |= {"head": 5 * params["head"]}  # sure of some tokens, and not of others
  return denoiser, jax.device_put(params, None if mesh is None else param_shardings(mesh, denoiser))


def run(family: str, mesh=None, record=("logp",), **changes):
  config, (denoiser, params) = dataclasses.replace(GREEDY, kind=family, **changes), model(family, mesh)
  prompt = PROMPT if mesh is None else jax.device_put(PROMPT, batch_sharding(mesh))
  key, record = jax.random.key(2), frozenset(record)
  compiled_anew = jax.jit(lambda *given: sample.__wrapped__(denoiser, *given, None, key, config, record))
  return jax.device_get(compiled_anew(params, prompt))


def assert_same(one, other):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  for found, expected in zip(jax.tree.leaves(one), jax.tree.leaves(other)):
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("family, changes", [
  ("llada", {}), ("llada", {"threshold": 0.6}), ("llada", {"cache": "dual", "factor": 1.5}), ("llada", IN_SLOTS),
  slow("llada", {"cfg_scale": 0.5}),
  slow("llada", {"record": ("predictions",)}), slow("llada", IN_SLOTS | {"record": ("logp", "entropy")}),
  slow("llada", IN_SLOTS | {"remasking": "random"}), slow("llada", IN_SLOTS | {"noise": "official"}),
  ("dream", {"alg": "entropy"}), slow("dream", IN_SLOTS | {"top_k": 5, "record": ("logp", "kept")}),
  slow("dream", IN_SLOTS | {"alg": "origin"}), slow("dream", {"alg": "maskgit_plus", "block_length": 32}),
])
def test_rollouts_are_those_of_whole_blocks(family, changes, monkeypatch):
  whole = run(family, **changes)
  monkeypatch.setattr(block_step, "CHUNK", 24)
  assert_same(run(family, **changes), whole)


@pytest.mark.parametrize("sizes", [(2, 2, 2), slow((4, 1, 2))])
def test_rollouts_over_a_mesh_are_those_of_one_device(sizes, monkeypatch):
  monkeypatch.setattr(block_step, "CHUNK", 24)
  mesh = make_mesh(*sizes, devices=jax.devices()[:np.prod(sizes)])
  assert_same(run("llada", mesh), run("llada"))


@pytest.mark.parametrize("family, changes", [
  ("llada", {"steps": 12, "cfg_scale": 0.5}), slow("llada", {"remasking": "random"}),
  slow("dream", {"alg": "topk_margin", "top_p": 0.9, "alg_temp": 0.5}),
  ("dream", {"alg": "origin", "block_length": 32})])
def test_what_is_drawn_by_one_key_has_the_probability_that_it_tells(family, changes, monkeypatch):
  monkeypatch.setattr(block_step, "CHUNK", 24)
  drawn = run(family, record=("logp", "entropy"), temperature=0.8, **changes)
  logp, entropy = replay(*model(family), PROMPT, None, drawn, dataclasses.replace(
    GREEDY, kind=family, temperature=0.8, **changes))
  assert not np.any(drawn.tokens == LLADA.mask_token_id) and np.min(drawn.logp) < -0.5
  np.testing.assert_allclose(drawn.logp, logp, atol=1e-5)
  np.testing.assert_allclose(drawn.entropy, entropy, atol=1e-5)


@pytest.mark.parametrize("family, changes", [
  ("llada", {}), slow("llada", {"block_length": 32}), slow("dream", {"alg": "entropy"})])
def test_predictions_are_remembered_with_their_own_probabilities(family, changes, monkeypatch):
  monkeypatch.setattr(block_step, "CHUNK", 24)
  drawn, (denoiser, params) = run(family, record=("predictions",), temperature=1.0, **changes), model(family)
  for step in range(drawn.predictions.tokens.shape[1]):
    state = state_before(drawn, step, LLADA.mask_token_id)
    logits = denoiser.apply(params, np.concatenate([PROMPT, state], axis=1))[:, PROMPT.shape[1]:]
    probabilities = jax.nn.softmax(logits, axis=-1)
    told = np.take_along_axis(probabilities, drawn.predictions.tokens[:, step, :, None], axis=-1)[..., 0]
    masked = state == LLADA.mask_token_id
    np.testing.assert_allclose(drawn.predictions.confidence[:, step][masked], told[masked], atol=1e-5)
