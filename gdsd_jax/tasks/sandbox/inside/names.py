"""Which names of a test belong to the program under test, and which to Python itself."""

import ast
import builtins
import sys

# Modules whose names tests use without importing them, because reference solutions did.
_HELPERS = ("math", "cmath", "collections", "itertools", "functools", "decimal", "fractions", "datetime", "copy")
# Of these, what compares rather than computes.
_COMPARERS = {"isclose", "fabs", "deepcopy"}


def under_test(tests: list, known: list) -> set:
  """Names that tests take from the program.

  What Python itself defines is Python's, lest the program bring its own `all`, `set` or `isclose`: unless it is among
  the `known` names, or the tests call nothing else.

  Args:
    tests: syntax trees.
    known: names that the reference solution is known to define.
  """
  loaded, called = set(), set()
  for tree in tests:
    nodes = list(ast.walk(tree))
    bound = _bound(nodes)
    loaded |= {node.id for node in nodes if isinstance(node, ast.Name)} - bound
    called |= {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)} - bound
  own = {name for name in loaded if name in known or not _is_python(name, name in called)}
  if own:
    return own
  of_modules = {name for name in called if not hasattr(builtins, name)} - _COMPARERS
  return of_modules or (called if len(called) == 1 else set())


def helpers(tree) -> dict:
  """Name -> value of those names in a test that belong to the standard library, whether imported there or not."""
  values = {}
  for node in ast.walk(tree):
    if isinstance(node, ast.Name) and not hasattr(builtins, node.id):
      if node.id in sys.stdlib_module_names:
        values[node.id] = _module(node.id)
      else:
        module = next((module for module in map(_module, _HELPERS) if hasattr(module, node.id)), None)
        values[node.id] = getattr(module, node.id, None)
  return {name: value for name, value in values.items() if value is not None}


def parse(source: str) -> ast.Module:
  """The syntax tree of a test; an empty one for what is no Python."""
  try:
    return ast.parse(source)
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return ast.Module(body=[], type_ignores=[])


def _is_python(name, called):
  if name in sys.stdlib_module_names:
    return not called  # a module cannot be called: a function of that name is the program's
  return hasattr(builtins, name) or any(hasattr(_module(module), name) for module in _HELPERS)


def _module(name):
  try:
    return __import__(name)
  except ImportError:
    return None


def _bound(nodes):
  """Names that the test defines itself."""
  names = set()
  for node in nodes:
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
      names.add(node.id)
    elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
      names.add(node.name)
    elif isinstance(node, ast.arg):
      names.add(node.arg)
    elif isinstance(node, ast.alias):
      names.add((node.asname or node.name).partition(".")[0])
  return names
