"""Fast-dLLM's samplers: exact where nothing is stale, the rules of what a step commits, and the early stop."""

import dataclasses

from conftest import slow
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gdsd_jax.diffusion.blockwise import sample
from gdsd_jax.diffusion.commits import choose
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.models.lora import LoraConfig
from gdsd_jax.parallel.mesh import batch_sharding, make_mesh, param_shardings

LLADA = DenoiserConfig(
  vocab_size=24, hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, mlp_size=12, rope_theta=100.0,
  norm_epsilon=1e-6, max_positions=64, mask_token_id=20, eos_token_id=21, pad_token_id=21,
)
DREAM = dataclasses.replace(
  LLADA, qkv_bias=True, shifted_output=True, positions_skip_padding=True, family="dream"
)
MODELS = {"llada": LLADA, "dream": DREAM}
PROMPT = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9], [3, 2, 1]])
SAMPLERS = {
  "llada": SamplerConfig(completion_length=8, steps=8, block_length=4),
  "dream": SamplerConfig(kind="dream", alg="maskgit_plus", completion_length=8, steps=8, block_length=4, threshold=1.0),
}
families = pytest.mark.parametrize("family", MODELS)
llada = pytest.mark.parametrize("family", ["llada", slow("dream")])
caches = pytest.mark.parametrize("cache", ["prefix", "dual"])
# With "prefix" each block is compiled by itself: a case takes three times as long.
slow_prefix = slow("prefix")
dual = pytest.mark.parametrize("cache", [slow_prefix, "dual"])


def made(family, **changes):
  denoiser = Denoiser(MODELS[family], **changes)
  rng = np.random.default_rng(0)  # biases and norms too: nothing is zero or one
  params = jax.tree.map(lambda s: (rng.normal(size=s.shape) / 2).astype(s.dtype), denoiser.abstract_params())
  return denoiser, jax.device_put({**params, "head": 3 * params["head"]})  # of probabilities from 0 to 1


def of_one_layer(family):
  """A model whose keys and values depend on their own token alone: no cache of them is ever stale."""
  denoiser, params = made(family)
  denoiser = dataclasses.replace(denoiser, config=dataclasses.replace(denoiser.config, num_layers=1))
  return denoiser, {**params, "blocks": jax.tree.map(lambda leaf: leaf[:1], params["blocks"])}


def run(family, prompt=PROMPT, prompt_mask=None, seed=0, model=None, **changes):
  denoiser, params = model or made(family)
  config = dataclasses.replace(SAMPLERS[family], **changes)
  return sample(denoiser, params, jnp.asarray(prompt), prompt_mask, jax.random.key(seed), config)


def fond_of(token, strength, family, params):
  """Weights by which a token is so many times as strong as that which is chosen most often."""
  favourite = np.bincount(np.ravel(run(family, model=(Denoiser(MODELS[family]), params)).tokens)).argmax()
  return {**params, "head": params["head"].at[:, token].set(strength * params["head"][:, favourite])}


def assert_same(one, other):
  np.testing.assert_array_equal(one.tokens, other.tokens)
  np.testing.assert_allclose(one.confidence, other.confidence, atol=1e-5)


# The passes that a cache is made of


hidden = jax.jit(Denoiser.hidden, static_argnums=0)
hidden_and_cache = jax.jit(Denoiser.hidden_and_cache, static_argnums=0)
window = jax.jit(Denoiser.window, static_argnums=(0, 4))


@families
@pytest.mark.parametrize("start, width", [(1, 3), (9, 2), slow(4, 4)])
@pytest.mark.parametrize("padded", [False, True])
def test_a_window_of_an_unchanged_sequence_is_the_full_pass(family, start, width, padded):
  denoiser, params = made(family)
  tokens = np.random.default_rng(1).integers(0, 20, size=(2, 11))
  mask = np.arange(11)[None] >= np.array([[0], [2 * padded]])
  whole, cache = hidden_and_cache(denoiser, params, tokens, mask)
  np.testing.assert_array_equal(whole, hidden(denoiser, params, tokens, mask))
  part = window(denoiser, params, tokens, start, width, cache, mask)
  first = 3 if padded and start < 3 else start  # at padding, and where it would predict, values mean nothing
  np.testing.assert_allclose(part[:, first - start:], whole[:, first:start + width], atol=1e-5)


@families
def test_a_window_of_a_sequence_without_a_mask_is_the_full_pass(family):
  denoiser, params = made(family)
  tokens = np.random.default_rng(1).integers(0, 20, size=(2, 11))
  whole, cache = hidden_and_cache(denoiser, params, tokens)
  np.testing.assert_allclose(window(denoiser, params, tokens, 4, 4, cache), whole[:, 4:8], atol=1e-5)


