"""The steps of an RL run: rollouts, rewards, advantages, scores, updates."""

from collections.abc import Mapping
import functools
import logging
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from gdsd_jax.diffusion.forward import rollout_masks
from gdsd_jax.generation.rollout import GradedCompletions, PendingCompletions, RewardError
from gdsd_jax.objectives.gdsd import leave_one_out_advantages
from gdsd_jax.parallel.mesh import batch_sharding
from gdsd_jax.parallel.rows import local_rows, spread
from gdsd_jax.runs.config import RunConfig
from gdsd_jax.runs.config_dict import open_workdir
from gdsd_jax.runs.data import ExampleStream
from gdsd_jax.runs.interruption import Interruption
from gdsd_jax.runs.loop import run_training, Training, TrainingError
from gdsd_jax.runs.metrics import Progress, Stopwatch
from gdsd_jax.runs.optimizer import last_rate
from gdsd_jax.runs.state import sync_reference, TrainState
from gdsd_jax.training.gradient import DistillationBatch, ScoringBatch
from gdsd_jax.training.overlap import Overlap
from gdsd_jax.training.prepare import prepare
from gdsd_jax.training.report import announce, evaluation_row, numbers_of, rollout_metrics, show_rollouts
from gdsd_jax.training.step import distillation_step, policy_entropy, score_rollouts

_log = logging.getLogger(__name__)


def train(config: RunConfig, workdir: epath.Path) -> None:
  """Runs or resumes an RL run in `workdir`. Raises as `run_training`, and as `Trainer`."""
  with Interruption() as interruption:
    trainer = Trainer(config, workdir)
    announce(config, trainer.state, trainer.mesh)
    run_training(trainer, interruption)


