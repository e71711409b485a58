"""Runs the tests, in a sandbox that the untrusted program never enters, and writes the verdict.

Tests see stand-ins for what the program defines, and plain data: what is plain is compared here, by Python's own types.
"""

import _socket
import array
import builtins
import functools
import os
import select
import signal
import sys

import names
import peer
import policy
import runner


def main(job) -> None:
  """Writes one byte to the verdict's descriptor for the program's syntax and one for each test, b"1" or b"0"."""
  control = _socket.socket(fileno=job["control"])
  trees = {test: names.parse(job["setup"] + "\n" + test) for test in job["tests"] if type(test) is str}
  bound = names.under_test([*trees.values()], job["names"])
  classes = names.classes([*trees.values()], bound) if job["classes"] is None else {*job["classes"]}
  tasks = [functools.partial(compile, job["source"], "<program>", "exec", names.ONLY_SYNTAX)]
  for test in job["tests"]:
    if type(test) is dict:
      tasks.append(functools.partial(_run_script, test["stdin"], test["stdout"], control))
    else:
      tree = trees[test]
      values = functools.partial(_load, control, bound & names.free(tree), classes, names.helpers(tree))
      tasks.append(functools.partial(runner.run, job["setup"], test, tree, values))
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
    except BaseException as error:
      if job["explain"]:
        sys.__excepthook__(type(error), error, error.__traceback__)
    finally:
      os._exit(0)
  os.close(writer)
  passed = bool(select.select([reader], [], [], job["wall_seconds"])[0]) and os.read(reader, 1) == b"1"
  os.kill(child, signal.SIGKILL)
  os.waitpid(child, 0)
  os.close(reader)
  return passed


def _load(control, bound, classes, helpers, namespace):
  """Gives a test its names. One that takes nothing from the program shows nothing: an error."""
  judge = policy.Judge(_channel(control, peer.FUNCTIONS), namespace, bound)
  values = judge.operate("load", sorted(bound))
  if type(values) is not dict or not values or not bound.issuperset(values):
    raise peer.Malformed("names")
  judge.trust(value for name, value in values.items() if name in classes)
  namespace.update({"__builtins__": builtins, **helpers, **values})


def _run_script(stdin, stdout, control):
  """Raises unless the program, as a script that reads `stdin`, ends well and prints `stdout`."""
  status, printed = policy.Judge(_channel(control, peer.SCRIPT), {}, set()).operate("script", stdin)
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
  return mine
