"""Where recipes are: a file of the user's, or one of the package's own by its name."""

from pathlib import Path

PACKAGED = Path(__file__).parent / "../configs"


def recipe_names() -> list[str]:
  """Names of the package's own recipes."""
  return sorted(file.stem for file in PACKAGED.glob("*.py"))


def run_name(config: str) -> str:
  """RECIPE_PRESET of a --config flag, file or name: gdsd_math_tiny for configs/gdsd_math.py and for gdsd_math:tiny."""
  recipe, _, preset = config.partition(":")
  return f"{Path(recipe).stem}_{preset or 'tiny'}"


def recipe_file(config: str) -> str:
  """The file of a --config flag, with the preset that follows a colon left as it is.

  A name without folder and suffix is NAME.py in the current folder, if that is there, or else the package's own recipe.
  What is no such name is a path, and stays as it is but for `~`, which shells leave alone within an argument.

  Raises:
    FileNotFoundError: there is no recipe of this name; the message tells those that there are.
  """
  name, colon, preset = config.partition(":")
  if not name.isidentifier() or Path(name).is_file():
    return f"{Path(name).expanduser()}{colon}{preset}" if name.startswith("~") else config
  file = Path(f"{name}.py")
  if not file.is_file():
    file = PACKAGED / file
  if not file.is_file():
    raise FileNotFoundError(f"no recipe {name!r}; known are {', '.join(recipe_names())}, or name a file")
  return f"{file}{colon}{preset}"
