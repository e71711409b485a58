"""Pretrains a small denoiser from nothing, or fine-tunes a loaded one on chats or preferences.

python launch/pretrain.py --config=configs/pretrain_tiny.py --out=DIR [--workdir=RUN]
python launch/pretrain.py --config=configs/sft.py --config.data.train_source=chats.jsonl --out=DIR [--workdir=RUN]
python launch/pretrain.py --config=configs/vrpo.py --config.data.train_source=pairs.jsonl --out=DIR [--workdir=RUN]
"""

from gdsd_jax import signals

if __name__ == "__main__":
  signals.begin_run()  # before imports that take seconds

from absl import flags
from ml_collections import config_flags

from gdsd_jax import command
from gdsd_jax.runs.files import local_folder, run_folder

_CONFIG = config_flags.DEFINE_config_file("config", None, "What to pretrain, on what.", lock_config=True)
_OUT = flags.DEFINE_string("out", None, "Folder for the Hugging Face files, or for the PEFT adapter.")
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder of the run; the same command resumes it. By default OUT with .run appended."
)

_ALLOW_CHANGED_INPUTS = flags.DEFINE_bool(
  "allow_changed_inputs", False, "Go on with a run that was begun with other weights, data or code."
)

_LAYOUT = flags.DEFINE_enum("layout", None, ["transformers", "published"], "For whose code, as of launch/export.py.")


def main():
  from gdsd_jax.runs.metrics import log_to_stdout

  log_to_stdout()
  config, out = _CONFIG.value, local_folder("--out", _OUT.value)
  kind = config.get("kind")
  if kind not in ("pretraining", "sft", "vrpo"):
    raise ValueError("--config: must be configs/pretrain_tiny.py, configs/sft.py or configs/vrpo.py; launch/train.py"
                     " takes the others")
  where = run_folder(_WORKDIR.value or f"{out}.run"), out, _ALLOW_CHANGED_INPUTS.value, _LAYOUT.value
  if kind == "pretraining":
    from gdsd_jax.supervised.config import pretraining_config
    from gdsd_jax.supervised.pretraining import pretrain

    pretrain(pretraining_config(config), *where)
    return
  from gdsd_jax.runs.config_dict import typed
  from gdsd_jax.supervised.config import FinetuningConfig, PreferenceConfig
  from gdsd_jax.supervised.finetuning import finetune, Finetuning
  from gdsd_jax.supervised.preferences import PreferenceFinetuning

  fields, training = {"sft": (FinetuningConfig, Finetuning), "vrpo": (PreferenceConfig, PreferenceFinetuning)}[kind]
  finetune(typed(fields, config), *where, training)


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "out"])
  command.run(main)
