"""Answers a prompt, or chats in a terminal, with any model, checkpoint or export; the answer unmasks before your eyes.

  python launch/sample.py --config=configs/gdsd_math.py --prompt="Tom has 3 apples and buys 2 more. How many apples?"
  python launch/sample.py --workdir=runs/gdsd_math_tiny --step=best
  echo "Who are you?" | python launch/sample.py --model=GSAI-ML/LLaDA-8B-Instruct
  python launch/sample.py --config=configs/gdsd_math.py --index=7

The sampler is the recipe's or the run's, --config.sampler.FIELD=VALUE changes it; a --model without either is sampled
greedily as its family is. Without --prompt and --index, a prompt is read from standard input, or in a terminal a chat
begins. What is not a terminal gets the answer and a line of numbers, or with --json one JSON object, and nothing else.
docs/sample.md tells more.
"""

from gdsd_jax import signals

if __name__ == "__main__":
  signals.begin(only_result=True)  # before imports that take seconds

import importlib.util
import logging
import re
import signal
import sys

from absl import flags
from ml_collections import config_flags

from gdsd_jax import command, command_help
from gdsd_jax.runs.recipe_files import run_of
from gdsd_jax.tasks.base import SPLITS

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Recipe that names model, sampler and task, with its preset after a colon; a run has its own.",
  lock_config=False, accept_new_attributes=True,  # fields of one's own task or sampler are its own
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run, whose checkpoint answers.")
_STEP = flags.DEFINE_string("step", None, "With --workdir: latest (the default), best, or the checkpoint's step.")
_MODEL = flags.DEFINE_string("model", None, "Model that answers: a folder (exported, PEFT, Hugging Face) or hub name.")
_PROMPT = flags.DEFINE_string("prompt", None, "What is asked, as a user's turn.")
_TASK = flags.DEFINE_string("task", None, "With --index: the task, in place of the recipe's; as --config.task.name.")
_INDEX = flags.DEFINE_integer("index", None, "Asks the problem of the task that has this index, and grades the answer.")
_SPLIT = flags.DEFINE_enum("split", "test", SPLITS, "With --index: which problems.")
_HTML = flags.DEFINE_string("html", None, "File for a page that replays the answers, step by step.")
_LIVE = flags.DEFINE_bool("live", True, "In a terminal, show answers as they come.")
_JSON = flags.DEFINE_bool("json", False, "Write one JSON object with the answer and all that is known of it.")


def recipe_of(arguments: list[str]) -> str | None:
  """The --config of a command line that has none: the run's own, or what a model is sampled by that is named alone."""
  if any(re.match(r"--?config(=|$)", each) or each in command_help.HELP for each in arguments):
    return None
  if workdir := run_of(arguments):
    return f"{workdir.rstrip('/')}/config.json"
  return importlib.util.find_spec("gdsd_jax.chat.model_alone").origin


def names_no_recipe() -> bool:
  return _RECIPE is not None and _WORKDIR.value is None


def check_flags() -> None:
  """Refuses flags that contradict each other, or do nothing."""
  from gdsd_jax.parallel.processes import is_one_of_several

  asks = _PROMPT.value is not None or _INDEX.value is not None
  in_terminal = sys.stdin.isatty() and not asks
  for wrong, message in (
    (is_one_of_several(), "a sample is made by a single process, and this is one of several"),
    (names_no_recipe() and _MODEL.value is None, "--model: name one, such as tiny, or a --workdir or --config"),
    (_INDEX.value is not None and _PROMPT.value is not None, "--prompt: --index names a problem; give one of them"),
    (_INDEX.value is None and _TASK.value is not None, "--task: needs --index, the number of its problem"),
    (_INDEX.value is None and flags.FLAGS["split"].present, "--split: needs --index, the number of the problem in it"),
    (in_terminal and not sys.stdout.isatty(), "--prompt: is not given, and there is no terminal to chat in"),
    (in_terminal and _JSON.value, "--json: tells of a single answer; give --prompt or --index"),
  ):
    if wrong:
      raise ValueError(message)


def main():
  from gdsd_jax.chat.answers import Answering
  from gdsd_jax.chat.config import sample_config
  from gdsd_jax.chat.once import answer_once, read_prompt
  from gdsd_jax.chat.problems import find_problem
  from gdsd_jax.chat.replay import Replay
  from gdsd_jax.chat.session import Session
  from gdsd_jax.runs.chosen_model import ChosenModel
  from gdsd_jax.runs.metrics import log_to_stdout

  answer_alone = not sys.stdout.isatty() or _JSON.value
  log_to_stdout(sys.stderr if answer_alone else None)
  if answer_alone and not sys.stderr.isatty():  # nobody looks on: what is said there is what went wrong
    logging.getLogger("gdsd_jax").setLevel(logging.WARNING)
  check_flags()
  recipe, given = _CONFIG.value, config_flags.get_override_values(flags.FLAGS["config"])
  if _TASK.value is not None:
    recipe.task.name = _TASK.value
  chosen = ChosenModel.of_flags(_WORKDIR.value, _STEP.value, _MODEL.value, given)
  config = sample_config(recipe, given, chosen, is_alone=names_no_recipe())
  replay = None if _HTML.value is None else Replay(_HTML.value, "Answers")
  problem = messages = None
  if _INDEX.value is not None:
    problem = find_problem(config, _SPLIT.value, _INDEX.value)
    messages = problem.messages
  elif _PROMPT.value is not None or not sys.stdin.isatty():
    messages = [{"role": "user", "content": read_prompt(_PROMPT.value, sys.stdin)}]
  answering = Answering(config, chosen.resolved())
  if messages is None:
    Session(answering, config, sys.stdout, replay, _LIVE.value).run()
  elif not answer_once(answering, config, messages, sys.stdout, problem, replay, _LIVE.value, _JSON.value):
    sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
  if _RECIPE := recipe_of(sys.argv[1:]):
    sys.argv.insert(1, f"--config={_RECIPE}")
  command.run(main, alone=True)
