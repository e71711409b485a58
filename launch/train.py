"""Trains a denoiser: python launch/train.py --config=configs/gdsd_math.py [--workdir=DIR] [--config.field=value]."""

from absl import flags
from etils import epath
from ml_collections import config_flags

from gdsd_jax import command
from gdsd_jax.runs.recipe_files import run_name

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Recipe, with its preset after a colon: configs/gdsd_math.py:tiny.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder of the run, local or gs://…; the same command resumes it. By default runs/RECIPE_PRESET."
)


def default_workdir(config_flag: str) -> epath.Path:
  """runs/gdsd_math_tiny for configs/gdsd_math.py:tiny, so that the same command finds the same folder."""
  return epath.Path("runs") / run_name(config_flag)


def main():
  from gdsd_jax.runs.config_dict import run_config
  from gdsd_jax.runs.metrics import log_to_stdout
  from gdsd_jax.training.trainer import train

  log_to_stdout()
  if _WORKDIR.value == "":  # an unset variable of the shell, say
    raise ValueError("--workdir: is empty")
  workdir = epath.Path(_WORKDIR.value) if _WORKDIR.value else default_workdir(flags.FLAGS["config"].config_filename)
  train(run_config(_CONFIG.value), workdir)


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  command.run(main)
