"""The updates of an iteration: views of its rollouts, scores in them, and one distillation step after the other."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np

from gdsd_jax.compiling import compiling
from gdsd_jax.diffusion.block_forward import block_masks, steps_in_blocks
from gdsd_jax.diffusion.forward import rollout_masks
from gdsd_jax.generation.rollout import GradedCompletions
from gdsd_jax.models.copies import completion_blocks
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.objectives.advantages import group_advantages
from gdsd_jax.objectives.diagnostics import mismatch, policy_entropy
from gdsd_jax.objectives.objective import ScoredRollouts, ScoredViews
from gdsd_jax.objectives.views import Drawing, Predictions, Rollouts, Views
from gdsd_jax.parallel.mesh import batch_sharding
from gdsd_jax.parallel.rows import local_rows, spread
from gdsd_jax.runs.config import RunConfig
from gdsd_jax.runs.gradient import DistillationBatch, ScoringBatch
from gdsd_jax.runs.metrics import Stopwatch
from gdsd_jax.runs.optimizer import last_rate
from gdsd_jax.runs.routers import router_metrics
from gdsd_jax.runs.state import TrainState
from gdsd_jax.runs.step import distillation_step, score_rollouts


class Updates:
  """Updates a run's state on batches of rollouts."""

  def __init__(self, config: RunConfig, denoiser: Denoiser, optimizer, mesh):
    self.config, self.objective, self.optimizer, self.mesh = config, config.objective, optimizer, mesh
    self._static = dict(denoiser=denoiser, objective=config.objective, accumulation=config.optimizer.accumulation)
    self._scored_in_step = config.scored_in_step(mesh)
    split = batch_sharding(mesh)
    self._in_blocks = jax.jit(self._steps_and_blocks, out_shardings=split)
    self._draw = jax.jit(self._views, static_argnames=("prompt_length", "fixed"), out_shardings=split)
    self._batch = jax.jit(self._scoring_batch, out_shardings=split)
    self.compiled = set()  # shapes of the tokens so far

  def __call__(self, state: TrainState, graded: GradedCompletions, key,
               watch: Stopwatch) -> tuple[TrainState, dict[str, float]]:
    """The state after the updates on a batch of rollouts, and metrics averaged over them."""
    sampled, count, fresh = graded.sampled, self.config.distillation.num_iterations, self.config.masks.fresh
    rollouts, prompt_length = self.rollouts(graded), sampled.prompt.shape[1]
    draw = lambda key, update, fixed=False: self._draw(key, rollouts, update, prompt_length=prompt_length, fixed=fixed)
    keys = jax.random.split(key, count if fresh else 1)
    shape = len(rollouts.tokens), prompt_length + rollouts.tokens.shape[1]
    told = self._telling(shape)
    with told("the views", least=1.0):
      views = [draw(key, np.int32(i)) for i, key in enumerate(keys)]
      fixed = draw(jax.random.fold_in(key, count), np.int32(0), fixed=True)
    batch = lambda views: self._batch(sampled.prompt, sampled.prompt_mask, rollouts, views.inputs)
    drawn = [batch(each) for each in views]
    score = functools.partial(score_rollouts, with_entropy=True, **self._static)
    with watch.phase("score"):
      # Old is the student as it is now, also where async rollouts were sampled by the one before: the teacher is a
      # condition on the scores of every completion, whoever sampled it. Old says where the trust region lies, which is
      # around the student that is about to move. Around the one before, the clip would take the last iteration's
      # updates for a part of this one's, and hold most of the rest back.
      # Without any beforehand, where the one update makes them itself.
      scored_before = [] if self._scored_in_step else drawn if self.objective.needs_old else drawn[:1]
      with told("the scores"):
        old = [score(state.student_params, part) for part in scored_before]
      reference = None if state.reference is None else state.reference_params
      score_reference = functools.partial(score, of_reference=self._scored_in_step)
      ref = [None if reference is None else score_reference(reference, part) for part in drawn]
      if fixed is not None:
        part = batch(fixed)
        of_reference = None if reference is None else score(reference, part)
        fixed = ScoredViews(fixed, score(state.student_params, part), of_reference)
      del reference
      jax.block_until_ready((old, ref, fixed))
    metrics, before = [], self._router_metrics(state, drawn[0])
    if old:
      before |= {"entropy": policy_entropy(old, views)}
    if self.config.log.trajectory:
      before |= mismatch(rollouts, old, views)
    with watch.phase("update"):
      for i in range(count):
        at = i if fresh else 0
        # Before the first update the student is old.
        current = next(iter(old), None) if i == 0 else score(state.student_params, drawn[at])
        scored = ScoredRollouts.of(
          rollouts, views=views[at], student=current, old=old[at] if old and self.objective.needs_old else None,
          ref=ref[at], fixed=fixed)
        with told("the distillation step") if i == 0 else contextlib.nullcontext():
          state, numbers = distillation_step(state, DistillationBatch(drawn[at], scored), optimizer=self.optimizer,
                                             **self._static)
        metrics.append(numbers)
      metrics = jax.device_get(metrics)
    over_updates = lambda name: np.max if name.startswith("largest_") else np.mean
    row = {name: float(over_updates(name)([m[name] for m in metrics])) for name in metrics[0]}
    row |= {name: float(value) for name, value in jax.device_get(before).items() if value is not None}
    row["learning_rate"] = last_rate(self.config.optimizer, self.config.updates, state.opt_state)
    return state, {**row, "skipped": int(sum(m["skipped"] for m in metrics))}

  def _router_metrics(self, state: TrainState, rollouts: ScoringBatch) -> dict[str, jax.Array]:
    """What a model with experts tells of its routers before the updates; nothing of another."""
    denoiser, accumulation = self._static["denoiser"], self.config.optimizer.accumulation
    if denoiser.config.experts is None:
      return {}
    return router_metrics(state.student_params, rollouts, denoiser=denoiser, accumulation=accumulation)

  def _telling(self, shape: tuple[int, int]):
    """What says that something of rollouts of this shape is compiled; from their second batch on it says nothing."""
    if shape in self.compiled:
      return lambda *_, **__: contextlib.nullcontext()
    self.compiled.add(shape)
    return lambda what, **options: compiling(f"{what} of {shape[0]} rollouts of {shape[1]} tokens", **options)

  def rollouts(self, graded: GradedCompletions) -> Rollouts:
    """What an objective knows of them, laid over the mesh."""
    rollout = graded.sampled.rollout.only(self.config.learnt)
    rows = local_rows(self.mesh, len(rollout.tokens))
    laid_out = lambda values: spread(self.mesh, len(rollout.tokens), np.asarray(values)[rows])
    advantages, known = advantages_of(graded, self.config), lambda rewards: known_rewards(rewards, self.config)
    predictions = rollout.predictions and Predictions(
      rollout.predictions.tokens, rollout.predictions.confidence, laid_out(known(graded.predicted_rewards)))
    lengths = np.minimum(graded.lengths + 1, rollout.tokens.shape[1]).astype(np.int32)  # with the end of text
    steps, blocks = rollout.steps, None
    if self._static["denoiser"].config.block_length is not None:
      steps, blocks = self._in_blocks(steps, graded.sampled.prompt_mask)
    return Rollouts(tokens=rollout.tokens, lengths=laid_out(lengths), rewards=laid_out(known(graded.total_reward)),
                    advantages=laid_out(advantages.reshape(-1)), confidence=rollout.confidence, steps=steps,
                    logp=rollout.logp, entropy=rollout.entropy, kept=rollout.kept, predictions=predictions,
                    blocks=blocks, group_size=self.config.group_size)

  def _steps_and_blocks(self, steps, prompt_mask):
    """The steps of rollouts in each block, if they remember them, and which these are, see `Rollouts.blocks`."""
    sampler, model = self.config.sampler, self._static["denoiser"].config
    lengths = jnp.sum(prompt_mask, axis=1, dtype=jnp.int32)
    steps = None if steps is None else steps_in_blocks(steps, sampler)
    return steps, completion_blocks(model, lengths, sampler.completion_length)

  def _views(self, key, rollouts: Rollouts, update, *, prompt_length: int, fixed: bool) -> Views | None:
    drawing = drawing_of(self.config, prompt_length, self._static["denoiser"].config.end_token_ids)
    if fixed:
      return self.objective.fixed_views(key, rollouts, drawing)
    return self.objective.views(key, rollouts, update, drawing)

  def _scoring_batch(self, prompt, prompt_mask, rollouts: Rollouts, inputs: Views) -> ScoringBatch:
    attended = jnp.ones(rollouts.tokens.shape, bool) if self.objective.attends_after_end else rollouts.counted
    join = lambda *parts: jnp.concatenate(parts, axis=1)
    return ScoringBatch(join(prompt, rollouts.tokens), join(prompt_mask, attended), inputs, rollouts.kept)


