"""Where recipes are: a file of the user's, or one of the package's own by its name."""

from collections.abc import Sequence
import itertools
from pathlib import Path
import re

from gdsd_jax import own_code
from gdsd_jax.checks import did_you_mean
from gdsd_jax.paths import expanded

PACKAGED = Path(__file__).parent / "../configs"


def recipe_names() -> list[str]:
  """Names of the package's own recipes."""
  return sorted(file.stem for file in PACKAGED.glob("*.py"))


def run_name(config: str) -> str:
  """RECIPE_PRESET of a --config flag, file or name: gdsd_math_tiny for configs/gdsd_math.py and for gdsd_math:tiny."""
  recipe, _, preset = config.partition(":")
  return f"{Path(recipe).stem}_{preset or 'tiny'}"


def run_of(arguments: Sequence[str]) -> str | None:
  """The value of --workdir in a command line without a --config: then the recipe is the run's own; None otherwise."""
  values = {}
  for argument, following in itertools.zip_longest(arguments, arguments[1:]):
    if match := re.fullmatch(r"--?(config|workdir)(?:=(.*))?", argument, re.DOTALL):
      values[match[1]] = following if match[2] is None else match[2]
  return None if "config" in values else values.get("workdir")


def recipe_file(config: str) -> str:
  """The file of a --config flag, with the preset that follows a colon left as it is. It may import what lies beside it.

  A name without folder and suffix is NAME.py in the current folder, if that is there, or else the package's own recipe.
  What is no such name is a path, and stays as it is but for `~`, which shells leave alone within an argument.

  Raises:
    FileNotFoundError: there is no recipe of this name; the message tells those that there are.
    ValueError: `~` stands for no home.
  """
  found = _found(config)
  file = Path(found.partition(":")[0])
  if file.is_file():
    own_code.look_also_in(file.resolve().parent)
  return found


def _found(config: str) -> str:
  name, colon, preset = config.partition(":")
  if not re.fullmatch(r"[\w-]+", name) or Path(name).is_file():
    return f"{expanded(name, '--config')}{colon}{preset}" if name.startswith("~") else config
  file = Path(f"{name}.py")
  if not file.is_file():
    file = PACKAGED / file
  if not file.is_file():
    near = did_you_mean(name, recipe_names())
    raise FileNotFoundError(f"no recipe {name!r}{near}; known are {', '.join(recipe_names())}, or name a file")
  return f"{file}{colon}{preset}"
