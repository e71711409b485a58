"""Checkpoints by Orbax: asynchronous, the latest few and the best, complete enough to resume bit for bit."""

import json
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from gdsd_jax.training.state import TrainState


class CheckpointError(OSError):
  """A checkpoint could not be written or read; the message is one line with the cause."""


class Checkpoints:
  """The checkpoints of one run, in `directory`."""

  def __init__(self, directory: Path, keep: int):
    self.directory = directory
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
      self._manager = ocp.CheckpointManager(
        directory.absolute(), options=options, item_names=("state", "run")
      )
    except OSError as error:
      raise CheckpointError(f"checkpoints: cannot use {directory}: {error}") from error

  @property
  def latest_step(self) -> int | None:
    """Step of the newest complete checkpoint; None if there is none."""
    return self._manager.latest_step()

  def save(self, state: TrainState, run: dict[str, Any], reward: float | None) -> None:
    """Begins to save; returns once the arrays are copied.

    Args:
      state: what the next iteration starts from.
      run: JSON values that belong to it (config, data position).
      reward: of the greedy evaluation at this step, which the best checkpoint is chosen by; None if there was none.
    """
    self.check()
    try:
      self._manager.save(
        int(state.step),
        args=ocp.args.Composite(state=ocp.args.StandardSave(_storable(state)), run=ocp.args.JsonSave(run)),
        metrics=None if reward is None else {"reward": reward},
      )
    except Exception as error:  # Orbax and TensorStore raise many kinds
      raise self._failed(error) from error

  def restore_run(self) -> dict[str, Any]:
    """The JSON values of the newest checkpoint."""
    return self._restore(run=ocp.args.JsonRestore())["run"]

  def restore_state(self, state: TrainState) -> TrainState:
    """The newest checkpoint's state, laid out as `state` (whose values do not matter) is."""
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _storable(state))
    restored = self._restore(state=ocp.args.StandardRestore(abstract))["state"]
    return restored.replace(key=jax.random.wrap_key_data(restored.key), frozen=state.frozen)

  def _restore(self, **items):
    try:
      return self._manager.restore(self.latest_step, args=ocp.args.Composite(**items))
    except Exception as error:  # Orbax and TensorStore raise many kinds
      raise CheckpointError(
        f"checkpoints: step {self.latest_step} in {self.directory} cannot be read: {_cause(error)}"
      ) from error

  def check(self) -> None:
    """Raises CheckpointError if a save in the background has failed."""
    try:
      self._manager.check_for_errors()
    except Exception as error:  # as above
      raise self._failed(error) from error

  def close(self) -> None:
    """Waits until everything is written."""
    try:
      self._manager.wait_until_finished()
      self._manager.close()
    except Exception as error:  # as above
      raise self._failed(error) from error

  def _failed(self, error: Exception) -> CheckpointError:
    return CheckpointError(
      f"checkpoints: cannot save to {self.directory} (is the disk full?): {_cause(error)};"
      " earlier checkpoints are whole, and the same command resumes from them"
    )


def _storable(state: TrainState) -> TrainState:
  """The state with its random key as plain integers, and without what never changes."""
  return state.replace(key=jax.random.key_data(state.key), frozen={})


def _cause(error: Exception) -> str:
  # The end, because TensorStore puts the operating system's word last.
  return json.dumps(" ".join(str(error).split())[-300:] or type(error).__name__)
