"""Checkpoints by Orbax: asynchronous, the latest few and the best, complete enough to resume bit for bit."""

from collections.abc import Callable
import contextlib
import json
import logging
import re
from typing import Any

from absl import logging as absl_logging
from etils import epath
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from gdsd_jax.parallel.processes import gather_json, is_first_process
from gdsd_jax.runs.files import absolute, is_remote
from gdsd_jax.runs.finite import not_finite
from gdsd_jax.runs.state import TrainState
from gdsd_jax.waiting import waiting

_log = logging.getLogger(__name__)

# Signs of errors that say nothing about the checkpoint: memory, permissions and the store's own state.
_PASSING = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAVAILABLE", "UNAUTHENTICATED", "DEADLINE_EXCEEDED")
_DETAILS = re.compile(r"\s\[(?:tensorstore_spec|source locations)|\. See full TensorStore details")
_LONGEST_CAUSE = 300  # characters


class CheckpointError(OSError):
  """A checkpoint could not be written or read; the message is one line with the cause."""


@contextlib.contextmanager
def quiet_orbax():
  """Orbax warns of what is asked of it on purpose: a step without an evaluation, a folder that is only read."""
  verbosity = absl_logging.get_verbosity()
  absl_logging.set_verbosity(min(verbosity, absl_logging.ERROR))
  try:
    yield
  finally:
    absl_logging.set_verbosity(verbosity)


class Checkpoints:
  """The checkpoints of one run, in `directory`."""

  def __init__(self, directory: epath.PathLike, keep: int):
    self.directory = absolute(directory)
    if is_first_process():
      mark_copied(self.directory)
      _put_damaged_metrics_aside(self.directory)
    gather_json(None)  # nobody looks before they are moved
    policies = [
      checkpoint_managers.LatestN(keep),
      checkpoint_managers.BestN(
        get_metric_fn=lambda metrics: metrics["reward"], n=1, keep_checkpoints_without_metrics=False
      ),
    ]
    options = ocp.CheckpointManagerOptions(
      preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies), cleanup_tmp_directories=True,
      best_fn=lambda metrics: metrics["reward"],  # without it Orbax writes no metrics, and forgets the best
      # Made in the background, a folder that cannot be made is waited for at exit, for minutes.
      async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
    )
    try:
      self._manager = ocp.CheckpointManager(self.directory, options=options, item_names=("state", "run"))
    except OSError as error:
      raise CheckpointError(f"checkpoints: cannot use {directory}: {error}") from error

  def save(self, state: TrainState, run: dict[str, Any], reward: float | None) -> None:
    """Begins to save; returns once the arrays are copied.

    Args:
      state: what the next iteration starts from.
      run: JSON values that belong to it (config, data position).
      reward: the evaluation's reward at this step, by which the best checkpoint is chosen; None if there was none.
    """
    self.check()
    told = waiting(f"saving step {int(state.step)}, once the one before is written")
    with self._telling_failures(), told, quiet_orbax():
      self._manager.save(
        int(state.step),
        args=ocp.args.Composite(state=ocp.args.StandardSave(_storable(state)), run=ocp.args.JsonSave(run)),
        metrics=None if reward is None else {"reward": reward},
      )

  def restore(self, state: TrainState, check: Callable[[dict[str, Any]], None],
              laid_out: Callable[[TrainState, dict[str, Any]], TrainState] = lambda state, run: state):
    """The newest checkpoint that can be read, and is finite. Newer ones are put aside, as damaged-STEP, and told of.

    Args:
      state: how the checkpoint is to be laid out; its values do not matter, but for what never changes.
      check: is called with a checkpoint's JSON values; raises ValueError when they are not this run's.
      laid_out: gives `state` as a checkpoint with these JSON values has it.

    Returns:
      (state, run), or None when there is no checkpoint.

    Raises:
      CheckpointError: there are checkpoints, and none of them can be used; or one cannot for a reason that may pass.
    """
    damaged = {}  # step -> cause
    for step in sorted(self._manager.all_steps(), reverse=True):
      run = self._try(damaged, step, run=ocp.args.JsonRestore())
      if run is not None:
        check(run)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _storable(laid_out(state, run)))
        restored = self._try(damaged, step, state=ocp.args.StandardRestore(abstract))
        if restored is not None and (name := _not_finite(restored)):
          damaged[step], restored = f"{name} holds values that are infinite or not a number", None
        if restored is not None:
          self._put_aside(damaged)
          self._manager.reload()
          key = jax.random.wrap_key_data(restored.key)
          return restored.replace(key=key, frozen=state.frozen), run
    if damaged:
      causes = "; ".join(f"step {step}: {cause}" for step, cause in damaged.items())
      raise CheckpointError(
        f"checkpoints: none in {self.directory} can be used ({causes}); to start from the beginning, delete the folder"
      )
    return None

  def _try(self, damaged: dict[int, str], step: int, **item):
    """One item of a checkpoint; None where some process cannot read it, which `damaged` then tells."""
    [(name, args)] = item.items()
    # Each process reads by itself: were one to fail in a common restore, the others would wait for it.
    alone = ocp.options.MultiprocessingOptions(
      primary_host=None, active_processes={jax.process_index()}, barrier_sync_key_prefix=f"process{jax.process_index()}"
    )
    value = cause = None
    passing = False
    try:
      reader = ocp.Checkpointer(ocp.CompositeCheckpointHandler(name), multiprocessing_options=alone)
      with waiting(f"reading the checkpoint of step {step}"), reader:
        value = reader.restore(self.directory / str(step), args=ocp.args.Composite(**item))[name]
    except Exception as error:  # Orbax and TensorStore raise many kinds
      cause = cause_of(error)
      passing = isinstance(error, (MemoryError, PermissionError)) or any(sign in str(error) for sign in _PASSING)
    failures = [(cause, passing) for cause, passing in gather_json([cause, passing]) if cause]
    for cause, passing in failures:
      if passing:
        raise CheckpointError(f"checkpoints: step {step} in {self.directory} cannot be read now: {cause}")
    if failures:
      damaged[step] = failures[0][0]
      return None
    return value

  def _put_aside(self, damaged: dict[int, str]) -> None:
    for step, cause in damaged.items():
      aside = self.directory / f"damaged-{step}"
      _log.warning("SKIPPED the checkpoint of step %d, which cannot be used (%s); it is put aside as %s", step, cause,
                   aside)
      if is_first_process():
        if aside.exists():
          aside.rmtree()
        (self.directory / str(step)).rename(aside)
    if damaged:
      gather_json(None)  # nobody goes on before they are moved

  def has(self, step: int) -> bool:
    """Whether the checkpoint of a step is whole; in any thread, also while it is being written."""
    try:
      return self.directory.is_dir() and step in ocp.utils.checkpoint_steps(self.directory)
    except Exception:  # a store that does not answer
      return False

  def check(self) -> None:
    """Raises CheckpointError if a save in the background has failed."""
    with self._telling_failures():
      self._manager.check_for_errors()

  def close(self) -> None:
    """Waits until everything is written."""
    with self._telling_failures(), waiting(f"writing the last checkpoint to {self.directory}"):
      self._manager.wait_until_finished()
      self._manager.close()

  @contextlib.contextmanager
  def _telling_failures(self):
    try:
      yield
    except Exception as error:  # Orbax and TensorStore raise many kinds
      raise CheckpointError(
        f"checkpoints: cannot save to {self.directory} (is the disk full?): {cause_of(error)};"
        " earlier checkpoints are whole, and the same command resumes from them"
      ) from error


