"""Exports a run's model: python launch/export.py --workdir=RUN --out=DIR [--step=latest|best|N] [--merge].

Full-parameter runs give a folder in the layout of the model they came from. LoRA runs give a PEFT adapter, or with
--merge the full model with the adapter added to its weights. The tokenizer's files come along with full models.
"""

from gdsd_jax import signals

if __name__ == "__main__":
  signals.begin()  # before imports that take seconds

from absl import flags

from gdsd_jax import command
from gdsd_jax.runs.files import local_folder, run_folder

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_OUT = flags.DEFINE_string("out", None, "Folder for the exported files.")
_STEP = flags.DEFINE_string("step", "latest", "Checkpoint to export: latest, best, or its step.")
_MERGE = flags.DEFINE_bool("merge", False, "Of a LoRA run, export the full model instead of the adapter.")


def main():
  from gdsd_jax.runs.export import export_run
  from gdsd_jax.runs.metrics import log_to_stdout

  log_to_stdout()
  export_run(run_folder(_WORKDIR.value), _STEP.value, local_folder("--out", _OUT.value), _MERGE.value)


if __name__ == "__main__":
  flags.mark_flags_as_required(["workdir", "out"])
  command.run(main)
