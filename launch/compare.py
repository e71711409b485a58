"""Compares objectives: python launch/compare.py --config=configs/compare.py [--workdir=DIR] [--jobs=N].

Every objective of the config on every task and seed, each a run of launch/train.py in a folder of its own below
--workdir. Its learning rate is the one that a small sweep on other seeds chose for it. The same command goes on, skips
what is done and resumes the rest; SIGTERM and Ctrl-C stop all with their steps saved, exit status 75. See
docs/comparison.md.

  python launch/compare.py --config=configs/compare.py --report           # of what is done so far, and starts nothing
  python launch/compare.py --report=docs/comparison.json                  # tables and picture beside it, made again
"""

from gdsd_jax import signals

if __name__ == "__main__":
  signals.begin_run()  # before imports that take seconds

import os
from pathlib import Path
import re
import sys

from absl import flags
from ml_collections import config_flags

from gdsd_jax import command
from gdsd_jax.runs.files import local_folder
from gdsd_jax.runs.recipe_files import run_name

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "What is compared, with a preset after a colon: configs/compare.py:ablations.", lock_config=False,
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Local folder of all runs and the report; by default runs/compare_PRESET."
)
_JOBS = flags.DEFINE_integer("jobs", 1, "How many runs go on at a time.")
_REPORT = flags.DEFINE_string("report", None, "Only report: what --workdir holds, or what this file holds.")


def workdir():
  """By default runs/compare_PRESET: the same command finds the same folder."""
  if _WORKDIR.value == "":  # an unset variable of the shell, say
    raise ValueError("--workdir: is empty")
  return local_folder("--workdir", _WORKDIR.value or Path("runs") / run_name(flags.FLAGS["config"].config_filename))


def main():
  if _REPORT.value:
    from gdsd_jax.comparison.report import report_file

    if _WORKDIR.value is not None:
      raise ValueError("--workdir: says nothing beside --report=FILE, which reports beside the file; leave one out")
    print(report_file(local_folder("--report", _REPORT.value)))
    return
  from gdsd_jax.comparison.compare import run_comparison
  from gdsd_jax.comparison.config import comparison_config

  config, as_given = comparison_config(_CONFIG.value), _CONFIG.value.to_dict()
  if _REPORT.value is not None:
    from gdsd_jax.comparison.report import report_folder

    print(report_folder(config, as_given, workdir()))
    return
  # Runs side by side share the processors: threads that wait for each other cost a third of them.
  os.environ.setdefault("NPROC", str(max(1, (os.cpu_count() or 1) // max(1, _JOBS.value))))
  sys.exit(run_comparison(config, as_given, workdir(), _JOBS.value))


if __name__ == "__main__":
  sys.argv = [f"{argument}=" if argument == "--report" else argument for argument in sys.argv]
  given = lambda flag: any(re.match(f"--?{flag}", argument) for argument in sys.argv)
  if given("report=.") and not given("config(=|$)"):
    sys.argv.append("--config=compare")  # a report has its own in itself
  flags.mark_flag_as_required("config")
  command.run(main, alone=True)
