"""Runs the code of one test, in the ways in which tests are written."""

import builtins
import sys

import names
import standins
import wire

_isinstance = isinstance  # the test's is another
_PLAIN = {*wire.PLAIN_TYPES, *wire.BASES, object}
# Functions that look into objects.
_INSPECTING = {"dataclasses": ("asdict", "astuple", "fields", "is_dataclass", "replace")}
_TOGETHER = {"random": "seed", "sys": "setrecursionlimit"}  # functions that both interpreters heed


def run(setup: str, test: str, tree, load) -> None:
  """Raises unless the test passes. `load(namespace)` gives it the names that it starts with."""
  main = sys.modules["__main__"] = type(sys)("__main__")
  load(main.__dict__)
  imported = names.imports(tree)
  _let_the_program_answer(imported)
  if "unittest" in imported:
    import unittest
    unittest.main = lambda *_, **__: None  # it would leave
  exec(compile(setup, "<setup>", "exec"), main.__dict__)
  exec(compile(test, "<test>", "exec"), main.__dict__)
  for name in names.uncalled_tests(tree):
    answer = getattr(main, name)()
    if hasattr(answer, "__await__"):
      standins.complete(answer)
  if "unittest" in imported:
    _run_cases(unittest.defaultTestLoader.loadTestsFromModule(main), unittest.TestResult())


def _run_cases(cases, result):
  cases.run(result)
  if not result.wasSuccessful() or result.skipped:  # a program, too, may say that a test is to be skipped
    raise AssertionError


def _let_the_program_answer(imported):
  """What of Python's own looks into an object asks the program where the object is the program's."""
  for name in ("isinstance", "issubclass"):
    setattr(builtins, name, _or_there(name, getattr(builtins, name)))
  for module in imported & _INSPECTING.keys():
    for name in _INSPECTING[module]:
      setattr(__import__(module), name, _there(module, name, getattr(__import__(module), name)))
  for module in imported & _TOGETHER.keys():
    setattr(__import__(module), _TOGETHER[module], _both(module, getattr(__import__(module), _TOGETHER[module])))


def _or_there(operation, here):
  def method(value, kinds):
    if here(value, kinds):
      return True
    if not standins.is_standin(value):
      return False
    if type(kinds) is tuple:
      return any(method(value, kind) for kind in kinds)
    if not _isinstance(kinds, type) or standins.is_standin(kinds) or kinds.__module__ == "__main__":
      return False
    return kinds not in _PLAIN and standins.peer.operate(operation, value, kinds)

  return method


def _both(module, here):
  def function(*args):
    here(*args)
    standins.peer.operate("do", module, here.__name__, args, {})

  return function


def _there(module, name, here):
  def function(*args, **kwargs):
    if args and standins.is_standin(args[0]):
      return standins.peer.operate("do", module, name, args, kwargs)
    return here(*args, **kwargs)

  return function
