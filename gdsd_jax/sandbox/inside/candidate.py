"""Holds the untrusted program: runs it afresh for every test and does what the judge asks of it. Decides nothing.

Nothing here is a defence: a program may take this process over, and then has what any program has, the judge's socket.
"""

from _collections import deque
import _socket
import array
import marshal
import operator
import os
import resource
import signal
import sys
import types

import wire

_CONTAINERS = (list, dict, set, bytearray, tuple, deque)
# What the judge's stand-ins ask for, beside loading the program and calling what it defines.
_OPERATIONS = {
  "await": lambda value: __import__("asyncio").run(value),  # imported late, as few programs need it
  "bool": bool, "delitem": operator.delitem, "getattr": getattr, "getitem": operator.getitem,
  "isinstance": isinstance, "iter": iter, "len": len, "next": next, "repr": repr, "setattr": setattr,
  "setitem": operator.setitem, "str": str,
}


class Candidate(wire.Peer):
  """The program's end of the channel."""

  def __init__(self, sock, program):
    super().__init__(sock)
    self._objects = []
    self._numbers = {}
    self._program = program
    self._operations = _OPERATIONS | {"load": self._load, "call": self._call}

  def refer(self, value):
    number = self._numbers.setdefault(id(value), len(self._objects))
    if number == len(self._objects):
      self._objects.append(value)  # kept alive, so that its id stays its own
    if isinstance(value, wire.BASES):
      return "held", number
    return "coroutine" if isinstance(value, types.CoroutineType) else "object", number

  def resolve(self, tag, number, value):
    if tag == "held":
      return value
    if tag == "object":
      return self._objects[number]
    return lambda *args, **kwargs: self.ask("call", number, args, kwargs)

  def handle(self, operation, arguments):
    return self._operations[operation](*arguments)

  def _load(self, names):
    """Runs the program, but not what it does as a script; returns the values of those `names` that it defines."""
    module = sys.modules["program"] = types.ModuleType("program")
    exec(compile(self._program, "<program>", "exec"), module.__dict__)
    return {name: getattr(module, name) for name in names if hasattr(module, name)}

  def _call(self, function, args, kwargs):
    """Returns (result, what became of arguments that the call changed in place, by position or name)."""
    places = [*enumerate(args), *kwargs.items()]
    before = {place: self._snapshot(value) for place, value in places if isinstance(value, _CONTAINERS)}
    result = function(*args, **kwargs)
    after = {place: value for place, value in places if place in before and self._snapshot(value) != before[place]}
    return result, after

  def _snapshot(self, value):
    try:
      return marshal.dumps(value, 2)  # quick, and the same for the same plain data
    except ValueError:
      return wire.encode(value, self.refer)


def main(job) -> None:
  """Serves one test after the other: each comes as a socket on the control channel, each gets a process of its own."""
  control = _socket.socket(fileno=job["control"])
  for name in job["imports"]:
    try:
      __import__(name)
    except Exception:  # the program meets the same error when it runs
      sys.modules.pop(name, None)
  while True:
    data, ancillary, _, _ = control.recvmsg(1, _socket.CMSG_SPACE(4))
    if not data or not ancillary:
      return
    _kill_others()
    fd = array.array("i", ancillary[0][2])[0]
    if os.fork() == 0:
      _serve(_socket.socket(fileno=fd), control, job)
    os.close(fd)


def _kill_others():
  """Ends whatever the tests before have left running in this PID namespace."""
  try:
    os.kill(-1, signal.SIGKILL)
    while True:
      os.waitpid(-1, 0)
  except (ProcessLookupError, ChildProcessError):  # none is there, or left
    return


def _serve(sock, control, job):
  try:
    control.close()
    resource.setrlimit(resource.RLIMIT_CPU, (job["cpu_seconds"], job["cpu_seconds"] + 1))
    candidate = Candidate(sock, job["source"])
    while True:
      candidate.answer(candidate.receive())
  finally:
    os._exit(0)
