"""Checkpoints: every bit back, which ones are kept, and what a disk that fails says."""

import os
import subprocess
import sys

from absl import logging as absl_logging
from conftest import files_of_at_most
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from gdsd_jax.diffusion.config import Rollout
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.parallel.mesh import make_mesh
from gdsd_jax.runs.checkpoints import CheckpointError, Checkpoints
from gdsd_jax.runs.optimizer import make_optimizer, OptimizerConfig
from gdsd_jax.runs.state import init_state, TrainState

RUN = {"config": {"seed": 3, "nested": {"rate": 1e-5, "none": None, "list": [1, 2]}}, "data_position": 41}


def small_state(step, value=0.0):
  """A state of a few bytes, for tests of which checkpoints are kept."""
  return TrainState(
    step=jnp.int32(step), params={"weight": jnp.full(3, value)}, frozen={}, opt_state=(), reference=None,
    key=jax.random.key(step),
  )


def full_state(config, dtype="float32", mesh=None, seed=0, with_reference=True, moments_dtype="float32"):
  """A state as in training, with random values in every leaf."""
  mesh = mesh or make_mesh(devices=jax.devices()[:1])
  denoiser, optimizer = Denoiser(config, dtype, dtype), make_optimizer(OptimizerConfig(moments_dtype=moments_dtype), 1)
  params = jax.tree.map(lambda spec: jnp.zeros(spec.shape, spec.dtype), denoiser.abstract_params())
  state = init_state(denoiser, params, optimizer, seed, with_reference, mesh)
  rng = np.random.default_rng(seed)

  def random(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return leaf
    return jax.device_put(jnp.asarray(100 * rng.normal(size=leaf.shape), leaf.dtype), leaf.sharding)

  return jax.tree.map(random, state).replace(step=jax.device_put(jnp.int32(7), state.step.sharding))


def host(state):
  """(dtype, bytes) of every leaf."""
  plain = state.replace(key=jax.random.key_data(state.key))
  return jax.tree.map(lambda leaf: (leaf.dtype.name, leaf.shape, np.asarray(leaf).tobytes()), plain)


def save(directory, states, keep=2, rewards=None, run=None):
  """Saves states, each with its evaluated reward or None, and waits for the disk."""
  checkpoints = Checkpoints(directory, keep)
  for state, reward in zip(states, rewards or [None] * len(states)):
    checkpoints.save(state, run or RUN, reward)
  checkpoints.close()


def restored(directory, like):
  checkpoints = Checkpoints(directory, 2)
  state, _ = checkpoints.restore(like, check=anything)
  checkpoints.close()
  return state


def anything(run):
  """Accepts the JSON values of any run."""


def kept(directory):
  return sorted(int(path.name) for path in directory.iterdir())


def one_line(caught):
  message = str(caught.value)
  assert "\n" not in message
  return message


@pytest.fixture
def directory(tmp_path):
  return tmp_path / "run" / "checkpoints"


# Every bit back.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_state_comes_back_bit_for_bit(directory, tiny_config, dtype):
  state = full_state(tiny_config, dtype)
  save(directory, [state])
  assert host(restored(directory, full_state(tiny_config, dtype, seed=1))) == host(state)


def test_a_state_with_a_first_moment_in_bfloat16_comes_back_on_another_mesh(directory, tiny_config):
  state = full_state(tiny_config, mesh=make_mesh(1, 2, 2, jax.devices()[:4]), moments_dtype="bfloat16")
  save(directory, [state])
  again = restored(directory, full_state(tiny_config, seed=1, moments_dtype="bfloat16"))
  assert host(again) == host(state)
  names = {leaf.dtype.name for leaf in jax.tree.leaves(again.opt_state) if leaf.ndim}
  assert names == {"float32", "bfloat16"}


def test_rollouts_that_the_next_iteration_trains_on_come_back(directory):
  ahead = Rollout(jnp.arange(6).reshape(2, 3), jnp.linspace(0.0, 1.0, 6).reshape(2, 3))
  save(directory, [small_state(1).replace(ahead=ahead)])
  like = small_state(0).replace(ahead=jax.tree.map(jnp.zeros_like, ahead))
  jax.tree.map(np.testing.assert_array_equal, restored(directory, like).ahead, ahead)


def test_a_state_without_a_reference_comes_back(directory, tiny_config):
  state = full_state(tiny_config, with_reference=False)
  save(directory, [state])
  assert host(restored(directory, full_state(tiny_config, seed=1, with_reference=False))) == host(state)


def test_the_random_key_draws_what_it_would_have_drawn(directory):
  state = small_state(3)
  save(directory, [state])
  key = restored(directory, small_state(0)).key
  np.testing.assert_array_equal(jax.random.normal(key, (4,)), jax.random.normal(state.key, (4,)))


def test_a_state_of_one_mesh_is_restored_onto_another(directory, tiny_config):
  state = full_state(tiny_config, mesh=make_mesh(fsdp=2, tensor=2, devices=jax.devices()[:4]))
  save(directory, [state])
  like = full_state(tiny_config, mesh=make_mesh(data=2, devices=jax.devices()[:2]), seed=1)
  again = restored(directory, like)
  assert host(again) == host(state)
  assert jax.tree.map(lambda leaf: leaf.sharding, again) == jax.tree.map(lambda leaf: leaf.sharding, like)


def test_the_values_of_the_run_come_back(directory):
  save(directory, [small_state(1)])
  checkpoints = Checkpoints(directory, 2)
  assert checkpoints.restore(small_state(0), anything)[1] == RUN
  checkpoints.close()


def test_a_save_keeps_the_values_of_its_moment(directory):
  """The next iteration donates the state's buffers, and changes them, while the disk is still being written."""
  state = small_state(1, 5.0)
  checkpoints = Checkpoints(directory, 2)
  checkpoints.save(state, RUN, None)
  overwritten = jax.jit(lambda x: x * 0, donate_argnums=0)(state.params["weight"])
  checkpoints.close()
  np.testing.assert_array_equal(overwritten, 0.0)
  np.testing.assert_array_equal(restored(directory, small_state(0)).params["weight"], 5.0)


# Which ones are kept.


def test_a_program_is_not_warned_of_a_save_without_an_evaluation(directory, monkeypatch):
  told = []
  monkeypatch.setattr(absl_logging.get_absl_logger(), "handle", lambda record: told.append(record.getMessage()))
  before = absl_logging.get_verbosity()
  try:
    absl_logging.set_verbosity(absl_logging.WARNING)  # as where nobody has called log_to_stdout
    save(directory, [small_state(1)])
    assert told == [] and absl_logging.get_verbosity() == absl_logging.WARNING
  finally:
    absl_logging.set_verbosity(before)


def test_a_new_run_has_nothing_to_restore(directory):
  checkpoints = Checkpoints(directory, 2)
  assert checkpoints.restore(small_state(0), anything) is None
  checkpoints.close()


def test_the_newest_is_restored(directory):
  save(directory, [small_state(step, step) for step in (1, 2, 10)])
  np.testing.assert_array_equal(restored(directory, small_state(0)).params["weight"], 10.0)


@pytest.mark.parametrize("keep, steps", [(1, [5]), (2, [4, 5]), (9, [1, 2, 3, 4, 5])])
def test_the_latest_ones_are_kept(directory, keep, steps):
  save(directory, [small_state(step) for step in range(1, 6)], keep)
  assert kept(directory) == steps


def test_the_best_evaluated_one_is_kept_besides(directory):
  save(directory, [small_state(step) for step in range(1, 7)], 2, [0.1, None, 0.9, 0.3, None, 0.2])
  assert kept(directory) == [3, 5, 6]


def test_a_best_one_that_was_surpassed_is_not_kept(directory):
  save(directory, [small_state(step) for step in range(1, 6)], 1, [0.1, 0.5, 0.9, None, None])
  assert kept(directory) == [3, 5]


def test_the_best_one_is_kept_after_resuming_too(directory):
  save(directory, [small_state(step) for step in range(1, 4)], 1, [0.1, 0.9, 0.3])
  save(directory, [small_state(step) for step in range(4, 7)], 1, [0.2, None, 0.4])
  assert kept(directory) == [2, 6]


@pytest.mark.parametrize("left_behind", ["7.orbax-checkpoint-tmp", "7.orbax-checkpoint-tmp-1234567"])
def test_what_a_killed_save_left_behind_is_no_checkpoint(directory, left_behind):
  save(directory, [small_state(step) for step in (3, 7)])
  os.rename(directory / "7", directory / left_behind)
  assert restored(directory, small_state(0)).step == 3


def test_the_step_of_a_killed_save_can_be_saved_again(directory):
  save(directory, [small_state(step) for step in (3, 7)])
  os.rename(directory / "7", directory / "7.orbax-checkpoint-tmp")
  save(directory, [small_state(7, 2.0)])
  np.testing.assert_array_equal(restored(directory, small_state(0)).params["weight"], 2.0)


# What fails.


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path):
  (tmp_path / "file").write_text("not a folder")
  with pytest.raises(CheckpointError) as caught:
    Checkpoints(tmp_path / "file" / "checkpoints", 2)
  assert str(tmp_path / "file" / "checkpoints") in one_line(caught)


