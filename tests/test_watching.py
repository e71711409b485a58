"""A sampler that is watched: it gives the same tokens, tells its states in order, and ends where it is told to."""

import dataclasses

from conftest import all_devices, slow
import jax
import numpy as np
import pytest

import gdsd_jax
from gdsd_jax.diffusion.blockwise import sample
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.parallel.mesh import make_mesh
from gdsd_jax.parallel.rows import spread

CONFIG = SamplerConfig(completion_length=8, steps=8, block_length=4, temperature=1.0)
PROMPT = np.arange(12).reshape(3, 4) + 1


class Watching:
  """Keeps what it sees, and wants no step from `end` on."""

  def __init__(self, end=None):
    self.seen, self.end = [], end

  def __call__(self, step, tokens, confidence):
    self.seen.append((int(step), tokens.copy(), confidence.copy()))
    return self.end is None or step < self.end


def run(denoiser, params, config, watcher=None, prompt=PROMPT):
  return jax.tree.map(np.asarray, sample(denoiser, params, prompt, None, jax.random.key(0), config, watcher=watcher))


SAMPLERS = [
  {}, slow({"early_stop": True}), slow({"cache": "dual"}), slow({"cache": "prefix", "threshold": 0.9}),
  slow({"threshold": 0.02}), slow({"cfg_scale": 1.0}), slow({"kind": "dream", "block_length": None}),
  slow({"kind": "dream", "cache": "prefix", "alg": "maskgit_plus", "factor": 1.0}),
]


@pytest.mark.parametrize("fields", SAMPLERS)
def test_a_watched_sampler_gives_the_same_and_shows_each_state_once(tiny_denoiser, tiny_params, fields):
  config, watching = dataclasses.replace(CONFIG, **fields), Watching()
  mask_id = tiny_denoiser.config.mask_token_id
  alone, watched = (run(tiny_denoiser, tiny_params, config, watcher) for watcher in (None, watching))
  jax.tree.map(np.testing.assert_array_equal, watched, alone)
  steps = [step for step, _, _ in watching.seen]
  assert steps == sorted(set(steps)) and set(np.unique(alone.steps)) <= {*steps, config.most_steps}
  for step, tokens, confidence in watching.seen:  # what was unmasked before the step, and nothing else
    came = alone.steps < step
    np.testing.assert_array_equal(tokens, np.where(came, alone.tokens, mask_id))
    np.testing.assert_array_equal(confidence, np.where(came, alone.confidence, 0))


@pytest.fixture(scope="module")
def in_blocks(tiny_denoiser, tiny_params):
  """(denoiser, params) that attend from block to block."""
  config = dataclasses.replace(tiny_denoiser.config, block_length=4, positions_skip_padding=True)
  return gdsd_jax.Denoiser(config), tiny_params


@pytest.mark.parametrize("fields", [{}, slow({"cache": "none"}), slow({"threshold": 0.02})])
def test_a_watched_block_sampler_shows_each_state_of_the_completions_and_ends_where_it_is_told(in_blocks, fields):
  """Prompts of 5 tokens: a block begins with the last one, and the last block exceeds the completion."""
  config = dataclasses.replace(CONFIG, kind="block", **{"cache": "exact", **fields})
  mask_id, watching, prompt = in_blocks[0].config.mask_token_id, Watching(), np.arange(15).reshape(3, 5) + 1
  alone, watched = (run(*in_blocks, config, watcher, prompt) for watcher in (None, watching))
  jax.tree.map(np.testing.assert_array_equal, watched, alone)
  steps = [step for step, _, _ in watching.seen]
  assert steps == sorted(set(steps)) and set(np.unique(alone.steps)) <= set(steps)
  for step, tokens, confidence in watching.seen:
    came = alone.steps < step
    np.testing.assert_array_equal(tokens, np.where(came, alone.tokens, mask_id))
    np.testing.assert_array_equal(confidence, np.where(came, alone.confidence, 0))
  stopped = run(*in_blocks, config, Watching(end=3), prompt)
  np.testing.assert_array_equal(stopped.tokens, np.where(alone.steps < 3, alone.tokens, mask_id))


@pytest.mark.slow
def test_a_watched_sampler_that_edits_shows_what_it_replaces(in_blocks):
  config = dataclasses.replace(CONFIG, kind="block", cache="exact", threshold=0.02, editing_threshold=0.01)
  watching = Watching()
  alone, watched = (run(*in_blocks, config, watcher) for watcher in (None, watching))
  jax.tree.map(np.testing.assert_array_equal, watched, alone)
  for step, tokens, _ in watching.seen:  # what was written last before a step is there, whatever was there first
    np.testing.assert_array_equal(tokens[alone.steps < step], alone.tokens[alone.steps < step])


@pytest.mark.parametrize("fields", SAMPLERS[1:])
def test_a_watcher_that_wants_no_more_leaves_the_rest_masked(tiny_denoiser, tiny_params, fields):
  config, watching = dataclasses.replace(CONFIG, **fields), Watching(end=3)
  alone, stopped = (run(tiny_denoiser, tiny_params, config, watcher) for watcher in (None, watching))
  came = alone.steps < 3
  mask_id = tiny_denoiser.config.mask_token_id
  np.testing.assert_array_equal(stopped.tokens, np.where(came, alone.tokens, mask_id))


def test_nobody_pays_for_a_watcher_who_is_not_there(tiny_denoiser, tiny_params):
  def program(watcher):
    traced = lambda params: sample(tiny_denoiser, params, PROMPT, None, jax.random.key(0), CONFIG, watcher=watcher)
    return str(jax.make_jaxpr(traced)(tiny_params))

  assert "io_callback" not in program(None) and "io_callback" in program(Watching())


@pytest.mark.slow
def test_rows_on_several_devices_are_shown_whole():
  with all_devices():
    mesh = make_mesh(2, 2, 2)
    denoiser, params = gdsd_jax.load_pretrained("tiny", mesh=mesh)
    prompt, watching = spread(mesh, 4, np.tile(PROMPT[:1], (4, 1))), Watching()
    alone, watched = (run(denoiser, params, CONFIG, watcher, prompt) for watcher in (None, watching))
  np.testing.assert_array_equal(watched.tokens, alone.tokens)
  assert len(watching.seen) == 8
  step, tokens, _ = watching.seen[-1]
  np.testing.assert_array_equal(tokens, np.where(alone.steps < step, alone.tokens, denoiser.config.mask_token_id))


def test_a_sampler_of_ones_own_is_not_watched(tiny_denoiser, tiny_params, tmp_path):
  (tmp_path / "own.py").write_text("def mine(denoiser, params, prompt, prompt_mask, key, config):\n  pass\n")
  config = dataclasses.replace(CONFIG, kind=f"{tmp_path}/own.py:mine")
  with pytest.raises(ValueError, match="^watcher: .*own.py:mine is a sampler of your own"):
    run(tiny_denoiser, tiny_params, config, Watching())
