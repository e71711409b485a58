"""Users' own code, named FILE.py:NAME or PACKAGE.MODULE:NAME: it is loaded here, and its mistakes are told by line."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import contextlib
import functools
import importlib
import importlib.util
import inspect
import os
from pathlib import Path
import sys
import sysconfig
import traceback
from typing import Any

from gdsd_jax.checks import did_you_mean, kind_of, require, require_kinds

RAISED = (Exception, SystemExit)  # what a user's code may raise: where it means to leave, this process does not
_LIBRARIES = tuple({str(Path(folder).resolve()) + os.sep for folder in (
  *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")), Path(__file__).parent)})

_imported: set[str] = set()  # names of modules that references have named


def is_own(name: str | None) -> bool:
  """Whether a name in a config is that of the user's own code, and not one of ours, nor unset."""
  return name is not None and ":" in name


def load(reference: str, field: str) -> Any:
  """The object of that name, such as "my_task.py:MyTask" or "package.module:MyTask". A file is run once a process.

  Files are looked for in the current folder. Raises ValueError or OSError, one line that names `field`: where there is
  no such thing, or the file and line of the user's where it cannot be imported.
  """
  where, _, name = reference.rpartition(":")
  require(bool(where and name), field, f"{reference!r} must be FILE.py:NAME or PACKAGE.MODULE:NAME")
  try:
    found = _run(Path(where).expanduser().resolve()) if where.endswith(".py") else _import(where)
  except FileNotFoundError as error:
    if error.filename is not None:  # the user's own code lacks a file
      raise ValueError(f"{field}: {described(error)}") from error
    raise FileNotFoundError(f"{field}: {where}: there is no such file") from None
  except RAISED as error:  # importing runs the user's code, which may raise whatever it likes
    missing = isinstance(error, ModuleNotFoundError) and error.name and where.startswith(error.name)
    cause = f"there is no module {error.name!r}" if missing else described(error)
    raise ValueError(f"{field}: {cause}") from error
  for part in name.split("."):
    require(hasattr(found, part), field, f"{where} has no {part!r}{did_you_mean(part, dir(found))}")
    found = getattr(found, part)
  return found


def require_settings(
  thing: Any, field: str, reference: str, given: Mapping[str, Any], passed: int = 0,
  owners: Callable[[], Mapping[str, Sequence[str]]] = dict,
) -> None:
  """Settings of a section may be given that a class or function has a parameter for, after those `passed`, of its kind.

  Args:
    thing: the class or function.
    field: what the section calls it, such as "objective.name".
    reference: its name there.
    given: the settings.
    passed: leading parameters that are no settings.
    owners: gives for settings the other things that have them, which the message then tells.

  Raises:
    ValueError: one line that names what it does not take, what it takes, and how to unset the others; or what is of
      another kind than its annotation says.
  """
  try:
    parameters = list(inspect.signature(thing).parameters.values())[passed:]
  except (TypeError, ValueError):  # a built-in, which has no signature to look at
    parameters = []
  section = field.partition(".")[0]
  require_kinds(section, {parameter.name: parameter.annotation for parameter in parameters}, given)
  if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
    return
  known = [parameter.name for parameter in parameters]
  unknown = [name for name in given if name not in known]
  unset = " ".join(f"--config.{section}.{name}=None" for name in unknown)
  others = owners() if unknown else {}
  told = "; ".join(f"{name} is one of {', '.join(others[name])}" for name in unknown if name in others)
  require(not unknown, ", ".join(f"{section}.{name}" for name in unknown),
          f"{reference} has no such setting; it has {', '.join(known) or 'none'}{f' ({told})' if told else ''}."
          f" What a recipe sets, unset by {unset}")


def kinds_of(thing: Any) -> dict[str, type | None]:
  """Parameter of a class or function -> which of `checks.KINDS` it is by its annotation, or else by its default."""
  try:
    parameters = inspect.signature(thing).parameters.values()
  except (TypeError, ValueError):  # nothing to call, or a built-in, which has no signature to look at
    return {}
  kind = lambda parameter: kind_of(parameter.annotation) or kind_of(type(parameter.default))
  return {parameter.name: kind(parameter) for parameter in parameters}


@functools.cache
def _run(file: Path):
  if not file.is_file():
    raise FileNotFoundError
  look_also_in(file.parent)
  # A name of its own: a file may be called as a library is.
  spec = importlib.util.spec_from_file_location(f"own_code_{len(loaded_files())}_{file.stem}", file)
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module  # dataclasses look their module up
  try:
    spec.loader.exec_module(module)
  except BaseException:
    del sys.modules[spec.name]
    raise
  return module