def test_a_folder_that_cannot_be_written_is_told_in_one_line_and_ends_the_process(directory):
  """In a process of its own: threads of Orbax that wait for what will never come would keep it from ending."""
  program = """
import pathlib, shutil, sys
import jax, jax.numpy as jnp
from gdsd_jax.runs.checkpoints import CheckpointError, Checkpoints
from gdsd_jax.runs.state import TrainState
directory = pathlib.Path(sys.argv[1])
checkpoints = Checkpoints(directory, 2)
shutil.rmtree(directory)
directory.write_text("not a folder")
try:
  checkpoints.save(TrainState(jnp.int32(1), jnp.ones(3), {}, (), None, jax.random.key(0)), {}, None)
  checkpoints.close()
except CheckpointError as error:
  sys.exit(f"error: {error}")
"""
  result = subprocess.run(
    [sys.executable, "-c", program, str(directory)], env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True, text=True, timeout=300,  # on a busy machine, too
  )
  assert result.returncode == 1
  assert result.stderr.splitlines()[-1].startswith(f"error: checkpoints: cannot save to {directory}")


@pytest.fixture
def after_a_full_disk(directory, tiny_config):
  """The error of a save that met a full disk after an earlier one was whole."""
  save(directory, [full_state(tiny_config)])
  state = full_state(tiny_config, seed=1).replace(step=jnp.int32(8))
  with files_of_at_most(2000), pytest.raises(CheckpointError) as caught:
    save(directory, [state])
  return caught


