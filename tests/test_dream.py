"""Dream: its files in and out, its positions, and its sampler beyond the recorded greedy cases."""

import dataclasses
import json

from conftest import slow
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

import gdsd_jax
from gdsd_jax.diffusion import dream
from gdsd_jax.diffusion.commits import commit_plan
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.huggingface import weights as huggingface

CONFIG = gdsd_jax.DenoiserConfig(
  vocab_size=24, hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, mlp_size=12,
  rope_theta=100.0, norm_epsilon=1e-6, max_positions=64, mask_token_id=20, eos_token_id=21, pad_token_id=21,
  qkv_bias=True, shifted_output=True, positions_skip_padding=True, family="dream",
)


apply = jax.jit(gdsd_jax.Denoiser.apply, static_argnums=0)


def made(config=CONFIG, dtype="float32", seed=0):
  denoiser = gdsd_jax.Denoiser(config, dtype, dtype)
  rng = np.random.default_rng(seed)  # biases and norms too: nothing is zero or one
  params = jax.tree.map(lambda s: (rng.normal(size=s.shape) / 3).astype(s.dtype), denoiser.abstract_params())
  return denoiser, jax.device_put(params)


# Files


@pytest.mark.parametrize("max_shard_bytes", [2**30, 2048], ids=["one_file", "shards"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", [{}, {"tied_head": True}, {"num_kv_heads": 4}, {"num_kv_heads": 1}],
                         ids=["plain", "tied", "all_heads", "one_kv_head"])
def test_a_saved_model_loads_bit_for_bit(tmp_path, variant, dtype, max_shard_bytes):
  denoiser, params = made(dataclasses.replace(CONFIG, **variant), dtype)
  gdsd_jax.save_pretrained(tmp_path, denoiser, params, max_shard_bytes)
  loaded, restored = gdsd_jax.load_pretrained(tmp_path, dtype)
  assert loaded == denoiser
  for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(restored)):
    assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def tensors_in(folder):
  tensors = {}
  for file in folder.glob("*.safetensors"):
    with safe_open(file, "np") as opened:
      tensors |= {name: opened.get_tensor(name) for name in opened.keys()}
  return tensors


def test_the_published_files_come_back_tensor_by_tensor(goldens, tmp_path):
  folder = goldens / "dream_tiny" / "hf"
  gdsd_jax.save_pretrained(tmp_path, *gdsd_jax.load_pretrained(folder))
  published, saved = tensors_in(folder), tensors_in(tmp_path)
  assert published.keys() == saved.keys()
  for name, tensor in published.items():
    np.testing.assert_array_equal(tensor, saved[name], err_msg=name)


def test_the_published_fields_come_back(goldens, tmp_path):
  folder = goldens / "dream_tiny" / "hf"
  gdsd_jax.save_pretrained(tmp_path, *gdsd_jax.load_pretrained(folder))
  published, saved = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path))
  # Two have no consequence: which release wrote it, and how many layers would have a window if windows were on.
  ignored = {"transformers_version", "max_window_layers"}
  assert {n: v for n, v in published.items() if n not in ignored} == {n: saved[n] for n in published.keys() - ignored}


@pytest.mark.parametrize("change, message", [
  ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling"),
  ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0}}, "rope_parameters"),
  ({"rope_theta": None}, "rope_theta must be a positive number, not None"),
  ({"tie_word_embeddings": "false"}, "tied_head must be true or false, not 'false'"),
  ({"use_sliding_window": True}, "use_sliding_window"),
  ({"hidden_act": "gelu"}, "hidden_act"),
  ({"hidden_size": 18}, "multiple of num_attention_heads"),
  ({"hidden_size": "16"}, "hidden_size must be a positive integer"),
  ({"mask_token_id": 24}, "mask_token_id"),
  ({"model_type": "qwen2"}, "model_type 'qwen2'; known are dream, illada, llada, "),
])
def test_a_config_beyond_this_model_is_refused(tmp_path, change, message):
  gdsd_jax.save_pretrained(tmp_path, *made())
  file = tmp_path / "config.json"
  fields = json.loads(file.read_text()) | change
  if "hidden_size" in change:
    del fields["head_dim"]
  file.write_text(json.dumps(fields))
  with pytest.raises(ValueError, match=message) as raised:
    huggingface.load_config(tmp_path)
  assert str(file) in str(raised.value)


