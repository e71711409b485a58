"""What the commands in launch/ share: flags parsed, and every foreseen error told in one line with a non-zero exit.

Exit status 0: done; 1: not as asked for; 75 (EX_TEMPFAIL): start the same command again, which goes on where it was. A
command that Ctrl-C or SIGTERM ends leaves with 75, too, or if it has nothing to go on with 130 or 143 (`signals.py`).

JAX is imported within functions, because that takes seconds and `--help` does without.
"""

from collections.abc import Callable
import faulthandler
import logging
import os
import re
import signal
import sys
import traceback

from absl import app, flags, logging as absl_logging
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from gdsd_jax import command_help, own_code, signals
from gdsd_jax.runs.recipe_files import recipe_file
from gdsd_jax.screen import harmless, HarmlessFormatter
from gdsd_jax.signals import START_AGAIN

_GONE = "another process of this run is gone; the same command goes on from the latest checkpoint"
TRACEBACK_VARIABLE = "GDSD_TRACEBACK"  # set it to see where an error comes from
_LONGEST_LINE = 1000


def run(main: Callable[[], None], alone: bool = False) -> None:
  """Parses the flags, joins the run's other processes unless it is `alone`, and calls `main`.

  A ValueError or OSError becomes one line on standard error and exit status 1; termination that was asked for, or the
  death of another process, one line and START_AGAIN.
  """
  if not signals.taken():
    signals.begin()
  from gdsd_jax.parallel import processes
  from gdsd_jax.runs.compilation_cache import use_compilation_cache
  from gdsd_jax.runs.compiler_flags import memory_left, use_compiler_flags
  from gdsd_jax.runs.interruption import Interrupted

  if several := not alone and processes.may_be_one_of_several():
    _go_on_in_a_child()

  def call(argv):
    if argv[1:]:
      sys.exit(f"error: {argv[1]!r} is no flag; flags begin with --")
    if several:
      faulthandler.disable()  # absl's: JAX's runtime aborts where others are gone, and says why
    absl_logging.set_verbosity(absl_logging.WARNING)  # JAX tells every step of its own
    try:
      use_compiler_flags()
      if not alone:
        processes.join_processes()
      use_compilation_cache()
      main()
      signals.finish(0)
    except SystemExit as end:
      signals.finish(end.code if isinstance(end.code, int) else 1)
      raise
    except Interrupted as interrupted:
      signals.finish(START_AGAIN)
      print(interrupted, file=sys.stderr, flush=True)
      sys.exit(START_AGAIN)
    except Exception as error:
      if processes.is_lost_process(error):
        _leave_at_once(f"{_GONE} ({_line(error)[:300]})", error)
      if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):  # of the host, of a device
        _leave(error, f"out of memory: {_line(str(error).strip().partition(chr(10))[0])}; smaller parts need less:"
                      f" sampler.microbatches, optimizer.accumulation, eval.batch_size{memory_left()}")
      no_devices = without_devices(error)
      if no_devices or isinstance(error, (ValueError, OSError, processes.RemoteError)):
        _leave(error, no_devices)
      if processes.joined():  # as in _leave
        traceback.print_exception(error)
        _leave_at_once(f"error: {type(error).__name__}: {_line(error)[:_LONGEST_LINE]}", status=1)
      raise
    except KeyboardInterrupt as error:  # not of a signal, but raised by somebody's code
      line = "interrupted; the same command resumes from the latest checkpoint"
      if processes.joined():
        _leave_at_once(line, error, status=1)
      sys.exit(line)

  sys.unraisablehook = _without_echoes
  app.run(call, flags_parser=_parse)


def without_devices(error: Exception) -> str | None:
  """What is said of an error where JAX cannot start the devices that JAX_PLATFORMS names; None for other errors."""
  frames = traceback.extract_tb(error.__traceback__)
  if not frames or not frames[-1].filename.endswith("jax/_src/xla_bridge.py"):
    return None
  return f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: {str(error) or 'JAX finds no such device here'}"


def _go_on_in_a_child() -> None:
  """Returns in a child process; this one waits for it, and tells its end where it can no longer do so itself."""
  # When the first process of a run is gone, or the devices' own collectives hang, JAX's runtime aborts the others.
  child = os.fork()
  if child == 0:
    signals.end_with_parent()
    signals.take_again()
    return
  # As SIGTERM, which may come twice: a terminal sends Ctrl-C to both, schedulers send SIGTERM to all of a job.
  signals.give_back(lambda *_: os.kill(child, signal.SIGTERM))
  status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  if status == -signal.SIGABRT:
    print(f"{_GONE} (JAX's runtime says above how it found out)", file=sys.stderr, flush=True)
    os._exit(START_AGAIN)
  os._exit(status if status >= 0 else 128 - status)


def _without_echoes(unraisable) -> None:
  # When a save fails, TensorStore's threads report every other write of it that was under way, each by a traceback.
  if str(unraisable.exc_value) != "Event loop is closed":
    sys.__unraisablehook__(unraisable)


