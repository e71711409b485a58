"""Runs the tests, in a sandbox that the untrusted program never enters, and writes the verdict.

Tests see stand-ins for what the program defines, and plain data: every comparison is made here, by Python's own types.
"""

import _socket
import array
import builtins
from collections import abc, deque
import functools
import operator
import os
import select
import signal
import types

import names
import wire

# A program may call functions of these modules with arguments of its choice: the test's, and those that only compute.
_HARMLESS = ("__main__", "math", "cmath", "operator", "_operator", "itertools", "fractions", "statistics")
_ONLY_SYNTAX = 0x400  # ast.PyCF_ONLY_AST
# What tests ask of texts, sets and numbers. An object of the program in their place would say yes to all of it.
_CLAIMS = {name for kind in wire.PLAIN_TYPES for name in dir(kind) if name.startswith("is") or name.endswith("swith")}


def _asks(operation):
  """A method that asks the program for an operation on the object."""
  return lambda self, *arguments: self._peer.ask(operation, self, *arguments)


class Remote:
  """An object of the program that is no plain data. It is equal to itself and to nothing else, whatever it says."""

  __slots__ = ("_peer", "_number")

  def __init__(self, peer, number):
    object.__setattr__(self, "_peer", peer)
    object.__setattr__(self, "_number", number)

  def __call__(self, *args, **kwargs):
    return self._peer.call(self, args, kwargs)

  def __getattr__(self, name):
    # Other names of Python's own are asked for by copy, isinstance and their kin, not by tests.
    if name in _CLAIMS or name.startswith("__") and name.endswith("__") and name != "__name__":
      raise AttributeError(name)
    return self._peer.ask("getattr", self, name)

  def __instancecheck__(self, value):
    return isinstance(value, (Remote, _Held)) and self._peer.ask("isinstance", value, self)

  def __iter__(self):
    source = self._peer.ask("iter", self)
    return source if isinstance(source, Remote) else iter(source)  # plain data when the program says so

  __setattr__, __len__, __bool__, __next__ = map(_asks, ("setattr", "len", "bool", "next"))
  __getitem__, __setitem__, __delitem__ = map(_asks, ("getitem", "setitem", "delitem"))
  __str__, __repr__ = map(_asks, ("str", "repr"))
  __hash__ = object.__hash__

  def __eq__(self, other):
    return self is other


class _Held:
  """Plain data that is an object of the program, too, such as a named tuple: what plain data lacks is asked for."""

  def __getattr__(self, name):
    return getattr(self.__dict__["_remote"], name)

  def __copy__(self, memo=None):
    return self

  __deepcopy__ = __copy__


_HELD = {base: type("Held", (_Held, base), {}) for base in wire.BASES}


async def _awaited(remote):
  return remote._peer.ask("await", remote)


class Judge(wire.Peer):
  """The tests' end of the channel."""

  def __init__(self, sock):
    super().__init__(sock)
    self._remotes = {}
    self._callbacks = []

  def refer(self, value):
    if isinstance(value, (Remote, _Held)):
      return "object", value._number if isinstance(value, Remote) else value._remote._number
    if isinstance(value, wire.BASES):  # a test's own subclass: its value will do
      return "held", 0
    if not _may_be_called(value):
      raise TypeError(f"a {type(value).__name__} cannot be handed to the program")
    self._callbacks.append(value)
    return "callback", len(self._callbacks) - 1

  def resolve(self, tag, number, value):
    if tag == "callback" or number < 0:
      raise wire.Malformed("reference")
    if number not in self._remotes:
      self._remotes[number] = remote = Remote(self, number)
      if tag == "coroutine":
        self._remotes[number] = _awaited(remote)
      elif tag == "held":
        self._remotes[number] = held = _HELD[type(value)](value)
        held._remote = remote
    return self._remotes[number]

  def handle(self, operation, arguments):
    """The program may call the functions that a test handed to it, and nothing else."""
    if operation != "call" or [*map(type, arguments)] != [int, tuple, dict]:
      raise wire.Malformed("question")
    number, args, kwargs = arguments
    if not 0 <= number < len(self._callbacks):
      raise wire.Malformed("callback")
    return self._callbacks[number](*args, **kwargs)

  def send(self, message):
    super().send(_without_iterators(message))

  def ask(self, operation, *arguments):
    try:
      return super().ask(operation, *arguments)
    except (wire.Malformed, EOFError, ConnectionError):
      os._exit(1)  # no `except` of a test may take a broken channel for an answer

  def call(self, function, args, kwargs):
    """Calls a function of the program; also makes the changes that the call made to its arguments in place."""
    answer = self.ask("call", function, args, kwargs)
    try:
      result, changed = answer
      for place, value in changed.items():
        _restore(args[place] if type(place) is int else kwargs[place], value)
      return result
    except Exception:  # whatever a malformed answer leads to
      os._exit(1)


