"""Whether the rollouts of a step can be held at all, which is known before anything is loaded or compiled."""

import contextlib
import logging
import os
from pathlib import Path

import jax
from jax.sharding import Mesh

from gdsd_jax.checks import require, require_positions
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.parallel.mesh import split_into
from gdsd_jax.runs.config import RunConfig

_log = logging.getLogger(__name__)

# What no published recipe comes near: they have 2 mask samples, and some hundred rollouts.
_MANY_SAMPLES, _MANY_ROLLOUTS = 64, 2**14


def check_size(config: RunConfig, model: DenoiserConfig, mesh: Mesh) -> None:
  """Raises ValueError, one line, where sequences exceed the model's positions, or a step's rollouts a device's memory.

  Only the least that they take is counted; launch/compile.py tells all of it. Numbers that fit, but that no recipe
  comes near, are warned of.
  """
  longest = config.rollouts.prompt_buckets[-1] + config.sampler.completion_length
  said = f"sampler.prompt_buckets, sampler.completion_length: {longest} tokens"
  require_positions(said, longest, model.max_positions, config.model.path)
  room = device_memory(mesh)
  for fields, held in least_held(config, model, split_into("batch", mesh), split_into("tokens", mesh)).items():
    require(held <= room, fields, f"the rollouts of a step take {held / 1e9:,.1f} GB of each device at least, which has"
                                  f" {room / 1e9:,.1f} GB; lower one of them")
  samples, rollouts = config.num_mc, config.rollouts_per_step
  if samples > _MANY_SAMPLES:
    _log.warning("WARNING: objective.num_mc: each update scores every rollout in %d masked states; published recipes"
                 " have 2", samples)
  if rollouts > _MANY_ROLLOUTS:
    _log.warning("WARNING: group_size × prompts_per_step: a step samples %d rollouts; published recipes have hundreds",
                 rollouts)


def least_held(config: RunConfig, model: DenoiserConfig, shards: int, parts: int = 1) -> dict[str, int]:
  """Fields that decide on it -> bytes of a device for what a step has in memory together, without which it cannot be.

  That are the mask samples of all updates; predictions of all steps where they are remembered; and one hidden state of
  each token of the rollouts that are sampled, or evaluated, together. The batch is split into so many shards, and what
  the network computes of a shard into so many parts.
  """
  length, shortest_prompt = config.sampler.completion_length, config.rollouts.prompt_buckets[0]
  draws = config.distillation.num_iterations if config.masks.fresh else 1
  masks = config.rollouts_per_step * config.num_mc * draws * length
  held = {"group_size × prompts_per_step × objective.num_mc": masks // shards}
  if "predictions" in config.objective.needs:  # a token and its probability
    held["group_size × prompts_per_step × sampler.steps × sampler.completion_length"] = (
      8 * config.rollouts_per_step * config.sampler.most_steps * length // shards)
  if not config.sampler.is_own:  # which may go through them as it likes
    hidden = (shortest_prompt + length) * model.hidden_size * (2 if config.model.dtype == "bfloat16" else 4)
    together = config.rollouts_per_step // config.rollouts.microbatches
    held["group_size × prompts_per_step / sampler.microbatches"] = together * hidden // (shards * parts)
    held["eval.batch_size"] = config.eval.batch_size * hidden // (shards * parts)
  return held


def device_memory(mesh: Mesh) -> int:
  """Bytes of a device of this process: as its allocator has it, or its share of what the machine lets a process use."""
  local = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
  if limit := (local[0].memory_stats() or {}).get("bytes_limit"):
    return limit
  machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  with contextlib.suppress(OSError, ValueError):  # no limit is the word "max"
    machine = min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text()))
  return machine // len(local)
