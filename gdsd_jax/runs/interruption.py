"""Termination that was asked for (SIGTERM: a preempted VM, Slurm, Kubernetes): the step under way ends and is saved."""

import signal
import threading

import jax

from gdsd_jax.parallel.processes import gather_json

START_AGAIN = 75  # exit status, EX_TEMPFAIL: the same command goes on where this one was


class Interrupted(Exception):
  """The run was asked to stop and has saved its state; the same command goes on from there."""

  def __init__(self, step: int, steps: int):
    super().__init__(f"asked to stop: saved step {step} of {steps}; the same command goes on from there")


class Interruption:
  """Within `with`, SIGTERM is noted and no longer ends the process."""

  def __init__(self):
    self._asked = False

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers
      self._previous = signal.signal(signal.SIGTERM, self._note)
    return self

  def __exit__(self, *_):
    if threading.current_thread() is threading.main_thread():
      signal.signal(signal.SIGTERM, self._previous)

  def _note(self, *_):
    self._asked = True

  def ask(self) -> None:
    """Asks for it from within."""
    self._asked = True

  def asked(self) -> bool:
    """Whether any process of the run was asked to stop. Collective: all of them learn it at the same step."""
    return self._asked if jax.process_count() == 1 else any(gather_json(self._asked))