class _RecipeParser(config_flags.ConfigFileFlagParser):
  """Loads a recipe by its file or its name, or that of a run by its config.json."""

  def parse(self, path: str):
    if path.endswith("/config.json"):  # of a run
      from gdsd_jax.runs.saved_config import saved_recipe  # slow to import

      try:
        return saved_recipe(path)
      except (ValueError, OSError) as error:
        _leave(error)
    try:
      recipe = super().parse(recipe_file(path))
    except (ValueError, OSError, SyntaxError, ImportError, AttributeError):  # `_parse` tells them
      raise
    except own_code.RAISED as error:  # the user's own
      # ml_collections raises it again, with a traceback for a message.
      own = [each for each in _causes(error) if own_code.came_through(each)]
      _leave(error, f"--config: {own_code.described_briefly(own[-1] if own else error)}")
    if recipe is None:  # ml_collections would say that the flag is missing
      _leave(ValueError(f"--config: get_config of {path} returned nothing; it must return a recipe"))
    return recipe


_UNSET = re.compile(r"--config\.([\w.]+)=None")  # which the flags of numbers cannot read


def _unset(config, path: str) -> None:
  *sections, name = path.split(".")
  found = config
  for section in sections:
    found = found.get(section, {}) if isinstance(found, ConfigDict) else {}
  if name not in found:
    raise ValueError(command_help.no_field(f"--config.{path}=None", path, config))
  if isinstance(found[name], ConfigDict):
    raise ValueError(f"--config.{path}=None: {_SECTION}")
  found[name] = None


_SECTION = "is a section, whose fields are set one by one, such as --config.objective.name; --help lists them"
_PLAIN_WORDS = {  # for what the libraries of flags say
  r"(?:flag )?(--config\.[\w.]+=.*): Failed to parse .* as a ConfigDict: .*": rf"\1: {_SECTION}",
  r"invalid literal for int\(\) with base 10: .*": "must be a whole number",
  r"could not convert string to float: .*": "must be a number",
  r"flag (--\w+)=None: Flag --\w+ must have a value other than None\.": r"\1: is not given; --help tells what it is",
}


def _parse(argv: list[str]) -> list[str]:
  absl_logging.set_verbosity(absl_logging.FATAL)  # what it warns of here has a line of ours
  ours = logging.getLogger("gdsd_jax")
  ours.handlers[:], ours.propagate = [handler := logging.StreamHandler()], False
  handler.setFormatter(HarmlessFormatter())
  try:
    if any(argument in command_help.HELP for argument in argv[1:]):
      print(command_help.text(argv), flush=True)
      sys.exit(0)
    if "config" in flags.FLAGS:
      flags.FLAGS["config"].parser = _RecipeParser("config", lock_config=False)  # it may get fields of one's own code
    if sum(re.match("--?config(=|$)", argument) is not None for argument in argv) > 1:
      raise ValueError("--config: is given twice; name one recipe")
    unset = [found[1] for argument in argv if (found := _UNSET.fullmatch(argument))]
    rest = flags.FLAGS([argument for argument in argv if not _UNSET.fullmatch(argument)])
    if "config" in flags.FLAGS:
      _ = flags.FLAGS.config.keys  # only now is a recipe that is not there told
      for path in unset:
        _unset(flags.FLAGS.config, path)
    return rest
  except AttributeError as error:  # how ml_collections says that an override names no field
    if "get_config" in str(error):
      _leave(error, f"--config: is not a recipe: {error}")
    _leave(error, command_help.unknown_field(argv) or f"--config: {error}")
  except OSError as error:  # no such recipe; ml_collections tells it in paragraphs
    _leave(error, f"--config: {str(_causes(error)[-1]).rpartition('] ')[2]}")
  except (SyntaxError, ImportError) as error:
    _leave(error, f"--config: is not a recipe: {error}")
  except (flags.Error, ValueError, KeyError, TypeError) as error:
    if isinstance(error, KeyError | TypeError) and (unknown := command_help.unknown_field(argv)):
      _leave(error, unknown)
    # A value that cannot be parsed is named by the flag's message, a recipe that fails by its own.
    message = str(error) if len(str(error).splitlines()) == 1 else f"{_causes(error)[-1]}"
    for pattern, plain in _PLAIN_WORDS.items():
      message = re.sub(pattern, plain, message)
    _leave(error, message)


def _causes(error: BaseException) -> list[BaseException]:
  """The error and what it was raised from, the first cause last: flags wrap a recipe's own message in theirs."""
  chain = [error]
  while cause := chain[-1].__cause__ or chain[-1].__context__:
    chain.append(cause)
  return chain


def _leave(error: BaseException, message: str | None = None) -> None:
  from gdsd_jax.parallel import processes

  signals.finish(1)
  line = f"error: {_line(message or error)[:_LONGEST_LINE]}"
  if processes.joined():  # leaving in order, it would wait for the others, who wait for it
    _leave_at_once(line, error, status=1)
  if os.environ.get(TRACEBACK_VARIABLE):
    raise error
  sys.exit(line)


def _leave_at_once(line: str, error: BaseException | None = None, status: int = START_AGAIN) -> None:
  if error is not None and os.environ.get(TRACEBACK_VARIABLE):
    traceback.print_exception(error)
  print(line, file=sys.stderr, flush=True)
  sys.stdout.flush()
  os._exit(status)


def _line(error: object) -> str:
  return harmless(" ".join(str(error).split())) or type(error).__name__