def known_rewards(rewards: np.ndarray, config: RunConfig) -> np.ndarray:
  """Total rewards of rollouts, float32[B, ...]; of one that none applies to, the mean of its group's others, or 0.

  So objectives that take rewards themselves favour it no more, and no less, than the group.
  """
  groups = rewards.reshape(-1, config.group_size, *rewards.shape[1:])
  applies = ~np.isnan(groups)
  total = np.sum(groups, axis=1, keepdims=True, where=applies)
  mean = total / np.maximum(np.sum(applies, axis=1, keepdims=True), 1)
  return np.where(applies, groups, mean).reshape(rewards.shape).astype(np.float32)


def advantages_of(graded: GradedCompletions, config: RunConfig) -> jax.Array:
  """The advantage of each rollout within its group, float32[B / G, G]."""
  groups = jnp.asarray(graded.total_reward).reshape(-1, config.group_size)
  return group_advantages(groups, config.advantages, config.distillation.scale_rewards)


def drawing_of(config: RunConfig, prompt_length: int, end_token_ids: tuple[int, ...] = ()) -> Drawing:
  """What a run's objective is told when it draws views."""
  sampler, masks = config.sampler, None
  if config.objective.masks is not None:
    process = config.masks.forward_process(sampler, config.objective.masks)
    masks = functools.partial(_masks, num_samples=config.num_mc, group_size=config.group_size, **process)
  return Drawing(config.num_mc, config.distillation.num_iterations, prompt_length,
                 sampler.block_length if sampler.is_blockwise else None, sampler.view_steps, masks, end_token_ids)


def _masks(key, rollouts: Rollouts, *, block_length: int | None, **process):
  if rollouts.blocks is None or block_length is None:
    return rollout_masks(key, rollouts.confidence, block_length=block_length, **process)
  return block_masks(key, rollouts.confidence, rollouts.blocks, **process)
