"""A chat in a terminal: turns that are kept, and commands that begin with a slash."""

import ast
from collections.abc import Callable
import contextlib
import dataclasses
import os
import sys
import termios

import jax
from rich.text import Text

from gdsd_jax import signals
from gdsd_jax.chat.answers import Answering
from gdsd_jax.chat.config import SampleConfig
from gdsd_jax.chat.once import checked_prompt, console_on, Screen
from gdsd_jax.chat.replay import Replay
from gdsd_jax.chat.shown import LEGEND
from gdsd_jax.checks import did_you_mean, require, require_seed
from gdsd_jax.runs.config_dict import check_numbers

_HELP = """/set NAME VALUE  sets a field of the sampler, such as temperature 0.5, or several; /set shows them all
/seed NUMBER     draws the next answer with this seed, and each one after it with the next
/reset           forgets the chat so far
/quit            leaves, as Ctrl-D and Ctrl-C do; while an answer comes, Ctrl-C ends the answer
//TEXT           asks /TEXT
"""


class Session:
  """A chat with one model."""

  def __init__(self, answering: Answering, config: SampleConfig, out, replay: Replay | None, live: bool,
               read: Callable[[str], str] = input):
    """`out` is the terminal, and `read` gives what is typed behind a prompt of it, or raises EOFError."""
    console = console_on(out)
    self._screen = Screen(console, live and not console.is_dumb_terminal)
    self._answering, self._replay, self._read = answering, replay, read
    self._sampler, self._seed, self._messages = config.sampler, config.seed, []

  def run(self) -> None:
    """Goes on until it is left."""
    self._screen.say(f"{self._answering.path}: {self._described()}; /help tells what else can be said")
    with _terminal_as_it_was():
      while True:
        try:
          if not self._take(self._typed()):
            return
        except (ValueError, OSError, jax.errors.JaxRuntimeError) as error:
          self._screen.say(f"error: {' '.join(str(error).split())[:500]}", "red3")

  def _typed(self) -> str:
    with signals.broken_by(_leave):
      try:
        return self._read("> ")
      except EOFError:
        self._screen.say("")
        return "/quit"

  def _take(self, line: str) -> bool:
    """Does what a line says, and returns whether the chat goes on. Raises ValueError, one line, where it cannot."""
    if line.startswith("/") and not line.startswith("//"):
      name, _, rest = line[1:].strip().partition(" ")
      commands = {"help": self._help, "reset": self._reset, "set": self._set, "seed": self._set_seed}
      if name in ("quit", "exit"):
        return False
      require(name in commands, f"/{name}", f"is none of /{', /'.join([*commands, 'quit'])}"
              + did_you_mean(name, [*commands, "quit"]))
      commands[name](rest.strip())
    elif line.strip():
      self._ask(line.removeprefix("/") if line.startswith("//") else line)
    return True

  def _ask(self, text: str) -> None:
    messages = [*self._messages, {"role": "user", "content": checked_prompt("prompt", text)}]
    try:
      prompt = self._answering.prompt(messages, self._sampler)
    except ValueError as error:
      raise ValueError(f"{error}; /reset begins a new chat" if self._messages else str(error)) from None
    answer = self._screen.answer(self._answering, prompt, self._sampler, self._seed)
    self._seed = (self._seed + 1) % 2**32
    if answer.is_stopped:
      self._screen.say("the chat goes on without this turn")
    else:
      self._messages = [*messages, {"role": "assistant", "content": answer.text}]
    if self._replay is not None:
      self._replay.add(self._answering, messages, answer)

  def _help(self, _: str) -> None:
    self._screen.console.print(Text(_HELP), Text.from_markup(f"What is shown: {LEGEND}"), soft_wrap=True, sep="")

  def _reset(self, _: str) -> None:
    self._messages = []
    self._screen.say("a new chat begins")

  def _set_seed(self, value: str) -> None:
    require(value.isdecimal(), "/seed", f"needs a whole number, not {value!r}")
    require_seed("/seed", int(value))
    self._seed = int(value)
    self._screen.say(f"the next seed is {self._seed}")

  def _set(self, what: str) -> None:
    fields = {name: value for name, value in self._sampler.settings.items() if name not in ("kind", "slots")}
    if not what:
      self._screen.say("\n".join(f"{name} {value}" for name, value in fields.items()))
      return
    words = what.split()
    require(len(words) % 2 == 0, f"/set {words[-1]}", "needs a value behind it")
    changes, own = {}, dict(self._sampler.own)
    for name, value in zip(words[::2], map(_value, words[1::2])):
      require(name in fields, "/set", f"{name!r} is no field of the sampler{did_you_mean(name, fields)}")
      check_numbers({"sampler": {name: value}})
      (own if name in own else changes)[name] = value
    changes["own"] = tuple(own.items())
    sampler = dataclasses.replace(self._sampler, **changes)
    self._answering.check_room(sampler)
    self._sampler = sampler
    self._screen.say(self._described())

  def _described(self) -> str:
    sampler = self._sampler
    steps = sampler.steps if sampler.has_fixed_steps else f"at most {sampler.most_steps}"
    return (f"{sampler.kind} sampler, {sampler.completion_length} tokens in {steps} steps, temperature"
            f" {sampler.temperature:g}")


def _value(word: str):
  """A number, True, False or None as it is written in Python; anything else is a word."""
  try:
    value = ast.literal_eval(word)
    hash(value)  # as the sampler's settings must be
    return value
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # all that it raises
    return word


def _leave() -> None:
  with contextlib.suppress(OSError):
    os.write(1, b"\n")
  signals.leave("", 0)


@contextlib.contextmanager
def _terminal_as_it_was():
  """However the process ends, the terminal gets its settings back: readline has others while a line is read."""
  with contextlib.suppress(ImportError):
    import readline  # noqa: F401  (lines can be edited, and earlier ones come back)
  try:
    before = termios.tcgetattr(sys.stdin.fileno())
  except (termios.error, OSError, ValueError):  # no terminal
    yield
    return
  with signals.at_leaving(lambda: termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, before)):
    yield