@families
def test_a_window_sees_its_own_changes(family):
  denoiser, params = of_one_layer(family)
  tokens = np.random.default_rng(1).integers(0, 20, size=(2, 11))
  _, cache = hidden_and_cache(denoiser, params, tokens)
  tokens[:, 5:8] = 20
  expected = hidden(denoiser, params, tokens)[:, 5:8]
  np.testing.assert_allclose(window(denoiser, params, tokens, 5, 3, cache), expected, atol=1e-5)


# Caches


@caches
@pytest.mark.parametrize("temperature", [0.0, slow(1.0)])
def test_a_cache_that_lives_for_one_step_changes_nothing(cache, temperature):
  exact = run("llada", steps=2, temperature=temperature)
  cached = run("llada", steps=2, temperature=temperature, cache=cache)
  np.testing.assert_array_equal(exact.tokens, cached.tokens)
  np.testing.assert_array_equal(exact.confidence, cached.confidence)


@llada
@dual
def test_a_cache_that_is_never_stale_changes_nothing(family, cache):
  model = of_one_layer(family)
  assert_same(run(family, model=model, threshold=0.5), run(family, model=model, threshold=0.5, cache=cache))


@llada
@dual
def test_a_cache_is_an_approximation(family, cache):
  """In a model of two layers, what the block commits changes the others' keys and values."""
  exact = run(family, temperature=0.0, threshold=1.0)
  cached = run(family, temperature=0.0, threshold=1.0, cache=cache)
  assert not np.array_equal(exact.confidence, cached.confidence)
  first = np.asarray(exact.confidence) == np.asarray(cached.confidence)
  assert first.any(axis=1).all()  # the first step is exact


@pytest.mark.parametrize("alg, alg_temp", [
  ("entropy", 0.5), slow("origin", 0.0), slow("entropy", 0.0), slow("topk_margin", 0.0),
])
@dual
def test_dream_with_a_cache_goes_block_by_block_with_every_algorithm(alg, alg_temp, cache):
  rollout = run("dream", alg=alg, alg_temp=alg_temp, cache=cache, threshold=None, steps=6, top_p=0.9)
  assert (np.asarray(rollout.tokens) != 20).all() and (np.asarray(rollout.tokens) < 24).all()
  assert np.isfinite(rollout.confidence).all()


@dual
def test_dream_in_one_block_and_one_layer_is_the_exact_sampler(cache):
  same = dict(model=of_one_layer("dream"), alg="entropy", temperature=0.0, threshold=None, block_length=8, steps=5)
  assert_same(run("dream", **same), run("dream", cache=cache, **same))


# Parallel decoding


@pytest.mark.parametrize("temperature", [slow(0.0), 1.0])
def test_a_threshold_never_exceeded_commits_one_token_a_step(temperature):
  assert_same(run("llada", temperature=temperature), run("llada", temperature=temperature, threshold=1.0))


@pytest.mark.parametrize("cache", ["none", slow_prefix, "dual"])
def test_a_threshold_always_exceeded_commits_a_block_in_one_step(cache):
  assert_same(run("llada", steps=2), run("llada", threshold=0.0, cache=cache))


passes = {"full": 0, "window": 0}


def note(name):
  passes[name] += 1


class Counting(Denoiser):
  """It counts the passes over the whole sequence, and those over a window."""

  def hidden_of_window(self, *args):
    jax.debug.callback(note, "full")
    return super().hidden_of_window(*args)

  def hidden_and_cache(self, *args):
    jax.debug.callback(note, "full")
    return super().hidden_and_cache(*args)

  def window(self, *args):
    jax.debug.callback(note, "window")
    return super().window(*args)


def count_steps(family, params=None, **changes):
  """Passes through the denoiser: (rollout, over the whole sequence, over a window)."""
  params = made(family)[1] if params is None else params
  passes.update(full=0, window=0)
  rollout = jax.block_until_ready(run(family, model=(Counting(MODELS[family]), params), **changes))
  jax.effects_barrier()
  return rollout, passes["full"], passes["window"]


@pytest.mark.parametrize("family, threshold, steps", [
  ("llada", 1.0, 8), ("dream", 0.0, 2), slow("llada", 0.0, 2), slow("dream", 1.0, 8),
])
def test_without_a_cache_every_step_is_a_full_pass(family, threshold, steps):
  assert count_steps(family, threshold=threshold)[1:] == (steps, 0)


@pytest.mark.parametrize("family, cache", [
  ("llada", "prefix"), ("dream", "dual"), slow("llada", "dual"),
  slow("dream", "prefix"),
])
def test_with_a_cache_one_step_of_each_block_is_a_full_pass(family, cache):
  assert count_steps(family, threshold=1.0, cache=cache)[1:] == (2, 6)