@pytest.mark.parametrize("others", [{}, {"rope_theta": 7.0}], ids=["alone", "beside rope_theta"])
def test_rope_parameters_of_transformers_5_are_read(tmp_path, others):
  gdsd_jax.save_pretrained(tmp_path, *made())
  file = tmp_path / "config.json"
  fields = json.loads(file.read_text())
  del fields["rope_theta"], fields["rope_scaling"]
  file.write_text(json.dumps(fields | others | {"rope_parameters": {"rope_theta": 100, "rope_type": "default"}}))
  assert huggingface.load_config(tmp_path) == CONFIG


# Positions


def test_left_padding_changes_nothing_for_the_real_tokens():
  denoiser, params = made()
  tokens = np.arange(1, 9)[None]
  padded = np.concatenate([np.full((1, 5), 21), tokens], axis=1)
  mask = np.arange(13)[None] >= 5
  logits = apply(denoiser, params, padded, mask)[:, 5:]
  # Position 0 is aligned with what came before it, which is padding here and itself without padding.
  np.testing.assert_allclose(logits[:, 1:], apply(denoiser, params, tokens)[:, 1:], atol=1e-5)


def test_output_is_shifted_within_the_model():
  denoiser, params = made()
  raw = gdsd_jax.Denoiser(dataclasses.replace(CONFIG, shifted_output=False))
  tokens = np.arange(1, 9)[None]
  aligned, unshifted = apply(denoiser, params, tokens), apply(raw, params, tokens)
  np.testing.assert_array_equal(aligned[:, 1:], unshifted[:, :-1])
  np.testing.assert_array_equal(aligned[:, 0], unshifted[:, 0])


# Sampler


@pytest.mark.parametrize("length, steps", [(32, 32), (32, 12), (32, 1), (5, 20), (256, 128), (256, 256)])
def test_the_schedule_commits_every_token_once(length, steps):
  commits = commit_plan(SamplerConfig(kind="dream", completion_length=length, steps=steps))
  assert len(commits) <= steps and sum(commits) == length and min(commits) >= 1


def test_the_schedule_is_the_published_one_in_exact_arithmetic():
  # int(n (1 − s/t)) with t from 1 to eps; away from whole numbers float32 and fractions must agree.
  from fractions import Fraction

  eps = Fraction(1, 1000)
  for length, steps in ((32, 12), (64, 20), (200, 64)):
    times = [1 - (1 - eps) * i / steps for i in range(steps + 1)]
    masked, expected = length, []
    for i in range(steps):
      share = 1 if i == steps - 1 else 1 - times[i + 1] / times[i]
      expected.append(int(masked * share))
      masked -= expected[-1]
    plan = commit_plan(SamplerConfig(kind="dream", completion_length=length, steps=steps))
    assert plan.tolist() == [count for count in expected if count]


def brute_force_filter(logits, top_p, top_k):
  kept = np.full(logits.shape, -np.inf)
  probabilities = np.exp(logits - np.logaddexp.reduce(logits))
  mass = 0.0
  for token in np.argsort(-logits):
    if top_p is None or mass <= top_p:
      kept[token] = logits[token]
    mass += probabilities[token]
  if top_k is not None:
    kept[np.argsort(-kept)[top_k:]] = -np.inf
  return kept


@pytest.mark.parametrize("top_p, top_k", [(None, None), (0.5, None), (0.95, None), (1.0, None), (0.01, None), (None, 3),
                                          (0.9, 2), (None, 100)])
