"""The loop of every training: rows, evaluations, checkpoints, progress, interruption, and how a run resumes."""

from collections.abc import Mapping
import json
import logging
import time
from typing import Any, Protocol

from etils import epath

from gdsd_jax.checks import require
from gdsd_jax.parallel.processes import is_first_process
from gdsd_jax.runs.checkpoints import Checkpoints
from gdsd_jax.runs.config_dict import config_json
from gdsd_jax.runs.earlier import keep_rows, set_aside
from gdsd_jax.runs.files import write_whole
from gdsd_jax.runs.interruption import Interrupted, Interruption
from gdsd_jax.runs.lock import Lock, locked
from gdsd_jax.runs.metrics import MetricsWriter, Stopwatch
from gdsd_jax.runs.optimizer import updates_made
from gdsd_jax.runs.progress import Progress
from gdsd_jax.runs.saved_config import contradictions
from gdsd_jax.runs.state import TrainState
from gdsd_jax.waiting import format_seconds

_log = logging.getLogger(__name__)


class TrainingError(ValueError):
  """The training cannot go on; the message is one line with the cause, and `row` what is written of its last step."""

  def __init__(self, message: str, row: Mapping[str, Any]):
    super().__init__(message)
    self.row = row


class Training(Protocol):
  """What the loop goes through step by step. Every process calls the same methods in the same order."""

  config: Any  # the loop reads its `steps`, `checkpoint` and `log`
  workdir: epath.Path  # which `open_workdir` has checked and made
  provenance: Mapping[str, Any]  # see `runs/provenance.py`
  state: TrainState  # what the next step starts from; `state.step` counts the steps that are done
  failure: str | None = None  # why the last step made no update
  evaluate_every: int | None = None  # steps between evaluations; None without

  def step(self, number: int, watch: Stopwatch) -> dict[str, Any]:
    """Makes one step and returns its numbers. Raises TrainingError, ValueError or OSError when none can follow."""

  def evaluation(self, number: int, watch: Stopwatch) -> dict[str, Any]:
    """Numbers of the evaluation after a step, 0 for before the first; "eval/reward" decides on the best checkpoint."""
    return {}  # none is due

  def open_files(self, last_step: int) -> None:
    """Opens files of the training's own; what is in them of steps after `last_step`, -1 for all, will come again."""

  def write_files(self) -> None:
    """Writes to them what belongs to the step that is done; returns once it is there."""

  def begin(self, watch: Stopwatch) -> None:
    """Lets the device begin the next step while this one is written down; the state must stay as it is."""

  def show(self, row: Mapping[str, Any], progress: Progress) -> None:
    """Shows a step that is written down on the screen."""

  def saved(self) -> tuple[TrainState, dict[str, Any]]:
    """What a checkpoint keeps: a state, and JSON values. Before the first step the state need only be laid out so."""

  def laid_out(self, state: TrainState, values: Mapping[str, Any]) -> TrainState:
    """How the state lies in a checkpoint with these JSON values, from how `saved` lays it out now."""
    return state

  def restore(self, state: TrainState, values: Mapping[str, Any]) -> None:
    """Goes on from what a checkpoint kept."""


def run_training(training: Training, interruption: Interruption) -> None:
  """Runs or resumes a training in its workdir: metrics.jsonl, config.json, checkpoints/, reward.png.

  Raises ValueError, OSError, CheckpointError or TrainingError, one line with the cause. Raises Interrupted if it was
  asked to stop; the step that was under way is saved then.
  """
  with locked(training.workdir) as lock:
    _run(training, interruption, lock)


