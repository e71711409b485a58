"""What the commands in launch/ say of themselves for --help, and which of their fields a mistyped one is near to."""

from collections.abc import Sequence
import re
import sys
import textwrap
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from gdsd_jax.checks import did_you_mean_field
from gdsd_jax.runs.recipe_files import recipe_file

HELP = ("--help", "-help", "-h", "--helpshort", "--helpfull")
_WIDTH = 110
_OWN = ("task", "objective", "sampler")  # sections whose fields may be those of one's own code, which says them


def text(arguments: Sequence[str]) -> str:
  """All that the command which runs has to say of itself: what it does, its flags, and the fields of its recipe.

  The recipe is that of --config among the `arguments`, or the first that the command's own text names. Raises
  ValueError or OSError, one line, where there is no such recipe.
  """
  described = (sys.modules["__main__"].__doc__ or "").strip()
  said = [described, "", "Flags:"]
  for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]):
    value = "" if flag.default is None else f"={flag.default_as_str.strip(chr(39))}"
    said += [f"  --{flag.name}{value}", *_wrapped(flag.help)]
  if "config" in flags.FLAGS:
    named = re.search(r"configs/(\w+)\.py", described)  # nothing where Python leaves docstrings out
    recipe = _given(arguments) or (named[1] if named else "gdsd_math")
    said += ["", f"Fields of --config, each a flag, as they are in {recipe}:", *_fields(load(recipe))]
  return "\n".join(said)


def _fields(config: ConfigDict) -> list[str]:
  from gdsd_jax.runs.config_dict import flatten

  values, explained, said = flatten(config.to_dict()), explanations_of(config), []
  for path in sorted(values, key=lambda path: (path.count(".") > 0, path.rpartition(".")[0])):
    said += [f"  --config.{path}={_written(values[path])}", *_wrapped(explained.get(path, ""))]
  return said


def explanations_of(config: ConfigDict) -> dict[str, str]:
  """Path -> explanation of the fields that a recipe may have, chosen by its `kind`: a ConfigDict's."""
  from gdsd_jax.runs.fields import explanations

  kind = config.get("kind")
  if kind is None:
    from gdsd_jax.runs.config import RunConfig as cls
  elif kind == "sft":
    from gdsd_jax.supervised.config import FinetuningConfig as cls
  elif kind == "comparison":
    from gdsd_jax.comparison.config import ComparisonConfig as cls
  elif kind == "vrpo":
    from gdsd_jax.supervised.config import PreferenceConfig as cls
  else:
    from gdsd_jax.supervised.config import PretrainingConfig as cls
  return explanations(cls) | ({} if kind is None else {"kind": "what the recipe is of"})


def no_field(argument: str, path: str, config: ConfigDict) -> str:
  """What is said of an argument whose path is no field of a recipe."""
  from gdsd_jax.runs.config_dict import flatten  # this and the others import JAX

  known = {**explanations_of(config), **flatten(config.to_dict())}
  return f"{argument}: the config has no field {path!r}{did_you_mean_field(path, known)}"


def unknown_field(arguments: Sequence[str]) -> str | None:
  """What is said of the first --config.PATH=VALUE whose PATH is no field of the recipe, or none that it says; None
  where there is none such.

  Sections of one's own code may have any field. Raises ValueError or OSError where there is no such recipe.
  """
  from gdsd_jax.runs.config_dict import base_config, flatten

  recipe = _given(arguments) or ""
  config = base_config() if recipe.endswith("/config.json") else load(recipe)  # that of a run has all fields
  explained, said = explanations_of(config), flatten(config.to_dict())
  own = _OWN if config.get("kind") in (None, "comparison") else _OWN[:1]  # fine-tuning has no objective of one's own
  for argument in arguments:
    path = argument.lstrip("-").partition("=")[0].removeprefix("config.")
    if not argument.lstrip("-").startswith("config.") or path in said or path.partition(".")[0] in own:
      continue
    if path not in explained:
      return no_field(argument, path, config)
    if config.get("kind") == "pretraining":  # whose recipes say some of the fields that there are
      return f"{argument}: changes what the recipe says, and it does not say {path}; write it there"
  return None


def _given(arguments: Sequence[str]) -> str | None:
  found = re.search(r"(?:^| )--?config[= ](\S+)", " ".join(arguments))
  return found and found[1]


def load(recipe: str) -> ConfigDict:
  """A recipe by its file or name, before flags change it. Raises ValueError or OSError, one line."""
  return config_flags.ConfigFileFlagParser("config").parse(recipe_file(recipe))


def _wrapped(said: str | None) -> list[str]:
  lines = textwrap.wrap(" ".join((said or "").split()), _WIDTH - 6)
  return [f"      {line}" for line in lines]


def _written(value: Any) -> str:
  return ",".join(map(str, value)) if isinstance(value, list) else str(value)
