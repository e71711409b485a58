"""Numbers that cannot be are refused before anything is loaded, and those that no recipe comes near are warned of."""

from commands import run_command
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_train import screen, small_config  # noqa: F401  (a fixture)

from gdsd_jax.checks import require_seed
from gdsd_jax.diffusion.forward import rollout_masks
from gdsd_jax.huggingface.folder import load_config, resolve_path
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.models.lora import LoraConfig
from gdsd_jax.parallel.mesh import make_mesh
from gdsd_jax.training import size

MODEL = load_config(resolve_path("tiny"))


@pytest.fixture
def mesh():
  return make_mesh(devices=jax.local_devices()[:1])


def test_what_a_step_holds_is_what_its_arrays_take(mesh):
  config = small_config(**{"objective.num_mc": 3, "objective.num_iterations": 2})
  held = list(size.least_held(config, MODEL, shards=1).values())
  rows, length = config.rollouts_per_step, config.sampler.completion_length
  masks = rollout_masks(jax.random.key(0), jnp.zeros((rows, length), jnp.float32), 3)
  assert held[0] == 2 * masks.nbytes
  hidden = np.zeros((rows, config.rollouts.prompt_buckets[0] + length, MODEL.hidden_size), np.float32)
  assert held[1] == hidden.nbytes
  assert list(size.least_held(config, MODEL, shards=4).values()) == [number // 4 for number in held]
  split = list(size.least_held(config, MODEL, shards=2, parts=2).values())
  assert split == [held[0] // 2, *(number // 4 for number in held[1:])]


def test_a_run_of_usual_size_passes_without_a_word(mesh, screen):  # noqa: F811
  size.check_size(small_config(), MODEL, mesh)
  assert not screen.records


@pytest.mark.parametrize("changes, message", [
  ({"group_size": 10**6}, "^group_size × prompts_per_step / sampler.microbatches: the rollouts of a step take"),
  ({"eval.batch_size": 10**8}, "^eval.batch_size: the rollouts of a step take"),
  ({"objective.num_mc": 1024, "objective.num_iterations": 2**20}, "^group_size × prompts_per_step × objective.num_mc"),
  ({"sampler.completion_length": 1024, "sampler.block_length": 1024, "sampler.steps": 1024},
   "^sampler.prompt_buckets, sampler.completion_length: 1064 tokens exceed the 256 positions of tiny"),
])
def test_what_no_device_can_hold_is_refused(mesh, monkeypatch, changes, message):
  monkeypatch.setattr(size, "device_memory", lambda mesh: 10**10)
  with pytest.raises(ValueError, match=message) as caught:
    size.check_size(small_config(**changes), MODEL, mesh)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changes, words", [
  ({"objective.num_mc": 65}, "WARNING: objective.num_mc: each update scores every rollout in 65 masked states"),
  ({"group_size": 2**14}, "WARNING: group_size × prompts_per_step: a step samples 32768 rollouts"),
])
def test_what_no_recipe_comes_near_is_warned_of(mesh, screen, changes, words):  # noqa: F811
  size.check_size(small_config(**changes), MODEL, mesh)
  assert words in screen.text


@pytest.mark.parametrize("targets, rank, most", [
  (("q", "up"), 96, None), (("q", "up"), 97, 96), (("down",), 10_000, 96),
])
def test_a_rank_above_the_width_of_all_adapted_projections_is_refused(targets, rank, most):
  lora = LoraConfig(rank=rank, targets=targets)
  if most is None:
    Denoiser(MODEL, lora=lora)
    return
  with pytest.raises(ValueError, match=f"^model.lora.rank: {rank} is more than the {most} of the widest"):
    Denoiser(MODEL, lora=lora)


@pytest.mark.parametrize("seed", [0, 2**32 - 1, np.int64(7)])
def test_seeds_of_32_bits_are_taken(seed):
  require_seed("seed", seed)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63, 2**64, 1.0, True, "1", None])
def test_other_seeds_are_refused(seed):
  with pytest.raises(ValueError, match="^seed: must be a whole number from 0 to 4294967295, not "):
    require_seed("seed", seed)


@pytest.mark.slow
def test_no_memory_is_one_line():
  result = run_command("launch/benchmark.py", "--batch=1000000000", "--only=training")
  assert result.returncode == 1
  [line] = result.stderr.splitlines()
  assert line.startswith("error: out of memory: Unable to allocate ") and "smaller parts need less" in line