def _run(training: Training, interruption: Interruption, lock: Lock) -> None:
  config, workdir = training.config, training.workdir
  checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint.keep)
  resumed = resume(training, checkpoints)
  start = int(training.state.step)
  if resumed:
    _log.info("RESUMING the run in %s from step %d of %d", workdir, start, config.steps)
  if start >= config.steps:
    _require_updates(training)
    _log.info("nothing to do: all %d steps are done (more: --config.steps; a new run: another --workdir)", start)
    checkpoints.close()
    return
  interruption.follow(start, config.steps, checkpoints.has)
  if is_first_process():
    _make_ready(workdir, start if resumed else None, config)
    write_whole(workdir / "config.json", config_json(config, training.provenance) + "\n")
  last_step = start if resumed else -1
  training.open_files(last_step)
  writer, started = MetricsWriter(workdir, last_step, config), time.monotonic()
  progress = Progress(config.steps, config.log.every, training.evaluate_every)
  try:
    with progress.shown(start):
      evaluation = {} if resumed else progress.timed(training.evaluation, 0, Stopwatch())
      if evaluation:
        writer.write({"step": 0, **evaluation})
      _go_through(training, start, progress, checkpoints, writer, interruption, lock)
  finally:
    writer.close()
  _log.info("finished %d steps in %s: %s", config.steps - start, format_seconds(time.monotonic() - started), workdir)


def _make_ready(workdir: epath.Path, start: int | None, config) -> None:
  """Keeps what would be overwritten and may not be had again; `start` is the resumed step."""
  if start is not None:
    keep_rows(workdir, start, most=2 * config.checkpoint.every)  # a save may be under way while steps go on
  elif aside := set_aside(workdir):
    _log.info("STARTING AGAIN in %s: there is no complete checkpoint; what was there is kept in %s", workdir, aside)
  elif (workdir / "config.json").exists():
    _log.info("STARTING AGAIN in %s: the run there had no complete checkpoint yet", workdir)
  else:
    _log.info("NEW RUN in %s, %d steps", workdir, config.steps)


def _go_through(training: Training, start: int, progress: Progress, checkpoints: Checkpoints, writer: MetricsWriter,
                interruption: Interruption, lock: Lock) -> None:
  config, watch = training.config, Stopwatch()
  for number in range(start + 1, config.steps + 1):
    last = number == config.steps
    progress.begin(number)
    try:
      row = {"step": number, **training.step(number, watch)}
      if last:
        _require_updates(training, row)
    except TrainingError as error:
      writer.write({"step": number, **error.row, **watch.metrics()})
      raise
    interruption.done = number
    evaluation = progress.timed(training.evaluation, number, watch)
    interrupted = not last and interruption.asked()
    if not (last or interrupted):
      training.begin(watch)  # the device works while this step is written down
    row |= evaluation | watch.metrics()
    watch = Stopwatch()
    lock.check()
    # Written before the checkpoint of the same step: a resumed run drops rows after its checkpoint, never lacks one.
    writer.write(row)
    training.write_files()
    if number % config.checkpoint.every == 0 or last or interrupted:
      save(training, checkpoints, evaluation.get("eval/reward"))
    if interrupted:
      break
    checkpoints.check()
    training.show(row, progress)
    writer.draw()  # after the line: the first time it imports libraries for seconds
  writer.plot()
  checkpoints.close()
  if interrupted:
    raise Interrupted(number, config.steps)


def _require_updates(training: Training, row: Mapping[str, Any] | None = None) -> None:
  """Raises TrainingError where a whole run, those before it was resumed included, has not made one finite update."""
  if not updates_made(training.state.opt_state):
    cause = f"; the last: {training.failure}" if training.failure else ""
    raise TrainingError(f"nothing was learnt: none of the {training.config.steps} steps of the run in"
                        f" {training.workdir} made an update{cause}", row or {})


def save(training: Training, checkpoints: Checkpoints, reward: float | None) -> None:
  """Begins to save what the next step starts from; `reward` is that of an evaluation at this step, if there was one."""
  state, values = training.saved()
  checkpoints.save(state, {"config": json.loads(config_json(training.config)), **values}, reward)


def resume(training: Training, checkpoints: Checkpoints) -> bool:
  """Goes on from the newest checkpoint, if there is one; returns whether there was. Raises as `Checkpoints.restore`."""

  def check(values):
    different = contradictions(values["config"], training.config)
    require(not different, "--workdir",
            f"the checkpoint in {training.workdir} has another config: {'; '.join(different)}")

  restored = checkpoints.restore(training.saved()[0], check, training.laid_out)
  if restored is None:
    return False
  training.restore(*restored)
  return True