def _import(module: str):
  look_also_in(Path.cwd())
  _imported.add(module)
  return importlib.import_module(module)


def look_also_in(folder: Path) -> None:
  """Imports of own code find their neighbours, which never hide a library."""
  if str(folder) not in sys.path:
    sys.path.append(str(folder))


def loaded_files() -> list[Path]:
  """The files of the user's own that `load` has run or imported, in the order that they were first imported in."""
  files = [module.__file__ for name, module in list(sys.modules.items())
           if (name.startswith("own_code_") or name in _imported) and getattr(module, "__file__", None)]
  return [Path(file) for file in files if not _is_library(file)]


def sources(given: Iterable[Any] = ()) -> dict[str, str]:
  """The text of the user's own code, by its name: files that `load` ran, and what was imported from beside them.

  So, too, that of functions, classes and objects which a program has `given`: their file, or of what is defined in the
  program itself, or typed at a prompt, each by itself. What has no text is left out.
  """
  given = [part for thing in given if thing is not None for part in _parts(thing)]
  folders = {str(file.parent) for file in loaded_files()}
  modules, found = {part.__module__ for part in given} - {"__main__"}, {}
  for name, module in list(sys.modules.items()):
    file = getattr(module, "__file__", None)
    if file and name != "__main__" and (name in modules or os.path.dirname(file) in folders) and not _is_library(file):
      with contextlib.suppress(OSError):
        found.setdefault(os.path.basename(file), []).append(Path(file).read_text(errors="replace"))
  for part in given:
    if getattr(sys.modules.get(part.__module__), "__file__", None) is None or part.__module__ == "__main__":
      with contextlib.suppress(OSError, TypeError):
        found.setdefault(part.__qualname__, []).append(inspect.getsource(part))
  return {name: "".join(sorted(texts)) for name, texts in found.items()}


def _parts(thing: Any) -> list[Any]:
  """The functions and classes that make a thing what it is, those of libraries left out."""
  thing = inspect.unwrap(getattr(thing, "func", thing))
  if not (inspect.isroutine(thing) or inspect.isclass(thing)):
    thing = type(thing)
  parts = thing.__mro__ if inspect.isclass(thing) else [getattr(thing, "__func__", thing)]
  files = {part: getattr(sys.modules.get(part.__module__), "__file__", None) for part in parts}
  return [part for part, file in files.items() if part.__module__ != "builtins" and not (file and _is_library(file))]


def described(error: BaseException, culprit: Any = None) -> str:
  """"my_task.py, line 7: KeyError: 'answer'": an error with the last line of the user's own that it came through.

  Where it came through none, the line is that at which `culprit` is defined, a function or class.
  """
  if isinstance(error, SyntaxError) and error.filename:
    return f"{_shown(error.filename)}, line {error.lineno}: {type(error).__name__}: {error.msg}"
  frames = came_through(error)
  if isinstance(error, AssertionError) and not str(error) and frames:
    message = f"AssertionError: {frames[-1].line}"
  else:
    message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
  where = f"{_shown(frames[-1].filename)}, line {frames[-1].lineno}" if frames else place(culprit)
  return f"{where}: {message}" if where else message


def described_briefly(error: BaseException, culprit: Any = None) -> str:
  """The first line of `described`, for errors whose libraries explain themselves at length."""
  return described(error, culprit).strip().splitlines()[0]


def came_through(error: BaseException) -> list[traceback.FrameSummary]:
  """The lines of the user's own that an error came through."""
  return [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_library(frame.filename)]


def at(thing: Any) -> str:
  """The beginning of a message about a function or class: "my_task.py, line 7: ", or nothing, see `place`."""
  where = place(thing)
  return f"{where}: " if where else ""


def place(thing: Any) -> str:
  """"my_task.py, line 7", where a function or class is defined; empty where that is not known."""
  thing = inspect.unwrap(getattr(thing, "func", thing))  # of a functools.partial what it calls
  if not (inspect.isroutine(thing) or inspect.isclass(thing)):
    thing = type(thing)
  try:
    return f"{_shown(inspect.getsourcefile(thing))}, line {inspect.getsourcelines(thing)[1]}"
  except (OSError, TypeError):  # no source: a built-in, or typed at a prompt
    return ""


def _shown(filename: str) -> str:
  """As short as the user would name it."""
  path = Path(filename)
  return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _is_library(filename: str) -> bool:
  if filename.startswith("<"):
    return not filename.startswith(("<ipython", "<stdin"))  # what is typed is the user's, what is generated is not
  return str(Path(filename).resolve()).startswith(_LIBRARIES)