def test_nucleus_and_top_k(top_p, top_k):
  logits = np.random.default_rng(0).normal(size=(4, 24)) * 2
  expected = [brute_force_filter(row, top_p, top_k) for row in logits]
  np.testing.assert_allclose(dream.filter_logits(jnp.asarray(logits), top_p, top_k), expected, rtol=1e-5)


@pytest.mark.parametrize("alg, confidence", [
  ("maskgit_plus", lambda p, token: p[token]),
  ("topk_margin", lambda p, token: np.sort(p)[-1] - np.sort(p)[-2]),
  ("entropy", lambda p, token: np.sum(p * np.log(p))),
  ("origin", lambda p, token: p[token]),
])
def test_confidence_is_that_of_the_algorithm(alg, confidence):
  logits = np.random.default_rng(1).normal(size=(2, 3, 24))
  config = SamplerConfig(kind="dream", alg=alg, temperature=0.7)
  tokens, sureness = dream.predict_from_logits(jnp.asarray(logits), jax.random.key(0), 20, config)
  for position in np.ndindex(2, 3):
    p = np.exp(logits[position] / 0.7 - np.logaddexp.reduce(logits[position] / 0.7))
    assert sureness[position] == pytest.approx(confidence(p, int(tokens[position])), rel=1e-4)


def test_sampled_tokens_follow_the_filtered_distribution():
  logits = jnp.broadcast_to(jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05])), (1, 20000, 4))
  config = SamplerConfig(kind="dream", temperature=1.0, top_p=0.7)
  tokens, _ = dream.predict_from_logits(logits, jax.random.key(0), mask_id=3, config=config)
  counts = np.bincount(np.asarray(tokens).ravel(), minlength=4) / 20000
  np.testing.assert_allclose(counts, [0.625, 0.375, 0, 0], atol=0.02)


def test_a_nucleus_of_the_mask_token_alone_still_gives_a_token():
  logits = jnp.zeros((1, 2, 24)).at[..., 20].set(100.0).at[..., 7].set(3.0)
  for temperature in (0.0, 1.0):
    config = SamplerConfig(kind="dream", temperature=temperature, top_k=1)
    tokens, _ = dream.predict_from_logits(logits, jax.random.key(0), 20, config)
    assert (np.asarray(tokens) != 20).all()
  greedy, _ = dream.predict_from_logits(logits, None, 20, SamplerConfig(kind="dream", temperature=0.0, top_k=1))
  assert (np.asarray(greedy) == 7).all()


@pytest.mark.parametrize("alg, alg_temp", [
  ("entropy", 0.5), ("maskgit_plus", 0.0), ("topk_margin", 0.5), ("origin", 0.0),
  slow("entropy", 0.0), slow("maskgit_plus", 0.5), slow("topk_margin", 0.0), slow("origin", 0.5),
])
def test_completions_are_whole(alg, alg_temp):
  denoiser, params = made()
  prompt = np.array([[21, 21, 3, 4], [1, 2, 3, 4]])
  mask = np.array([[0, 0, 1, 1], [1, 1, 1, 1]], bool)
  config = SamplerConfig(kind="dream", completion_length=12, steps=7, alg=alg, alg_temp=alg_temp, top_p=0.9)
  rollout = gdsd_jax.sample(denoiser, params, prompt, mask, jax.random.key(0), config)
  assert rollout.tokens.shape == (2, 12) and (np.asarray(rollout.tokens) != 20).all()
  assert np.isfinite(rollout.confidence).all() and (np.asarray(rollout.confidence) != 0).all()
  other = gdsd_jax.sample(denoiser, params, prompt, mask, jax.random.key(1), config)
  assert (np.asarray(rollout.tokens) != np.asarray(other.tokens)).any()


# Blocks


