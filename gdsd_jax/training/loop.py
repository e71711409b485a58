"""The training loop: iterations, evaluations, metrics and checkpoints, and what the screen shows of them."""

import json
import logging
import time

from etils import epath
import jax
import numpy as np

from gdsd_jax.generation.rollout import GradedCompletions, RewardError
from gdsd_jax.parallel.processes import is_first_process
from gdsd_jax.runs.config import RunConfig
from gdsd_jax.runs.config_dict import config_json
from gdsd_jax.runs.files import check_workdir, write_whole
from gdsd_jax.runs.interruption import Interrupted, Interruption
from gdsd_jax.runs.metrics import format_seconds, MetricsWriter, Progress, SilentWriter, Stopwatch
from gdsd_jax.training.trainer import Trainer

_log = logging.getLogger(__name__)


class TrainingError(ValueError):
  """The run cannot go on; the message is one line with the cause."""


def train(config: RunConfig, workdir: epath.Path) -> None:
  """Runs or resumes a training run in `workdir`: metrics.jsonl, config.json, checkpoints/, reward.png.

  Raises:
    ValueError, OSError, CheckpointError, TrainingError: one line with the cause.
    Interrupted: SIGTERM came, and the step that was under way is saved.
  """
  with Interruption() as interruption:
    _train(config, workdir, interruption)


def _train(config, workdir: epath.Path, interruption: Interruption) -> None:
  check_workdir(workdir)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise OSError(f"--workdir: cannot make {workdir}: {error}") from error
  trainer = Trainer(config, workdir)
  resumed = trainer.resume()
  start = int(trainer.state.step)
  _announce(config, workdir, trainer, resumed, start)
  if start >= config.steps:
    _log.info("nothing to do: all %d steps are done (more: --config.steps; a new run: another --workdir)", start)
    trainer.checkpoints.close()
    return
  if is_first_process():
    write_whole(workdir / "config.json", config_json(config) + "\n")
    writer = MetricsWriter(workdir, start if resumed else -1, config)
  else:
    writer = SilentWriter()
  started = time.monotonic()
  try:
    if not resumed:
      first = _evaluate(trainer, 0)
      writer.write({"step": 0, "reward": first.get("eval/sampled_reward", first.get("eval/reward")), **first})
    _run_steps(trainer, writer, start, interruption)
    writer.plot()
  finally:
    writer.close()
  trainer.checkpoints.close()
  _log.info("finished %d steps in %s: %s", config.steps - start, format_seconds(time.monotonic() - started), workdir)


def _run_steps(trainer: Trainer, writer: MetricsWriter | SilentWriter, start: int, interruption: Interruption) -> None:
  config = trainer.config
  progress, failures, watch = Progress(config.steps, config.log.every), 0, Stopwatch()
  for step in range(start + 1, config.steps + 1):
    row, scored, cause = {"step": step}, None, None
    try:
      metrics, scored = trainer.iterate(watch)
      row |= metrics
      if row["skipped"] == config.distillation.num_iterations:
        cause = f"no update had a finite loss and gradient (loss {row['loss']})"
    except RewardError as error:
      row |= {"reward": None, "loss": None, "skipped": config.distillation.num_iterations}
      cause = str(error)
    failures = failures + 1 if cause else 0
    if row["skipped"]:
      _log.info("step %d: skipped %d of %d updates: %s", step, row["skipped"], config.distillation.num_iterations,
                cause or "their gradient is not finite")
    if failures >= config.max_skipped_steps:
      writer.write(row | watch.metrics())
      raise TrainingError(f"giving up at step {step}: {failures} steps in a row were skipped; the last: {cause}")

    last = step == config.steps
    evaluation = {}
    if step % config.eval.every == 0 or last:
      with watch.phase("evaluate"):
        evaluation = _evaluate(trainer, step)
    interrupted = not last and interruption.asked()
    if not (last or interrupted):
      with watch.phase("rollout"):
        trainer.begin()  # the device samples while this step is written down
    row |= evaluation | watch.metrics()
    watch = Stopwatch()
    # Written before the checkpoint of the same step: a resumed run drops rows after its checkpoint, never lacks one.
    writer.write(row)
    if step % config.checkpoint.every == 0 or last or interrupted:
      trainer.save(evaluation.get("eval/reward"))
    if interrupted:
      writer.plot()
      trainer.checkpoints.close()
      raise Interrupted(step, config.steps)
    trainer.checkpoints.check()
    if scored is not None:
      progress.show(row)
      if config.log.rollouts_every and (step - 1) % config.log.rollouts_every == 0:
        _show_rollouts(scored)


def _announce(config, workdir: epath.Path, trainer: Trainer, resumed: bool, start: int) -> None:
  size, trained = (
    sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (trainer.state.student_params, trainer.state.params)
  )
  mesh = ", ".join(f"{axis} {size}" for axis, size in trainer.mesh.shape.items() if size > 1) or "one device"
  _log.info(
    "%s on %s with %s (%.3g M parameters%s, %s, %s), %d prompts × %d rollouts a step",
    config.objective.name, config.task.name, config.model.path, size / 1e6,
    "" if trained == size else f", {trained / 1e6:.3g} M of them in the adapter", jax.default_backend(), mesh,
    config.prompts_per_step, config.group_size,
  )
  if resumed:
    _log.info("RESUMING the run in %s from step %d of %d", workdir, start, config.steps)
  elif (workdir / "config.json").exists():
    _log.info("STARTING AGAIN in %s: the run there had no complete checkpoint yet", workdir)
  else:
    _log.info("NEW RUN in %s, %d steps", workdir, config.steps)


def _evaluate(trainer: Trainer, step: int) -> dict[str, float]:
  """Evaluates and shows it; nothing, with a line saying why, when a reward function raises."""
  try:
    evaluation = trainer.evaluate()
  except RewardError as error:
    _log.info("evaluation after step %d left out: %s", step, error)
    return {}
  shown = "  ".join(f"{name.removeprefix('eval/')} {value:.3f}" for name, value in evaluation.items())
  _log.info("evaluation after step %d: %s", step, shown)
  return evaluation


def _show_rollouts(scored: GradedCompletions, count: int = 3) -> None:
  spread = np.linspace(0, len(scored.completions) - 1, count).astype(int)
  for i in spread:
    text = json.dumps(scored.completions[i], ensure_ascii=False)
    _log.info("  rollout, reward %.2f: %s", scored.total_reward[i], text)
