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
import time
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
      resource.setrlimit(resource.RLIMIT_CPU, (job["cpu_seconds"], job["cpu_seconds"] + 1))
      control.close()
      serve = _run_script if data == wire.SCRIPT else _serve
      return serve(_socket.socket(fileno=fd), job["source"])
    os.close(fd)


def _kill_others():
  """Ends whatever the tests before have left running in this PID namespace, and waits until what they held is free."""
  try:
    while True:
      try:
        while os.waitpid(-1, os.WNOHANG)[0]:
          pass
      except ChildProcessError:  # those of a child are left to the namespace's first process
        pass
      os.kill(-1, signal.SIGKILL)
      time.sleep(0.001)
  except ProcessLookupError:  # none is left
    return


def _serve(sock, source):
  try:
    candidate = Candidate(sock, source)
    while True:
      candidate.answer(candidate.receive())
  finally:
    os._exit(0)


def _run_script(sock, source):
  """Tells the judge how the program ends and what it prints, as a script that reads the text which the judge sends.

  Returns in the script's process alone, once the program has run through: the interpreter then ends as it always does,
  with what the program left to be done at the end. Input and output are files, as no pipe holds all of them.
  """
  peer = Candidate(sock, source)
  _, _, (text,) = peer.receive()
  stdin, stdout = (os.open("/tmp", os.O_TMPFILE | os.O_RDWR, 0o600) for _ in range(2))
  with open(stdin, "wb", closefd=False) as file:
    file.write(text.encode("utf-8", "surrogatepass"))
  os.lseek(stdin, 0, os.SEEK_SET)
  child = os.fork()
  if child == 0:
    sock.close()
    os.dup2(stdin, 0)
    os.dup2(stdout, 1)
    sys.argv = ["program.py"]
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(source, "<program>", "exec"), module.__dict__)
    return
  try:
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    printed = os.pread(stdout, wire.MAX_MESSAGE, 0).decode("utf-8", "replace")
    peer.send(("ok", (status, printed)))
  finally:
    os._exit(0)