class Trainer(Training):
  """A run in its folder. Raises as `prepare` does, and as `open_workdir`; nothing is overwritten then."""

  def __init__(self, config: RunConfig, workdir: epath.Path):
    open_workdir(workdir, config)
    self.config, self.workdir, start = config, workdir, prepare(config)
    self.mesh, self.denoiser, self.sampler, self.held_out = start.mesh, start.denoiser, start.sampler, start.held_out
    self.optimizer, self.state = start.optimizer, start.state
    self.overlap = Overlap(self.sampler, ExampleStream(start.train, config.seed), config)
    self._static = dict(denoiser=self.denoiser, objective=config.objective, accumulation=config.optimizer.accumulation)
    self._compiled = set()
    self._failures = 0  # steps in a row that were skipped
    self._scored: GradedCompletions | None = None  # what the last step trained on, None if its rewards failed
    split = batch_sharding(self.mesh)
    self._concatenate = jax.jit(lambda *parts: jnp.concatenate(parts, axis=1), out_shardings=split)
    masks = functools.partial(rollout_masks, num_samples=config.distillation.num_mc, **config.sampler.forward_process)
    self._draw_masks = jax.jit(masks, out_shardings=split)
    self._sync_reference = jax.jit(functools.partial(sync_reference, mix=config.distillation.reference_sync_mix))

  def saved(self) -> tuple[TrainState, dict[str, int]]:
    return self.state.replace(ahead=self.overlap.saved()), {"data_position": self.overlap.position}

  def restore(self, state: TrainState, values: Mapping[str, Any]) -> None:
    self.overlap.restore(values["data_position"], state.ahead)
    self.state = state.replace(ahead=None)

  def begin(self, watch: Stopwatch) -> None:
    with watch.phase("rollout"):
      self.overlap.begin(self.state)

  def step(self, number: int, watch: Stopwatch) -> dict[str, Any]:
    """One iteration. If it fails it is skipped, and too many of these in a row end the run."""
    updates, cause = self.config.distillation.num_iterations, None
    try:
      row, self._scored = self.iterate(watch)
      if row["skipped"] == updates:
        cause = f"no update had a finite loss and gradient (loss {row['loss']})"
    except RewardError as error:
      row, self._scored, cause = {"reward": None, "loss": None, "skipped": updates}, None, str(error)
    self._failures = self._failures + 1 if cause else 0
    if row["skipped"]:
      _log.info("step %d: skipped %d of %d updates: %s", number, row["skipped"], updates,
                cause or "their gradient is not finite")
    if self._failures >= self.config.max_skipped_steps:
      raise TrainingError(
        f"giving up at step {number}: {self._failures} steps in a row were skipped; the last: {cause}", row
      )
    return row

  def iterate(self, watch: Stopwatch) -> tuple[dict[str, float], GradedCompletions]:
    """Samples, rewards, and updates `distillation.num_iterations` times. Raises RewardError before any update."""
    distillation, group_size = self.config.distillation, self.config.group_size
    with watch.phase("rollout"):
      key, mask_key, sampled = self.overlap.take(self.state)
      self.state = self.state.replace(key=key, step=self.state.step + 1)
      jax.block_until_ready(sampled.parts[0])
    with watch.phase("reward"):
      scored = self.sampler.grade(sampled)
    rewards = jnp.asarray(scored.total_reward).reshape(-1, group_size)
    advantages = leave_one_out_advantages(rewards, distillation.scale_rewards).reshape(-1)
    updates = self._update(scored.sampled, advantages, mask_key, watch)
    sync_every = distillation.reference_sync_every
    if self.state.reference is not None and sync_every and int(self.state.step) % sync_every == 0:
      self.state = self.state.replace(reference=self._sync_reference(self.state.reference, self.state.params))
    return {**rollout_metrics(scored, group_size), **updates}, scored

  def _update(self, sampled: PendingCompletions, advantages, mask_key, watch: Stopwatch) -> dict[str, float]:
    """The updates on one batch of rollouts, each with masks of its own; metrics averaged over them."""
    tokens = self._concatenate(sampled.prompt, sampled.rollout.tokens)
    if tokens.shape not in self._compiled:
      self._compiled.add(tokens.shape)
      _log.info("compiling scores and distillation step for %d rollouts of %d tokens", *tokens.shape)
    rollouts = [
      ScoringBatch(tokens, sampled.prompt_mask, self._draw_masks(key, sampled.rollout.confidence))
      for key in jax.random.split(mask_key, self.config.distillation.num_iterations)
    ]
    held = np.asarray(advantages)[local_rows(self.mesh, len(advantages))]
    advantages = spread(self.mesh, len(advantages), held)
    score = functools.partial(score_rollouts, with_entropy=True, **self._static)
    with watch.phase("score"):
      # Old is the student as it is now, also where async rollouts were sampled by the one before: the teacher is a
      # condition on the scores of every completion, whoever sampled it. Old says where the trust region lies, which is
      # around the student that is about to move. Around the one before, the clip would take the last iteration's
      # updates for a part of this one's, and hold most of the rest back.
      old = [score(self.state.student_params, part) for part in rollouts]
      reference = None if self.state.reference is None else self.state.reference_params
      ref = [None if reference is None else score(reference, part) for part in rollouts]
      del reference
      jax.block_until_ready((old, ref))
    metrics, entropy = [], policy_entropy(old)
    with watch.phase("update"):
      for i, part in enumerate(rollouts):
        current = old[0] if i == 0 else score(self.state.student_params, part)  # before the first update student is old
        batch = DistillationBatch(part, advantages, old[i], ref[i], current)
        self.state, step_metrics = distillation_step(self.state, batch, optimizer=self.optimizer, **self._static)
        metrics.append(step_metrics)
      metrics = jax.device_get(metrics)
    row = {name: float(np.mean([m[name] for m in metrics])) for name in metrics[0]}
    if entropy is not None:
      row["entropy"] = float(entropy)
    row["learning_rate"] = last_rate(self.config.optimizer, self.config.updates, self.state.opt_state)
    return {**row, "skipped": int(sum(m["skipped"] for m in metrics))}

  def evaluate(self, number: int, watch: Stopwatch) -> dict[str, Any]:
    """Held-out accuracy and rewards; the same problems and random key every time; none if the task's grader raises."""
    if number % self.config.eval.every and number < self.config.steps:
      return {}
    key, batch_size = jax.random.key(self.config.seed), self.config.eval.batch_size
    with watch.phase("evaluate"):
      row = evaluation_row(number, self.sampler, self.state.student_params, self.held_out, key, batch_size)
    # There are no rollouts before the first step, whose reward its row would have.
    return row if number else {"reward": row.get("eval/sampled_reward", row.get("eval/reward")), **row}

  def show(self, row: Mapping[str, Any], progress: Progress) -> None:
    if self._scored is None:
      return
    progress.show(row["step"], numbers_of(row))
    every = self.config.log.rollouts_every
    if every and (row["step"] - 1) % every == 0:
      show_rollouts(self._scored)
