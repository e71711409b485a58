"""What an RL run starts from: problems, model, sampler, optimizer and state, loaded and checked once."""

from collections.abc import Mapping, Sequence
import dataclasses
import logging
from typing import Any

from etils import epath
from jax.sharding import Mesh
import numpy as np
import optax

from gdsd_jax import own_code
from gdsd_jax.checks import require
from gdsd_jax.diffusion.own import try_out as try_out_sampler
from gdsd_jax.generation.rollout import RolloutSampler
from gdsd_jax.huggingface.tokenizer import load_tokenizer
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.objectives.own import try_out as try_out_objective
from gdsd_jax.parallel.mesh import make_mesh
from gdsd_jax.runs.config import RunConfig
from gdsd_jax.runs.data import warn_of_shared
from gdsd_jax.runs.fit import validate_mesh, validate_training
from gdsd_jax.runs.optimizer import make_optimizer
from gdsd_jax.runs.provenance import check_inputs, provenance_of
from gdsd_jax.runs.routers import said_of_routers
from gdsd_jax.runs.state import init_state, TrainState
from gdsd_jax.runs.weights import load_model
from gdsd_jax.tasks import get_task, train_and_validation, try_out
from gdsd_jax.training.size import check_size
from gdsd_jax.training.updates import drawing_of
from gdsd_jax.waiting import waiting

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Prepared:
  mesh: Mesh
  denoiser: Denoiser
  sampler: RolloutSampler
  train: Sequence[Mapping[str, Any]]  # examples whose prompts fit the largest bucket
  held_out: Sequence[Mapping[str, Any]]  # those of the validation split that are evaluated while training
  optimizer: optax.GradientTransformation
  state: TrainState
  provenance: Mapping[str, Any]


def prepare(config: RunConfig, workdir: epath.Path, allow_changed_inputs: bool) -> Prepared:
  """What a run in `workdir` starts from, whose inputs must be those that it was begun with, unless others are allowed.

  Raises ValueError or OSError, one line with the cause, before anything is compiled.
  """
  mesh = make_mesh(**vars(config.mesh))
  validate_mesh(config, mesh)
  architecture = config.model.architecture
  validate_training(config, architecture, config.model.path)
  check_size(config, architecture, mesh)
  task = get_task(config.task.made or config.task.name, **config.task.options)
  with waiting(f"preparing the problems of {task.name}"):
    train, validation = train_and_validation(task, config.eval.num_examples)
  drawing = drawing_of(config, config.rollouts.prompt_buckets[-1])
  length = config.sampler.completion_length
  try_out_objective(config.objective, config.rollouts_per_step, config.group_size, length, drawing,
                    config.sampler.top_k or 1, architecture)
  knows_right = try_out(task, train)
  require(knows_right or not config.distillation.filters_groups, "objective.least_accuracy",
          f"needs a task that knows right from wrong, which {task.name} does not")
  given = [config.task.made, *(one for one in config.task.options.get("rewards", ()) if not isinstance(one, str))]
  provenance = provenance_of(config.model, {"training data": train, "validation data": validation}, given)
  provenance = check_inputs(workdir, provenance, allow_changed_inputs)
  denoiser, params = load_model(config.model, config.seed, mesh)
  if said := said_of_routers(denoiser):
    _log.info("%s", said)
  tokenizer, buckets = load_tokenizer(config.model.folder, denoiser.config), config.rollouts.prompt_buckets
  try_out_sampler(denoiser, config.sampler, config.rollouts_per_step // config.rollouts.microbatches, buckets[-1])
  sampler = RolloutSampler(denoiser, tokenizer, task, config.sampler, buckets, mesh, config.remembered)
  skips = config.task.options.get("bad_rows") == "skip"
  (train, asked), (validation, _) = (_fitting(sampler, examples, split, skips)
                                     for examples, split in ((train, "train"), (validation, "validation")))
  held_out = [validation[i] for i in range(min(config.eval.num_examples, len(validation)))]
  others = "its examples('validation')" if own_code.is_own(config.task.name) else "task.validation_source"
  warn_of_shared(asked, sampler.prompts(held_out), "problems", others)
  optimizer = make_optimizer(config.optimizer, config.updates)
  state = init_state(denoiser, params, optimizer, config.seed, config.objective.needs_reference, mesh)
  return Prepared(mesh, denoiser, sampler, train, held_out, optimizer, state, provenance)


def _fitting(sampler: RolloutSampler, examples, split: str, skips: bool):
  """(examples whose prompts fit the largest bucket, all prompts); says how many do not. The official code cuts these.

  An example that no prompt can be made of, because its text forges the chat format, is refused or left out, too.
  """
  limit = sampler.prompt_buckets[-1]
  with waiting(f"measuring the prompts of {len(examples)} {split} problems"):
    try:
      prompts = sampler.prompts(examples)
    except ValueError as error:
      told = str(error) if sampler.task.is_own else f"task.{split}_source: {error}"
      askable = [example for example in examples if _can_be_asked(sampler, example)] if skips else []
      if not askable:
        raise ValueError(told) from None
      _log.info("%d of %d %s problems cannot be asked and are left out, the first: %s", len(examples) - len(askable),
                len(examples), split, error)
      examples, prompts = askable, sampler.prompts(askable)
    lengths = sampler.prompt_lengths(prompts)
  fitting = np.flatnonzero(lengths <= limit)
  require(len(fitting) > 0, "sampler.prompt_buckets",
          f"none of the {len(examples)} {split} prompts fits {limit} tokens; the shortest has {lengths.min()}")
  if len(fitting) == len(examples):
    return examples, prompts
  _log.info(
    "%d of %d %s problems are left out: their prompts exceed %d tokens (sampler.prompt_buckets), up to %d",
    len(examples) - len(fitting), len(examples), split, limit, lengths.max(),
  )
  return [examples[int(i)] for i in fitting], prompts


def _can_be_asked(sampler: RolloutSampler, example: Mapping[str, Any]) -> bool:
  try:
    return bool(sampler.prompts([example]))
  except ValueError:
    return False
