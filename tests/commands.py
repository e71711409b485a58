"""Commands of launch/ in processes that are forked from one which has imported what they import: a start costs little.

The first of a test process starts that one. What a fresh interpreter does is tested where a test starts one itself.
"""

import multiprocessing
import os
from pathlib import Path
import runpy
import subprocess
import sys
import tempfile

import jax

REPOSITORY = Path(__file__).parent.parent
FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload([
  "jax", "matplotlib.figure", "gdsd_jax.benchmark.measure", "gdsd_jax.evaluation.protocol",
  "gdsd_jax.supervised.finetuning", "gdsd_jax.training.trainer",
])


class Command:
  """A script of this repository that runs with these arguments, from its root.

  Attributes:
    process: the multiprocessing.Process; its `exitcode` is None until the command has ended.
  """

  def __init__(self, *arguments, **environment: str):
    self.folder = tempfile.TemporaryDirectory()
    self.outputs = [Path(self.folder.name) / name for name in ("stdout", "stderr")]
    arguments, environment = [str(argument) for argument in arguments], {**os.environ, **environment}
    self.process = FORKING.Process(target=_run, args=(arguments, environment, self.outputs), daemon=False)
    self.process.start()

  def finish(self, timeout: float = 1500) -> subprocess.CompletedProcess:
    """Waits for its end, and says it as `subprocess.run` does. After `timeout` seconds it is killed, an error."""
    self.process.join(timeout)
    late = self.process.exitcode is None
    self.process.kill()
    self.process.join()
    stdout, stderr = (path.read_text() if path.exists() else "" for path in self.outputs)
    self.folder.cleanup()
    assert not late, f"still running after {timeout} s: {stdout[-1000:]} {stderr[-1000:]}"
    return subprocess.CompletedProcess([], self.process.exitcode, stdout, stderr)


def run_command(*arguments, **environment: str) -> subprocess.CompletedProcess:
  """The end of `Command`."""
  return Command(*arguments, **environment).finish()


def _run(arguments, environment, outputs):
  for path, descriptor in zip(outputs, (1, 2)):
    with path.open("wb") as file:
      os.dup2(file.fileno(), descriptor)
  os.chdir(REPOSITORY)
  os.environ.clear()
  os.environ.update(environment)
  jax.config.update("jax_platforms", "cpu")
  sys.argv = arguments
  runpy.run_path(arguments[0], run_name="__main__")
