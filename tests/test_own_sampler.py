"""A sampler of the user's own, and masks that are not the sampler's."""

import dataclasses
import re

from conftest import REPOSITORY
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdsd_jax
from gdsd_jax.diffusion.forward import MaskConfig, rollout_masks
from gdsd_jax.diffusion.own import try_out
from gdsd_jax.generation.generator import Generator
from gdsd_jax.runs.config_dict import base_config, run_config

EXAMPLE = f"{REPOSITORY / 'examples' / 'own_sampler.py'}:sliding_window"
L = 6
GOOD = """
import gdsd_jax
import jax.numpy as jnp

def own(denoiser, params, prompt, prompt_mask, key, config, *, token: int = 3):
  tokens = jnp.full((len(prompt), config.completion_length), token)
  return gdsd_jax.Rollout(tokens, jnp.ones(tokens.shape))
"""


@pytest.fixture
def own(tmp_path, monkeypatch, tiny_denoiser):
  """Makes and tries the sampler of a file that differs from GOOD in a line."""
  monkeypatch.chdir(tmp_path)

  def make(old="", new="", **settings):
    assert old in GOOD
    (tmp_path / "own.py").write_text(GOOD.replace(old, new))
    config = gdsd_jax.SamplerConfig("own.py:own", completion_length=L, own=tuple(settings.items()))
    try_out(tiny_denoiser, config, 2, 4)
    return config
  return make


def test_a_function_in_a_file_samples_by_its_settings(own, tiny_denoiser, tiny_params):
  config = own(token=5)
  prompt = jnp.ones((2, 4), jnp.int32)
  rollout = gdsd_jax.sample(tiny_denoiser, tiny_params, prompt, None, jax.random.key(0), config)
  np.testing.assert_array_equal(rollout.tokens, np.full((2, L), 5))
  assert config.settings["token"] == 5 and "own" not in config.settings


def test_a_window_of_one_token_is_the_block_sampler_with_blocks_of_one(tiny_denoiser, tiny_params):
  prompt = jax.random.randint(jax.random.key(0), (3, 4), 0, 60)
  mask = jnp.ones((3, 4), bool).at[0, 0].set(False)
  ours = gdsd_jax.SamplerConfig(completion_length=L, steps=L, block_length=1, temperature=0.0)
  theirs = dataclasses.replace(ours, kind=EXAMPLE, own=(("window", 1),))
  a, b = (gdsd_jax.sample(tiny_denoiser, tiny_params, prompt, mask, jax.random.key(0), each) for each in (ours, theirs))
  np.testing.assert_array_equal(a.tokens, b.tokens)
  np.testing.assert_allclose(a.confidence, b.confidence, rtol=1e-5)


@pytest.mark.parametrize("old, new, message", [
  ("def own", "own = 3\ndef other", "sampler.kind: own.py:own must be a function, not 3"),
  ("return gdsd_jax.Rollout(tokens", "return (tokens", "own.py, line 5: own.py:own must give a gdsd_jax.Rollout, not"),
  ("jnp.ones(tokens.shape)", "jnp.ones(len(prompt))", "must give confidence that are float32[2, 6], not float32[2]"),
  ("token)", "1.0)", "own.py, line 5: own.py:own must give tokens that are int32[2, 6], not float32[2, 6]"),
  ("token)", "tokn)", "sampler.kind: own.py, line 6: NameError: name 'tokn' is not defined"),
])
def test_mistakes_are_one_line_with_file_and_line(own, old, new, message):
  with pytest.raises(ValueError, match=re.escape(message)) as caught:
    own(old, new)
  assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("token, said", [(413, "the mask, of which none may be left"), (416, "none of 416"),
                                         (-1, "none of 416")])
def test_tokens_that_no_completion_has_are_told_with_file_and_line(own, token, said):
  denoiser, params = gdsd_jax.load_pretrained("tiny")
  generator, config = Generator(denoiser, gdsd_jax.load_tokenizer("tiny")), own(token=token)
  with pytest.raises(ValueError, match=rf"^sampler.kind: own.py, line 5: own.py:own gave the token {token}, {said}$"):
    generator.complete(params, ["a"], (4,), config, jax.random.key(0), 1)
  assert generator.complete(params, ["a"], (4,), own(token=5), jax.random.key(0), 1)[1] == [L]


def recipe(**fields):
  config = base_config()
  config.update_from_flattened_dict({"sampler.kind": EXAMPLE, "masks.kind": "uniform"})
  for name, value in fields.items():
    config.sampler[name] = value
  return config


def test_a_recipe_sets_its_settings_which_evaluations_have_too(monkeypatch):
  config = run_config(recipe(window=2))
  assert config.sampler.own == (("window", 2),)
  with pytest.raises(ValueError, match="sampler.windw: .* no such setting; it has window"):
    run_config(recipe(windw=2))
  with pytest.raises(ValueError, match="'other' is not one of llada, dream, block; one of your own is FILE.py"):
    gdsd_jax.SamplerConfig(kind="other")


def test_masks_are_the_samplers_unless_others_are_asked_for():
  llada, dream = gdsd_jax.SamplerConfig(block_length=64), gdsd_jax.SamplerConfig(kind="dream", alg="origin")
  assert MaskConfig().forward_process(llada) == {"block_length": 64, "remasking": "low_confidence"}
  assert MaskConfig().forward_process(dream) == {"block_length": None, "remasking": "random"}
  assert MaskConfig("uniform").forward_process(llada) == {"block_length": None, "remasking": "random"}
  assert MaskConfig("blocks").forward_process(llada) == {"block_length": None, "remasking": "low_confidence"}
  blocks = MaskConfig("blocks", block_length=8, remasking="random")
  assert blocks.forward_process(llada) == {"block_length": 8, "remasking": "random"}
  with pytest.raises(ValueError, match="masks.block_length: 8 must divide sampler.completion_length, 12"):
    blocks.forward_process(gdsd_jax.SamplerConfig(completion_length=12, steps=12, block_length=4))
  with pytest.raises(ValueError, match="masks.kind: which states .*sliding_window visits is not known here"):
    MaskConfig().forward_process(gdsd_jax.SamplerConfig(kind=EXAMPLE))


def test_uniform_masks_know_nothing_of_blocks_or_confidence():
  """Each token is masked in half of the samples, whatever its place and confidence, as in ESPO's forward process."""
  confidence = jnp.broadcast_to(jnp.arange(8) / 8, (64, 8))
  process = MaskConfig("uniform").forward_process(gdsd_jax.SamplerConfig(completion_length=8, block_length=4))
  masks = np.asarray(rollout_masks(jax.random.key(0), confidence, 32, **process))
  assert np.abs(masks.mean(axis=(0, 1)) - 0.5).max() < 0.05  # the standard error is 0.011