def _may_be_called(value):
  """Whether the program may call it: `eval` and its kin in the program's hands could end the test."""
  while isinstance(value, (functools.partial, types.MethodType)):
    value = value.func if isinstance(value, functools.partial) else value.__func__
  if isinstance(value, types.MethodDescriptorType):  # such as str.upper
    return value.__objclass__ in wire.PLAIN_TYPES
  if isinstance(value, types.BuiltinMethodType) and not isinstance(value.__self__, types.ModuleType):  # "a".count
    return type(value.__self__) in wire.PLAIN_TYPES
  kinds = (types.FunctionType, types.BuiltinFunctionType, type, operator.itemgetter)
  return isinstance(value, kinds) and value.__module__ in _HARMLESS


def _without_iterators(value):
  """Makes lists of a message's iterators and views of dictionaries: what a test hands over is read here."""
  if type(value) is tuple:
    return tuple(_without_iterators(item) for item in value)
  if hasattr(type(value), "__next__") and not isinstance(value, Remote) or isinstance(value, abc.MappingView):
    return list(value)
  return value


def _restore(old, new):
  """Makes containers what the program made of its copies, keeping their identity."""
  if type(old) is not type(new):
    return
  if isinstance(old, (list, tuple)) and len(old) == len(new):
    for index, (item, changed) in enumerate(zip(old, new)):
      if type(item) in (list, dict, set, bytearray, tuple) and type(item) is type(changed):
        _restore(item, changed)
      elif type(old) is list:
        old[index] = changed
  elif isinstance(old, (list, bytearray)):
    old[:] = new
  elif isinstance(old, (dict, set, deque)):
    old.clear()
    (old.extend if isinstance(old, deque) else old.update)(new)


def main(job) -> None:
  """Writes one byte to the verdict's descriptor for the program's syntax and one for each test, b"1" or b"0"."""
  control = _socket.socket(fileno=job["control"])
  trees = {test: names.parse(job["setup"] + "\n" + test) for test in job["tests"] if type(test) is str}
  bound = names.under_test([*trees.values()], job["names"])
  tasks = [functools.partial(compile, job["source"], "<program>", "exec", _ONLY_SYNTAX)]
  for test in job["tests"]:
    if type(test) is dict:
      tasks.append(functools.partial(_run_script, test["stdin"], test["stdout"], control))
    else:
      tree = trees[test]
      task = functools.partial(_run, job["setup"], test, control, bound & names.free(tree), names.helpers(tree))
      tasks.append(task)
  for task in tasks:
    os.write(job["verdict"], b"1" if _in_process(task, job) else b"0")


def _in_process(task, job):
  """Whether a task returns within the wall-clock limit; it runs in a process of its own."""
  reader, writer = os.pipe()
  child = os.fork()
  if child == 0:
    try:
      os.close(reader)
      os.close(job["verdict"])
      task()
      os.write(writer, b"1")
    finally:
      os._exit(0)
  os.close(writer)
  passed = bool(select.select([reader], [], [], job["wall_seconds"])[0]) and os.read(reader, 1) == b"1"
  os.kill(child, signal.SIGKILL)
  os.waitpid(child, 0)
  os.close(reader)
  return passed


def _run(setup, test, control, bound, helpers):
  """Raises unless the test passes. A test that takes nothing from the program shows nothing, and fails."""
  values = _channel(control, wire.FUNCTIONS).ask("load", sorted(bound))
  if type(values) is not dict or not values or not bound.issuperset(values):
    raise wire.Malformed("names")
  namespace = {"__name__": "__main__", "__builtins__": builtins, **helpers, **values}
  exec(compile(setup, "<setup>", "exec"), namespace)
  exec(compile(test, "<test>", "exec"), namespace)


def _run_script(stdin, stdout, control):
  """Raises unless the program, as a script that reads `stdin`, ends well and prints `stdout`."""
  status, printed = _channel(control, wire.SCRIPT).ask("script", stdin)
  if type(status) is not int or status != 0 or type(printed) is not str or _lines(printed) != _lines(stdout):
    raise AssertionError


def _lines(text):
  return [line.rstrip() for line in text.rstrip().split("\n")]


def _channel(control, kind):
  """A channel of its own to the program, which the candidate runs afresh for it, in the way that `kind` says."""
  mine, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
  control.sendmsg([kind], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", [theirs.fileno()]))])
  theirs.close()
  control.close()
  return Judge(mine)
