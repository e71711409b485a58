"""Trains a denoiser: python launch/train.py --config=configs/gdsd_math.py [--workdir=DIR] [--config.field=value].

Several values of a field make a sweep, --config.seed=0,1,2 --config.objective.psi=0.01,0.04: see docs/sweeps.md.
"""

from gdsd_jax import signals

if __name__ == "__main__":
  signals.begin_run()  # before imports that take seconds

import functools
from pathlib import Path
import sys

from absl import flags
from ml_collections import config_flags

from gdsd_jax import command
from gdsd_jax.runs.files import run_folder
from gdsd_jax.runs.recipe_files import run_name

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Recipe, with its preset after a colon: configs/gdsd_math.py:tiny.",
  lock_config=False, accept_new_attributes=True,  # fields of one's own task are its own
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder of the run, local or gs://…; the same command resumes it. By default runs/RECIPE_PRESET."
)
_ALLOW_CHANGED_INPUTS = flags.DEFINE_bool(
  "allow_changed_inputs", False, "Go on with a run that was begun with other weights, data or code."
)
_JOBS = flags.DEFINE_integer("jobs", None, "How many runs of a sweep go on at a time; by default one after the other.")


def workdir(suffix: str = ""):
  """By default runs/gdsd_math_tiny for configs/gdsd_math.py:tiny: the same command finds the same folder."""
  if _WORKDIR.value == "":  # an unset variable of the shell, say
    raise ValueError("--workdir: is empty")
  return run_folder(_WORKDIR.value or Path("runs") / (run_name(flags.FLAGS["config"].config_filename) + suffix))


def main():
  from gdsd_jax.runs.config_dict import run_config
  from gdsd_jax.runs.metrics import log_to_stdout
  from gdsd_jax.training.trainer import Trainer

  log_to_stdout()
  if _JOBS.value is not None:
    raise ValueError("--jobs: is for sweeps, such as --config.seed=0,1,2")
  Trainer(run_config(_CONFIG.value), workdir(), allow_changed_inputs=_ALLOW_CHANGED_INPUTS.value).train()


def sweep(grid, arguments):
  """Runs a grid, each run by a process with the `arguments` that all share."""
  from gdsd_jax.training.sweep_runs import run_sweep

  jobs = 1 if _JOBS.value is None else _JOBS.value
  sys.exit(run_sweep(_CONFIG.value, grid, workdir("_sweep"), arguments, jobs))


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  swept = {}
  if any("," in argument for argument in sys.argv):
    from gdsd_jax.training.sweep_grid import split_grid

    sys.argv[1:], swept = split_grid(sys.argv[1:])
  command.run(functools.partial(sweep, swept, sys.argv[1:]) if swept else main, alone=bool(swept))