def test_a_full_disk_is_told_in_one_line_that_names_the_folder(directory, after_a_full_disk):
  message = one_line(after_a_full_disk)
  assert message.startswith(f"checkpoints: cannot save to {directory}")


def test_a_full_disk_is_told_with_the_systems_own_words(after_a_full_disk):
  assert "File too large" in str(after_a_full_disk.value)


def test_a_full_disk_leaves_the_earlier_checkpoint_whole(directory, tiny_config, after_a_full_disk):
  state = full_state(tiny_config)
  assert host(restored(directory, full_state(tiny_config, seed=2))) == host(state)


def truncate(folder, share=0.0):
  """Cuts every file in the folder to a share of its length."""
  for file in folder.rglob("*"):
    if file.is_file():
      os.truncate(file, int(share * file.stat().st_size))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("item", ["state", "run"])
def test_a_damaged_newest_checkpoint_is_skipped_for_the_one_before_and_said_so(directory, item, share, caplog):
  save(directory, [small_state(step, step) for step in (3, 4)])
  truncate(directory / "4" / item, share)
  state = restored(directory, small_state(0))
  np.testing.assert_array_equal(state.params["weight"], 3.0)
  [record] = [record for record in caplog.records if record.name.startswith("gdsd_jax")]
  assert record.getMessage().startswith("SKIPPED the checkpoint of step 4, which cannot be used")
  assert f"put aside as {directory / 'damaged-4'}" in record.getMessage()
  assert (directory / "damaged-4" / item).is_dir()


