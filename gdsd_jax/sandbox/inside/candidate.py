"""Holds the untrusted program: runs it afresh for every test and does what the judge asks of it. Decides nothing.

Nothing here is a defence: a program may take this process over, and then has what any program has, the judge's socket.
"""

import _socket
import array
import builtins
import io
import os
import resource
import signal
import sys
import time
import types

import peer
import standins


class Candidate(peer.Peer):
  """The program's end of the channel."""

  def __init__(self, sock, program):
    super().__init__(sock, first=1)
    self._program = program
    self._bound = {}  # names of the test that are the program's, and their values as last told
    self._operations = standins.OPERATIONS | {"load": self._load, "above": _above, "subclass": _subclass, "do": _do}
    sys.stdin = io.TextIOWrapper(io.BufferedReader(_Input(self)), encoding="utf-8")
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogatepass") for _ in range(2))
    self._printed = sys.stdout, sys.stderr
    builtins.input = lambda prompt="", /: self.ask("input", prompt)

  def resolve(self, tag, parts):
    if tag == "std":
      module, name = parts
      return getattr(sys.modules.get(module) or __import__(module, fromlist=[name]), name)
    found = super().resolve(tag, parts)
    if tag == "object" and len(parts) == 4 and standins.is_standin(found):
      return self._callback(found, parts[0], *parts[2:])
    return found

  def _callback(self, standin, number, name, doc):
    """A function of the test is a function here, so that it can be a method."""
    def callback(*args, **kwargs):
      return self.operate("call", standin, args, (*kwargs.items(),))

    callback.__name__ = callback.__qualname__ = name
    callback.__doc__ = doc
    self._standins[number] = callback
    self._disguised[id(callback)] = number
    return callback

  def handle(self, operation, operands):
    return self._operations[operation](*operands)

  def news(self):
    """What the program has printed, and which of the test's names it has bound anew."""
    printed = [_taken(stream) for stream in self._printed]
    module = sys.modules.get("program")
    changed = {name: module.__dict__[name] for name, value in self._bound.items()
               if name in module.__dict__ and module.__dict__[name] is not value}
    self._bound |= changed
    return (*printed, changed) if changed or any(printed) else None

  def _load(self, names):
    """Runs the program, but not what it does as a script; returns the values of those `names` that it defines."""
    module = sys.modules["program"] = types.ModuleType("program")
    exec(compile(self._program, "<program>", "exec"), module.__dict__)
    self._bound = {name: module.__dict__.get(name) for name in names}
    return {name: getattr(module, name) for name in names if hasattr(module, name)}


class _Input(io.RawIOBase):
  """The standard input of the test."""

  def __init__(self, candidate):
    self._candidate = candidate
    self._rest = b""

  def readable(self):
    return True

  def readinto(self, buffer):
    self._rest = self._rest or self._candidate.ask("readline").encode("utf-8", "surrogatepass")
    size = min(len(self._rest), len(buffer))
    buffer[:size], self._rest = self._rest[:size], self._rest[size:]
    return size


def _taken(stream):
  """The text that was written to one of the program's streams since it was last taken."""
  if stream.closed:
    return ""
  stream.flush()
  text = stream.buffer.getvalue().decode("utf-8", "surrogatepass")
  if text:
    stream.seek(0)
    stream.truncate()
  return text


def _above(owner, instance, kind, name):
  value = next(vars(kind)[name] for kind in owner.__mro__ if name in vars(kind))
  return value.__get__(instance, kind) if hasattr(type(value), "__get__") else value


def _subclass(name, bases, namespace, options):
  return types.new_class(name, bases, options, lambda into: into.update(namespace, __module__="program"))


def _do(module, function, args, kwargs):
  """Calls a function of the standard library that looks into an object of the program."""
  return getattr(__import__(module), function)(*args, **kwargs)


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
      serve = _run_script if data == peer.SCRIPT else _serve
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
  channel = peer.Peer(sock, first=1)
  _, _, (text,) = channel.receive()
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
    printed = os.pread(stdout, peer.MAX_MESSAGE, 0).decode("utf-8", "replace")
    channel.send("ok", (status, printed))
  finally:
    os._exit(0)