def plain_blocks(denoiser, params, prompt, config):
  """Dream's greedy sampler, block by block, as plainly as it can be said: (tokens, confidence)."""
  (batch, start), K, steps = prompt.shape, config.block_length, config.steps // config.num_blocks
  tokens = np.concatenate([prompt, np.full((batch, config.completion_length), CONFIG.mask_token_id)], axis=1)
  confidence, times = np.zeros(tokens.shape), np.linspace(1, config.eps, steps + 1)
  for first in range(start, tokens.shape[1], K):
    for step in range(steps):
      logits = np.asarray(apply(denoiser, params, tokens), np.float64)[:, first:first + K]
      odds = np.exp(logits)
      p = odds / odds.sum(axis=-1, keepdims=True)
      best = np.argmax(np.where(np.arange(CONFIG.vocab_size) == CONFIG.mask_token_id, -1, p), axis=-1)
      of_best = np.take_along_axis(p, best[..., None], axis=-1)[..., 0]
      sure = np.sum(p * np.log(p), axis=-1) if config.alg == "entropy" else of_best
      for row in range(batch):
        masked = np.flatnonzero(tokens[row, first:first + K] == CONFIG.mask_token_id)
        share = 1 - times[step + 1] / times[step] if step < steps - 1 else 1
        at = masked[np.argsort(-sure[row, masked], kind="stable")][:int(len(masked) * share)]
        tokens[row, first + at], confidence[row, first + at] = best[row, at], sure[row, at]
  return tokens[:, start:], confidence[:, start:]


@pytest.mark.parametrize("alg, steps", [("entropy", 12), ("maskgit_plus", 6)])
def test_blocks_are_denoised_from_left_to_right_each_by_its_share_of_the_steps(alg, steps):
  denoiser, params = made()
  prompt = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
  config = SamplerConfig(kind="dream", completion_length=12, steps=steps, alg=alg, temperature=0.0, block_length=4)
  rollout = gdsd_jax.sample(denoiser, params, prompt, None, jax.random.key(0), config)
  tokens, confidence = plain_blocks(denoiser, params, prompt, config)
  np.testing.assert_array_equal(rollout.tokens, tokens)
  np.testing.assert_allclose(rollout.confidence, confidence, atol=1e-5)


def test_one_block_is_the_whole_completion_draw_by_draw():
  denoiser, params = made()
  config = SamplerConfig(kind="dream", completion_length=12, steps=7, alg_temp=0.5, top_p=0.9)
  draw = lambda config: gdsd_jax.sample(denoiser, params, np.array([[1, 2, 3, 4]]), None, jax.random.key(0), config)
  whole, block = draw(config), draw(dataclasses.replace(config, block_length=12))
  np.testing.assert_array_equal(whole.tokens, block.tokens)
  np.testing.assert_array_equal(whole.confidence, block.confidence)


@pytest.mark.parametrize("alg", ["origin", slow("topk_margin")])
def test_completions_in_blocks_are_whole(alg):
  denoiser, params = made()
  fields = dict(alg_temp=0.5, top_p=0.9, top_k=5, early_stop=True, eos_penalty=1.0)
  config = SamplerConfig(kind="dream", completion_length=12, steps=6, block_length=4, alg=alg, **fields)
  rollout = gdsd_jax.sample(denoiser, params, np.array([[21, 2, 3, 4]]), None, jax.random.key(0), config)
  assert (np.asarray(rollout.tokens) != 20).all() and np.isfinite(rollout.confidence).all()