def _storable(state: TrainState) -> TrainState:
  """The state with its random key as plain integers, and without what never changes."""
  return state.replace(key=jax.random.key_data(state.key), frozen={})


def _not_finite(state: TrainState) -> str | None:
  return not_finite({"params": state.params, "opt_state": state.opt_state, "reference": state.reference})


def mark_copied(directory: epath.Path) -> None:
  """Marks checkpoints of an object store that are whole and lack Orbax's mark, without which it would delete them.

  They were copied there from a disk, where older releases of Orbax write no marks. Whole is one that has the time when
  it was finished, which Orbax writes when all the rest is written.

  Raises:
    CheckpointError: a mark cannot be written.
  """
  for file in sorted(directory.glob("*/_CHECKPOINT_METADATA")) if is_remote(directory) and directory.is_dir() else []:
    mark = file.parent / "commit_success.txt"
    if file.parent.name.isdecimal() and not mark.exists() and _ended(file):
      try:
        mark.write_text("copied")
      except Exception as error:  # a store raises many kinds
        raise CheckpointError(f"checkpoints: {mark}, the mark of a checkpoint that is whole, is missing and cannot be"
                              f" written: {cause_of(error)}") from error
      _log.warning("the checkpoint of step %s was copied to %s: it is marked as whole", file.parent.name, directory)


def _ended(metadata: epath.Path) -> bool:
  try:
    return json.loads(metadata.read_text()).get("commit_timestamp_nsecs") is not None
  except (OSError, ValueError, AttributeError):  # itself damaged
    return False


def damaged_metrics(directory: epath.Path) -> dict[epath.Path, str]:
  """Folder of a checkpoint's metrics -> why its evaluation's reward cannot be read. Orbax opens none beside it."""
  found = {}
  for file in sorted(directory.glob("*/metrics/metrics")) if directory.is_dir() else []:
    if file.parent.parent.name.isdecimal():
      try:
        float(json.loads(file.read_text())["reward"])
      except (OSError, ValueError, LookupError, TypeError) as error:
        found[file.parent] = cause_of(error)
  return found


def _put_damaged_metrics_aside(directory: epath.Path) -> None:
  for folder, cause in damaged_metrics(directory).items():
    aside = directory / f"damaged-metrics-{folder.parent.name}"
    _log.warning("the evaluation's reward in the checkpoint of step %s cannot be read (%s); it is put aside as %s, and"
                 " the checkpoint is used without", folder.parent.name, cause, aside)
    if aside.exists():
      aside.rmtree()
    folder.rename(aside)


def cause_of(error: BaseException) -> str:
  """What Orbax or TensorStore says went wrong, in one line: without how the array was to be read, which is a page."""
  while error.__cause__ is not None:
    error = error.__cause__
  said = " ".join(_DETAILS.split(str(error))[0].split())
  # The end, because TensorStore puts the operating system's word last.
  said = said if len(said) <= _LONGEST_CAUSE else f"… {said[-_LONGEST_CAUSE:]}"
  needs_name = isinstance(error, (LookupError, json.JSONDecodeError)) or not said
  return f"{type(error).__name__}: {said}" if needs_name else said