@pytest.mark.parametrize("content", ["", "{", "{}", '{"reward": null}'])
def test_a_checkpoint_whose_reward_is_damaged_is_used_without(directory, content, caplog):
  """Orbax reads the rewards of all when it starts, and raises what its libraries raise."""
  save(directory, [small_state(step, step) for step in (3, 4)], rewards=[1.0, 2.0])
  (directory / "4" / "metrics" / "metrics").write_text(content)
  state = restored(directory, small_state(0))
  np.testing.assert_array_equal(state.params["weight"], 4.0)
  assert "the evaluation's reward in the checkpoint of step 4 cannot be read" in caplog.text
  assert (directory / "damaged-metrics-4" / "metrics").is_file()


def test_the_cause_of_damage_is_short(directory, caplog):
  """TensorStore tells how it was asked to read an array, in a page of JSON."""
  save(directory, [small_state(step, step) for step in (3, 4)])
  (directory / "4" / "state" / "manifest.ocdbt").write_bytes(b"")
  restored(directory, small_state(0))
  assert "Error decoding manifest" in caplog.text and "manifest.ocdbt" in caplog.text
  assert "tensorstore_spec" not in caplog.text and "{" not in caplog.text


def test_the_step_of_a_damaged_checkpoint_can_be_saved_again(directory):
  save(directory, [small_state(step, step) for step in (3, 4)])
  truncate(directory / "4")
  checkpoints = Checkpoints(directory, 2)
  checkpoints.restore(small_state(0), anything)
  checkpoints.save(small_state(4, 5.0), RUN, None)
  checkpoints.close()
  np.testing.assert_array_equal(restored(directory, small_state(0)).params["weight"], 5.0)


def test_a_checkpoint_that_cannot_be_read_now_is_not_taken_for_damaged(directory, monkeypatch):
  save(directory, [small_state(step) for step in (3, 4)])
  checkpoints = Checkpoints(directory, 2)

  def unavailable(*_, **__):
    raise ValueError("UNAVAILABLE: the store does not answer")

  monkeypatch.setattr(ocp.Checkpointer, "restore", unavailable)
  with pytest.raises(CheckpointError, match="step 4 in .* cannot be read now"):
    checkpoints.restore(small_state(0), anything)
  checkpoints.close()
  assert kept(directory) == [3, 4]


def test_a_checkpoint_of_another_run_is_refused_not_skipped(directory):
  save(directory, [small_state(step) for step in (3, 4)])
  checkpoints = Checkpoints(directory, 2)

  def refuse(run):
    raise ValueError("another run's")

  with pytest.raises(ValueError, match="another run's"):
    checkpoints.restore(small_state(0), refuse)
  checkpoints.close()
  assert kept(directory) == [3, 4]


@pytest.mark.parametrize("item", ["state", "run"])
def test_checkpoints_that_are_all_damaged_are_told_in_one_line_and_left_alone(directory, item):
  save(directory, [small_state(step) for step in (3, 4)])
  for step in ("3", "4"):
    truncate(directory / step / item)
  checkpoints = Checkpoints(directory, 2)
  with pytest.raises(CheckpointError) as caught:
    checkpoints.restore(small_state(0), anything)
  assert f"none in {directory} can be used (step 4: " in one_line(caught)
  assert "delete the folder" in one_line(caught)
  checkpoints.close()
  assert kept(directory) == [3, 4]


def test_a_checkpoint_of_another_model_is_told_in_one_line(directory, tiny_config):
  save(directory, [small_state(4)])
  checkpoints = Checkpoints(directory, 2)
  with pytest.raises(CheckpointError) as caught:
    checkpoints.restore(full_state(tiny_config), anything)
  assert f"none in {directory} can be used (step 4: " in one_line(caught)
  checkpoints.close()