def test_a_penalty_counts_in_prediction_and_confidence():
  """The reference is made of whole logits in float64, the penalty taken off first."""
  denoiser, params = made()
  prompt = np.array([[1, 2, 3, 4]])
  sequence = np.append(prompt, np.full((1, 6), 20), axis=1)
  logits = np.asarray(apply(denoiser, params, sequence), np.float64)[0, 4:]
  params["head"] = params["head"].at[:, 21].set(2 * params["head"][:, np.argmax(logits[0])])  # fond of the end
  logits = np.asarray(apply(denoiser, params, sequence), np.float64)[0, 4:]
  config = SamplerConfig(kind="dream", completion_length=6, steps=1, temperature=0.0, eos_penalty=4.0)
  rollout = gdsd_jax.sample(denoiser, params, prompt, None, jax.random.key(0), config)
  assert (np.argmax(logits, axis=-1) == 21).any()
  logits[:, 21] -= 4
  p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
  logits[:, 20] = -np.inf
  np.testing.assert_array_equal(rollout.tokens[0], np.argmax(logits, axis=-1))
  np.testing.assert_allclose(rollout.confidence[0], np.sum(p * np.log(p), axis=-1), atol=1e-5)


def test_alg_temp_draws_positions_instead_of_taking_the_surest():
  denoiser, params = made()
  prompt = np.array([[1, 2, 3, 4]])
  greedy = SamplerConfig(kind="dream", completion_length=12, steps=6, temperature=0.0)
  drawn = dataclasses.replace(greedy, alg_temp=10.0)
  at = lambda config, seed: np.asarray(
    gdsd_jax.sample(denoiser, params, prompt, None, jax.random.key(seed), config).confidence
  )
  np.testing.assert_array_equal(at(greedy, 0), at(greedy, 1))
  assert (at(drawn, 0) != at(drawn, 1)).any()


def test_forward_process_is_that_of_the_sampler():
  assert SamplerConfig(kind="dream").forward_process == {"block_length": None, "remasking": "low_confidence"}
  assert SamplerConfig(kind="dream", alg="origin").forward_process["remasking"] == "random"
  of_blocks = SamplerConfig(kind="dream", completion_length=64, steps=64, block_length=16)
  assert of_blocks.forward_process == {"block_length": 16, "remasking": "low_confidence"}
  assert dataclasses.replace(of_blocks, block_length=64).forward_process["block_length"] is None
  assert SamplerConfig(block_length=64).forward_process == {"block_length": 64, "remasking": "low_confidence"}


@pytest.mark.parametrize("fields, message", [
  (dict(kind="dreams"), "sampler.kind"), (dict(alg="entropic"), "sampler.alg"), (dict(top_p=0.0), "sampler.top_p"),
  (dict(top_p=1.1), "sampler.top_p"), (dict(top_k=0), "sampler.top_k"),
  (dict(top_k=2.5), "sampler.top_k"), (dict(eps="small"), "sampler.eps"), (dict(eps=0.0), "sampler.eps"),
  (dict(alg_temp=-1.0), "sampler.alg_temp"), (dict(cfg_scale=1.0), "sampler.cfg_scale"),
  (dict(kind="llada", top_p=0.9), "sampler.top_p: only the dream or block sampler"), (dict(steps=0), "sampler.steps"),
  (dict(kind="llada", alg="origin"), "sampler.alg: only the dream"),
  (dict(kind="llada", eps=0.1), "sampler.eps: only the dream"),
  (dict(kind="llada", alg_temp=0.1), "sampler.alg_temp: only the dream"),
  (dict(noise="official"), "sampler.noise: only the llada"),
  (dict(remasking="random"), r"sampler.remasking: only the llada or block sampler has it \(sampler.kind is 'dream'\)"),
  (dict(block_length=48), "sampler.block_length: 48 must divide completion_length, 256"),
  (dict(block_length=512), "sampler.block_length: 512 must divide"), (dict(block_length=0), "sampler.block_length"),
  (dict(block_length=8, steps=100), "sampler.steps: 100 must be a multiple of the 32 blocks"),
  (dict(early_stop=True), "sampler.early_stop: the dream sampler has blocks only with sampler.block_length"),
  (dict(eos_penalty=-1.0), "sampler.eos_penalty: must be a number and not negative"),
])
def test_bad_fields_are_named(fields, message):
  with pytest.raises(ValueError, match=message):
    SamplerConfig(**{"kind": "dream", **fields})