@llada
def test_a_block_ends_when_no_row_has_masks_left(family):
  """More than the least and fewer than the most steps, every token committed."""
  rollout, full, window = count_steps(family, threshold=0.2)
  assert 2 < full < 8 and window == 0
  assert (np.asarray(rollout.tokens) != 20).all()


def committed(confidence, masked, **fields):
  config = SamplerConfig(**fields)
  return np.asarray(choose(jnp.asarray(confidence), jnp.asarray(masked), 1, jax.random.key(0), config))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("factor", [0.01, 0.5, 1.0, 2.0, 50.0])
def test_factor_commits_the_most_that_the_rule_allows(seed, factor):
  rng = np.random.default_rng(seed)
  confidence, masked = rng.random((6, 8)).astype(np.float32) ** 0.2, rng.random((6, 8)) < 0.7
  expected = np.zeros_like(masked)
  for row in range(6):
    order = [i for i in np.argsort(-confidence[row]) if masked[row, i]]
    allowed = [n for n in range(1, len(order) + 1) if (n + 1) * (1 - confidence[row, order[n - 1]]) < factor]
    expected[row, order[:max([1, *allowed])]] = True
  np.testing.assert_array_equal(committed(confidence, masked, factor=factor), expected)


def test_threshold_commits_what_exceeds_it_and_the_surest_of_each_row():
  confidence = np.array([[0.95, 0.99, 0.5, 0.9], [0.1, 0.3, 0.2, 0.99], [0.9, 0.9, 0.9, 0.9]], np.float32)
  masked = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]], bool)
  np.testing.assert_array_equal(committed(confidence, masked, threshold=0.9), [
    [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0],
  ])


# Both


@pytest.mark.parametrize("family", [slow("llada"), "dream"])
@pytest.mark.parametrize("options", [
  slow(dict(cache="prefix", threshold=0.4)),
  dict(cache="dual", factor=1.0, threshold=None),
])
def test_left_padding_changes_nothing(family, options):
  padded = np.concatenate([np.full((4, 3), 21), PROMPT], axis=1)
  mask = jnp.asarray(np.arange(6)[None] >= np.full((4, 1), 3))
  plain = run(family, temperature=0.0, **options)
  assert_same(plain, run(family, padded, mask, temperature=0.0, **options))


@pytest.mark.parametrize("family, temperature", [
  ("llada", 0.0), ("dream", 1.0), slow("llada", 1.0), slow("dream", 0.0),
])
def test_the_mask_token_is_never_chosen_even_when_it_is_the_most_likely(family, temperature):
  denoiser, params = made(family)
  params = fond_of(20, 2.0, family, params)
  rollout = run(family, model=(denoiser, params), temperature=temperature, threshold=0.4, cache="dual")
  assert (np.asarray(rollout.tokens) != 20).all()


@llada
@dual
def test_an_adapter_takes_part(family, cache):
  """Weights with an adapter give what weights with the adapter merged into them give, and not what the base gives."""
  denoiser, params = made(family, lora=LoraConfig(2, 2.0, 0.05, ("q", "v")))
  merged = {name: value for name, value in params.items() if name != "lora"}
  merged["blocks"] = dict(merged["blocks"])
  for name in ("query", "value"):
    factors = params["lora"][name]
    update = jnp.einsum("ldr,lrnh->ldnh", factors["a"], factors["b"]) * denoiser.lora.scale
    merged["blocks"][name] = merged["blocks"][name] + update
  options = dict(temperature=0.0, threshold=0.4, cache=cache)
  adapted = run(family, model=(denoiser, params), **options)
  assert_same(adapted, run(family, model=(Denoiser(MODELS[family]), merged), **options))
  base = {**merged, "blocks": params["blocks"]}
  without = run(family, model=(Denoiser(MODELS[family]), base), **options)
  assert not np.array_equal(adapted.confidence, without.confidence)


@llada
@pytest.mark.parametrize("cache", ["none", slow_prefix, slow("dual")])
def test_eight_devices_sample_what_one_does(family, cache):
  options = dict(temperature=1.0, threshold=0.4, cache=cache, early_stop=True)
  alone = run(family, **options)
  mesh = make_mesh(2, 2, 2)
  denoiser, params = made(family, mesh=mesh)
  params = jax.device_put(params, param_shardings(mesh, denoiser))
  prompt = jax.device_put(jnp.asarray(PROMPT), batch_sharding(mesh))
  assert_same(alone, run(family, prompt, model=(denoiser, params), **options))


