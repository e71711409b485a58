"""Exports a run's model: python launch/export.py --workdir=RUN --out=DIR [--step=latest|best|N] [--merge].

Full-parameter runs give a folder that transformers opens by AutoModelForMaskedLM, offline and with nothing asked; with
--layout=published one for the code of the model's authors. LoRA runs give a PEFT adapter for the model that they came
from, or with --merge the full model with the adapter added to its weights. The tokenizer, with its chat template, and a
model card come along.
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

_LAYOUT = flags.DEFINE_enum("layout", None, ["transformers", "published"], "For whose code; see the top of this file.")


def main():
  from gdsd_jax.runs.export import export_run
  from gdsd_jax.runs.metrics import log_to_stdout

  log_to_stdout()
  export_run(run_folder(_WORKDIR.value), _STEP.value, local_folder("--out", _OUT.value), _MERGE.value,
             _LAYOUT.value)


if __name__ == "__main__":
  flags.mark_flags_as_required(["workdir", "out"])
  command.run(main)
