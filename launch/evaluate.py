"""Evaluates a model on a task's test split, by the papers' protocol: lengths 128, 256 and 512, official prompts.

  python launch/evaluate.py --workdir=runs/gdsd_math_tiny --step=best
  python launch/evaluate.py --config=configs/gdsd_math.py:llada_8b --model=GSAI-ML/LLaDA-8B-Instruct

A run is evaluated by its own settings, those of its config.json: own tasks, rewards, samplers and layouts among them.
--config.FIELD=VALUE changes one of them. A --config=RECIPE beside --workdir takes the place of all but the model: which
settings are other than the run's is told. Without --workdir and --model it is the model that the recipe starts from.

The same command resumes an evaluation that was interrupted. Its folder (--out) is WORKDIR/evaluation/NAME_step_STEP
for a local run, where NAME is RECIPE_PRESET, or without a recipe that of WORKDIR, else
runs/evaluation/RECIPE_PRESET_MODEL; another evaluation in the same folder is refused. The last line of standard output
is one JSON object: accuracy (the official parser's, of the best length), its 95 % interval, the lenient accuracy, the
numbers of every length, and the protocol.
"""

from gdsd_jax import signals

if __name__ == "__main__":
  # Before imports that take seconds.
  signals.begin("asked to stop: what was generated is saved; the same command goes on", signals.START_AGAIN)

import json
from pathlib import Path
import sys

from absl import flags
from ml_collections import config_flags

from gdsd_jax import command
from gdsd_jax.runs.files import is_remote, local_folder
from gdsd_jax.runs.recipe_files import run_name, run_of

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Recipe that names the task and the protocol, with its preset after a colon; a run has its own.",
  lock_config=False, accept_new_attributes=True,  # fields of one's own task are its own
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run, whose checkpoint is evaluated.")
_STEP = flags.DEFINE_string("step", None, "With --workdir: latest (the default), best, or the checkpoint's step.")
_MODEL = flags.DEFINE_string("model", None, "Model to evaluate: a folder (exported, PEFT, Hugging Face) or hub name.")
_LENGTHS = flags.DEFINE_list("lengths", None, "Completion lengths, instead of the recipe's eval.lengths.")
_OUT = flags.DEFINE_string("out", None, "Folder for generations.jsonl and summary.json; see the top of this file.")
_NUM_EXAMPLES = flags.DEFINE_integer("num_examples", None, "The first of the test split; by default all of it.")


def default_out(config, recipe: str | None, evaluated) -> Path:
  """RUN/evaluation/gdsd_math_tiny_step_100 for a run, runs/evaluation/gdsd_math_llada_8b_MODEL for another model.

  The recipe is None for a run's own, which the run's folder names.
  """
  workdir, name = evaluated.workdir, recipe and run_name(recipe)
  if workdir is None:
    return Path("runs") / "evaluation" / f"{name}_{Path(evaluated.model or config.model.path).name}"
  if is_remote(workdir):
    return Path("runs") / "evaluation" / f"{name + '_' if name else ''}{workdir.name}_step_{evaluated.step}"
  return Path(workdir) / "evaluation" / f"{name or Path(workdir).resolve().name}_step_{evaluated.step}"


def main():
  from gdsd_jax.evaluation.protocol import evaluate_model
  from gdsd_jax.evaluation.settings import tell_differences, warn_of_flags
  from gdsd_jax.parallel.processes import is_first_process
  from gdsd_jax.runs.chosen_model import ChosenModel
  from gdsd_jax.runs.config_dict import check_recipe, run_config
  from gdsd_jax.runs.metrics import log_to_stdout

  log_to_stdout()
  recipe = _CONFIG.value
  check_recipe(recipe)
  if _OUT.value == "":  # an unset variable of the shell, say
    raise ValueError("--out: is empty")
  if _LENGTHS.value is not None:
    if not all(length.strip().isdecimal() for length in _LENGTHS.value):
      raise ValueError(f"--lengths: must be numbers with commas between, not {','.join(_LENGTHS.value)!r}")
    recipe.eval.lengths = tuple(map(int, _LENGTHS.value))
  given = config_flags.get_override_values(flags.FLAGS["config"])
  evaluated = ChosenModel.of_flags(_WORKDIR.value, _STEP.value, _MODEL.value, given)
  warn_of_flags(given, recipe.sampler.kind, evaluated.workdir)
  config, evaluated = run_config(recipe), evaluated.resolved()
  named = None if _OWN_RECIPE else flags.FLAGS["config"].config_filename
  if named and evaluated.workdir is not None:
    tell_differences(config, given, named, evaluated.workdir)
  out = default_out(config, named, evaluated)
  if _OUT.value:
    out = local_folder("--out", _OUT.value)
  summary = evaluate_model(config, evaluated, out, _NUM_EXAMPLES.value)
  if is_first_process():
    print(json.dumps({**summary, "out": str(out)}), flush=True)


if __name__ == "__main__":
  if _OWN_RECIPE := run_of(sys.argv[1:]):
    sys.argv.insert(1, f"--config={_OWN_RECIPE.rstrip('/')}/config.json")
  flags.mark_flag_as_required("config")
  command.run(main)