@llada
@dual
def test_bfloat16_completions_are_whole(family, cache):
  rollout = run(family, model=made(family, dtype="bfloat16", param_dtype="bfloat16"), threshold=0.4, cache=cache)
  assert (np.asarray(rollout.tokens) != 20).all() and rollout.confidence.dtype == jnp.float32


@pytest.mark.parametrize("cache", [slow("none"), slow_prefix, "dual"])
def test_no_host_round_trip(cache):
  denoiser, params = made("llada")
  config = dataclasses.replace(SAMPLERS["llada"], cache=cache, threshold=0.4)
  text = sample.lower(denoiser, params, jnp.asarray(PROMPT), None, jax.random.key(0), config).compile().as_text()
  assert " while(" in text
  assert "callback" not in text and "infeed" not in text and "outfeed" not in text


def test_a_model_of_shifted_output_needs_a_prompt():
  with pytest.raises(ValueError, match="^prompt: must have a token"):
    run("dream", np.zeros((2, 0), int))


# Early stop


def ending(family):
  """A model that ends its texts early."""
  denoiser, params = made(family)
  return denoiser, fond_of(21, 1.0, family, params)


def text(tokens):
  return [row[:list(row).index(21)].tolist() if 21 in row else row.tolist() for row in np.asarray(tokens)]


@pytest.mark.parametrize("family, options", [
  ("llada", dict(threshold=0.5)), ("dream", dict(cache="dual")), slow("llada", {}),
  slow("llada", dict(threshold=0.0)), slow("llada", dict(cache="prefix", block_length=4)),
])
def test_an_early_stop_saves_steps_leaves_texts_as_they_are_and_fills_what_is_behind(family, options):
  options = {"block_length": 2, **options, "completion_length": 16, "steps": 16, "params": ending(family)[1]}
  (whole, *all_steps), (stopped, *steps) = (count_steps(family, early_stop=stop, **options) for stop in (False, True))
  assert sum(steps) < sum(all_steps)
  assert text(whole.tokens) == text(stopped.tokens)
  filled = np.asarray(stopped.confidence)[:, -2:] == 1
  assert filled.all() and (np.asarray(stopped.tokens)[:, -2:] == 21).all()
  same = np.asarray(whole.tokens) == np.asarray(stopped.tokens)
  assert not same.all()  # what the whole run sampled behind the end


def test_without_an_end_nothing_is_stopped():
  denoiser, params = made("llada")
  params = {**params, "head": params["head"].at[:, 21].set(0)}
  whole, stopped = (run("llada", model=(denoiser, params), temperature=0.0, early_stop=stop) for stop in (False, True))
  assert not (np.asarray(whole.tokens) == 21).any()
  np.testing.assert_array_equal(whole.tokens, stopped.tokens)
  np.testing.assert_array_equal(whole.confidence, stopped.confidence)


# Settings


@pytest.mark.parametrize("fields, message", [
  (dict(cache="triple"), "sampler.cache: 'triple' is not one of none, prefix, dual"),
  (dict(threshold=1.5), r"sampler.threshold: must lie in \[0, 1\]"),
  (dict(factor=0.0), "sampler.factor: must be a positive number"),
  (dict(threshold=0.9, factor=1.0), "sampler.factor: .* give one of them"),
  (dict(cache="dual", cfg_scale=1.0), "sampler.cfg_scale: must be 0 with"),
  (dict(threshold=0.9, remasking="random"), "sampler.remasking: must be 'low_confidence' with"),
  (dict(kind="dream", threshold=0.9), "sampler.alg: must be one of maskgit_plus, topk_margin .* not 'entropy'"),
  (dict(kind="dream", factor=1.0, alg="origin"), "sampler.alg: .* not 'origin'"),
  (dict(kind="dream", factor=1.0, alg="maskgit_plus", alg_temp=0.1), "sampler.alg_temp: must be 0 with"),
  (dict(kind="dream", cache="dual", block_length=3), "sampler.block_length: 3 must divide"),
  (dict(kind="dream", cache="dual", steps=3), "sampler.steps: 3 must be a multiple of the 8 blocks"),
  (dict(kind="dream", early_stop=True), "sampler.early_stop: the dream sampler has blocks only"),
  (dict(early_stop=1), "sampler.early_stop: must be True or False, not 1"),
])
def test_contradictory_settings_are_one_line_that_names_the_field(fields, message):
  with pytest.raises(ValueError, match=f"^{message}"):
    SamplerConfig(**fields)


def test_steps_say_nothing_where_confidence_does():
  assert SamplerConfig(threshold=0.9, steps=3).num_blocks == 8


def test_masks_of_training_follow_the_blocks_of_a_blockwise_dream():
  config = SamplerConfig(kind="dream", cache="dual", block_length=64)
  assert config.forward_process == {"block_length": 64, "remasking": "low_confidence"}
