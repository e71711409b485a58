"""A run's parts, built and checked once, and its iteration: rollouts, rewards, advantages, masks, scores, updates."""

import functools
import logging

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from gdsd_jax.diffusion.forward import rollout_masks
from gdsd_jax.generation.rollout import GradedCompletions, RolloutSampler
from gdsd_jax.huggingface.tokenizer import load_tokenizer
from gdsd_jax.objectives.teacher import leave_one_out_advantages
from gdsd_jax.parallel.mesh import batch_sharding, make_mesh
from gdsd_jax.parallel.rows import local_rows, spread
from gdsd_jax.runs.config import require_positions, RunConfig, validate_mesh
from gdsd_jax.runs.data import ExampleStream
from gdsd_jax.runs.loop import open_workdir, Training
from gdsd_jax.runs.metrics import Stopwatch
from gdsd_jax.runs.state import init_state, make_optimizer, sync_reference, TrainState
from gdsd_jax.runs.weights import load_model
from gdsd_jax.tasks import get_task
from gdsd_jax.training.batch import DistillationBatch, ScoringBatch
from gdsd_jax.training.overlap import Overlap
from gdsd_jax.training.step import distillation_step, score_rollouts

_log = logging.getLogger(__name__)


class Trainer(Training):
  """A run: everything that its iterations need, built and checked once.

  Raises ValueError or OSError, one line with the cause, before anything is compiled or overwritten.
  """

  def __init__(self, config: RunConfig, workdir: epath.Path):
    open_workdir(workdir, config)
    self.config, self.workdir = config, workdir
    self.mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    validate_mesh(config, self.mesh)
    self.task = get_task(config.task.name, **config.task.options)
    train, test = self.task.examples("train"), self.task.examples("test")
    if not len(train) or not len(test):
      raise ValueError(f"task.name: {config.task.name} has an empty split ({len(train)} train, {len(test)} test)")

    self.denoiser, params = load_model(config.model, config.seed, self.mesh)
    tokenizer = load_tokenizer(config.model.path, self.denoiser.config)
    longest = config.rollouts.prompt_buckets[-1] + config.sampler.completion_length
    said = f"sampler.prompt_buckets, sampler.completion_length: {longest} tokens"
    require_positions(said, longest, self.denoiser.config, config.model.path)
    self.sampler = RolloutSampler(
      self.denoiser, tokenizer, self.task, config.sampler, config.rollouts.prompt_buckets, self.mesh
    )
    train, test = self._fitting(train, "train"), self._fitting(test, "test")
    self.overlap = Overlap(self.sampler, ExampleStream(train, config.seed), config)
    self.held_out = [test[i] for i in range(min(config.eval.num_examples, len(test)))]
    self.objective = config.objective
    self.optimizer = make_optimizer(config.optimizer)
    self.state = init_state(
      self.denoiser, params, self.optimizer, config.seed, with_reference=self.objective.beta > 0, mesh=self.mesh
    )
    self._static = dict(denoiser=self.denoiser, objective=self.objective, accumulation=config.optimizer.accumulation)
    self._compiled = set()
    split = batch_sharding(self.mesh)
    self._concatenate = jax.jit(lambda *parts: jnp.concatenate(parts, axis=1), out_shardings=split)
    num_mc, forward_process = config.distillation.num_mc, config.sampler.forward_process
    self._draw_masks = jax.jit(
      lambda key, confidence: rollout_masks(key, confidence, num_mc, **forward_process), out_shardings=split
    )
    self._sync_reference = jax.jit(functools.partial(sync_reference, mix=config.distillation.reference_sync_mix))

  def _fitting(self, examples, split: str):
    """The examples whose prompts fit the largest bucket, as the official code filters them; says how many do not."""
    try:
      lengths, limit = self.sampler.prompt_lengths(examples), self.sampler.prompt_buckets[-1]
    except ValueError as error:  # a problem whose text forges the chat format
      raise ValueError(f"task.{split}_source: {error}") from None
    fitting = np.flatnonzero(lengths <= limit)
    if not len(fitting):
      raise ValueError(
        f"sampler.prompt_buckets: none of the {len(examples)} {split} prompts fits {limit} tokens; the shortest has"
        f" {lengths.min()}"
      )
    if len(fitting) == len(examples):
      return examples
    _log.info(
      "%d of %d %s problems are left out: their prompts exceed %d tokens (sampler.prompt_buckets), up to %d",
      len(examples) - len(fitting), len(examples), split, limit, lengths.max(),
    )
    return [examples[int(i)] for i in fitting]

  def saved(self) -> tuple[TrainState, dict[str, int]]:
    """What the next iteration starts from; what `begin` has begun is begun again from there."""
    return self.state.replace(ahead=self.overlap.saved()), {"data_position": self.overlap.position}

  def restore(self, state: TrainState, values) -> None:
    """Goes on from what `saved` gave, of this run or of an earlier process."""
    self.overlap.restore(values["data_position"], state.ahead)
    self.state = state.replace(ahead=None)

  def begin(self, watch: Stopwatch) -> None:
    """Begins the next iteration, unless it has begun, see `Overlap.begin`."""
    with watch.phase("rollout"):
      self.overlap.begin(self.state)

  def iterate(self, watch: Stopwatch) -> tuple[dict[str, float], GradedCompletions]:
    """One iteration: sample, reward, update `objective.num_iterations` times. Raises RewardError before any update."""
    config, group_size = self.config, self.config.group_size
    with watch.phase("rollout"):
      key, mask_key, sampled = self.overlap.take(self.state)
      self.state = self.state.replace(key=key, step=self.state.step + 1)
      jax.block_until_ready(sampled.parts[0])
    with watch.phase("reward"):
      scored = self.sampler.grade(sampled)
    advantages = leave_one_out_advantages(
      jnp.asarray(scored.total_reward).reshape(-1, group_size), config.distillation.scale_rewards
    ).reshape(-1)
    updates = self._update(scored, advantages, mask_key, watch)
    sync_every = config.distillation.reference_sync_every
    if self.state.reference is not None and sync_every and int(self.state.step) % sync_every == 0:
      self.state = self.state.replace(reference=self._sync_reference(self.state.reference, self.state.params))
    return {**_rollout_metrics(scored, group_size), **updates}, scored

  def _update(self, scored: GradedCompletions, advantages, mask_key, watch: Stopwatch) -> dict[str, float]:
    """The mu updates on one batch of rollouts; metrics averaged over them."""
    tokens = self._concatenate(scored.prompt, scored.rollout.tokens)
    if tokens.shape not in self._compiled:
      self._compiled.add(tokens.shape)
      _log.info("compiling scores and distillation step for %d rollouts of %d tokens", *tokens.shape)
    rollouts = [
      ScoringBatch(tokens, scored.prompt_mask, self._draw_masks(key, scored.rollout.confidence))
      for key in jax.random.split(mask_key, self.config.distillation.num_iterations)
    ]
    held = np.asarray(advantages)[local_rows(self.mesh, len(advantages))]
    advantages = spread(self.mesh, len(advantages), held)
    score = functools.partial(score_rollouts, **self._static)
    with watch.phase("score"):
      # Old is the student as it is now, also where async rollouts were sampled by the one before. The teacher is a
      # condition on the scores of every completion, whoever sampled it: samples of another denoiser only weigh the
      # squares of the loss differently. What old does is to say where the trust region lies, and the teacher in it,
      # which is around the student that is about to move: around the one before, the clip would take the last
      # iteration's updates for part of this one's, and hold most of the rest back.
      old = [score(self.state.student_params, part) for part in rollouts]
      reference = None if self.state.reference is None else self.state.reference_params
      ref = [None if reference is None else score(reference, part) for part in rollouts]
      del reference
      jax.block_until_ready((old, ref))
    metrics = []
    with watch.phase("update"):
      for i, part in enumerate(rollouts):
        current = old[0] if i == 0 else score(self.state.student_params, part)  # before the first update student is old
        batch = DistillationBatch(part, advantages, old[i], ref[i], current)
        self.state, step_metrics = distillation_step(self.state, batch, optimizer=self.optimizer, **self._static)
        metrics.append(step_metrics)
      metrics = jax.device_get(metrics)
    mean = {name: float(np.mean([m[name] for m in metrics])) for name in metrics[0]}
    return {**mean, "skipped": int(sum(m["skipped"] for m in metrics))}


def _rollout_metrics(scored: GradedCompletions, group_size: int) -> dict[str, float]:
  groups = scored.total_reward.reshape(-1, group_size)
  texts = np.array(scored.completions, dtype=object).reshape(-1, group_size)
  return {
    "reward": float(groups.mean()),
    **{f"reward/{name}": float(values.mean()) for name, values in scored.rewards.items()},
    "reward_std": float(groups.std(axis=1).mean()),
    "groups_without_spread": float(np.mean(np.ptp(groups, axis=1) == 0)),
    "completion_length": float(scored.lengths.mean()),
    "diversity": float(np.mean([len(set(group)) for group in texts]) / group_size),
    "tokens_per_second": scored.rollout.tokens.size / scored.sampling_seconds,
  }
