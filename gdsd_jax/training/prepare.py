"""What an RL run starts from: problems, model, sampler, optimizer and state, loaded and checked once."""

from collections.abc import Mapping, Sequence
import dataclasses
import logging
from typing import Any

from jax.sharding import Mesh
import numpy as np
import optax

from gdsd_jax.checks import require, require_positions
from gdsd_jax.generation.rollout import RolloutSampler
from gdsd_jax.huggingface.tokenizer import load_tokenizer
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.parallel.mesh import make_mesh
from gdsd_jax.runs.config import RunConfig, validate_mesh
from gdsd_jax.runs.optimizer import make_optimizer
from gdsd_jax.runs.state import init_state, TrainState
from gdsd_jax.runs.weights import load_model
from gdsd_jax.tasks import get_task

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Prepared:
  mesh: Mesh
  denoiser: Denoiser
  sampler: RolloutSampler
  train: Sequence[Mapping[str, Any]]  # examples whose prompts fit the largest bucket
  held_out: Sequence[Mapping[str, Any]]  # those of the test split that are evaluated while training
  optimizer: optax.GradientTransformation
  state: TrainState


def prepare(config: RunConfig) -> Prepared:
  """Raises ValueError or OSError, one line with the cause, before anything is compiled."""
  mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
  validate_mesh(config, mesh)
  task = get_task(config.task.name, **config.task.options)
  train, test = task.examples("train"), task.examples("test")
  require(len(train) > 0 and len(test) > 0, "task.name",
          f"{config.task.name} has an empty split ({len(train)} train, {len(test)} test)")

  denoiser, params = load_model(config.model, config.seed, mesh)
  tokenizer, buckets = load_tokenizer(config.model.path, denoiser.config), config.rollouts.prompt_buckets
  longest = buckets[-1] + config.sampler.completion_length
  said = f"sampler.prompt_buckets, sampler.completion_length: {longest} tokens"
  require_positions(said, longest, denoiser.config.max_positions, config.model.path)
  sampler = RolloutSampler(denoiser, tokenizer, task, config.sampler, buckets, mesh)
  train, test = _fitting(sampler, train, "train"), _fitting(sampler, test, "test")
  held_out = [test[i] for i in range(min(config.eval.num_examples, len(test)))]
  optimizer = make_optimizer(config.optimizer, config.updates)
  state = init_state(denoiser, params, optimizer, config.seed, config.objective.beta > 0, mesh)
  return Prepared(mesh, denoiser, sampler, train, held_out, optimizer, state)


def _fitting(sampler: RolloutSampler, examples, split: str):
  """The examples whose prompts fit the largest bucket, as the official code filters them; says how many do not."""
  try:
    lengths, limit = sampler.prompt_lengths(examples), sampler.prompt_buckets[-1]
  except ValueError as error:  # a problem whose text forges the chat format
    raise ValueError(f"task.{split}_source: {error}") from None
  fitting = np.flatnonzero(lengths <= limit)
  require(len(fitting) > 0, "sampler.prompt_buckets",
          f"none of the {len(examples)} {split} prompts fits {limit} tokens; the shortest has {lengths.min()}")
  if len(fitting) == len(examples):
    return examples
  _log.info(
    "%d of %d %s problems are left out: their prompts exceed %d tokens (sampler.prompt_buckets), up to %d",
    len(examples) - len(fitting), len(examples), split, limit, lengths.max(),
  )
  return [examples[int(i)] for i in fitting]
