"""Pretrains a small denoiser from nothing: python launch/pretrain.py --config=configs/pretrain_tiny.py --out=DIR."""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from gdsd_jax.training import command

_CONFIG = config_flags.DEFINE_config_file("config", None, "What to pretrain, on what.", lock_config=True)
_OUT = flags.DEFINE_string("out", None, "Folder for the Hugging Face files.")


def main():
  from gdsd_jax.training.metrics import log_to_stdout
  from gdsd_jax.training.pretraining import pretrain

  log_to_stdout()
  pretrain(_CONFIG.value, Path(_OUT.value))


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "out"])
  command.run(main)
