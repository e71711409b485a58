"""Which names of a test belong to the program under test, and which to Python itself."""

import ast
import builtins
import sys

# Modules whose names tests use without importing them, because reference solutions did.
_HELPERS = ("math", "cmath", "collections", "itertools", "functools", "decimal", "fractions", "datetime", "copy")
# Packages that tests use without importing them: not in the sandbox, and a program's own could compare as it likes.
_PACKAGES = {"np", "numpy", "pd", "pandas", "pytest", "scipy", "sp", "sympy", "tf", "torch"}
# Names in these modules that compare rather than compute.
_COMPARERS = {"isclose", "fabs", "deepcopy"}
_NAMED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.ExceptHandler, ast.MatchAs, ast.MatchStar)


def under_test(tests: list, known: list) -> set:
  """Names that tests take from the program.

  What Python itself defines is Python's, lest the program bring its own `all`, `set` or `isclose`: unless it is among
  the `known` names, which the reference solution defines, or the tests call nothing else. Tests are syntax trees.
  """
  loaded = set().union(*map(free, tests))
  called = set().union(*map(_called, tests)) & loaded
  of_python = {name for name in loaded
               if hasattr(builtins, name) or name in _PACKAGES - called or _helper(name, name in called) is not None}
  own = loaded - of_python | loaded.intersection(known)
  if own:
    return own
  of_modules = {name for name in called if not hasattr(builtins, name)} - _COMPARERS
  return of_modules or (called if len(called) == 1 else set())


def helpers(tree) -> dict:
  """The standard library's values for those names of a test that belong to it, whether the test imports them or not."""
  called = _called(tree)
  values = {name: _helper(name, name in called) for name in free(tree) if not hasattr(builtins, name)}
  return {name: value for name, value in values.items() if value is not None}


def free(tree) -> set:
  """Names that a test uses and does not define itself."""
  loaded, bound = set(), set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Name):
      (loaded if isinstance(node.ctx, ast.Load) else bound).add(node.id)
    elif isinstance(node, _NAMED):
      bound.add(node.name)
    elif isinstance(node, ast.arg):
      bound.add(node.arg)
    elif isinstance(node, ast.alias):
      bound.add((node.asname or node.name).partition(".")[0])
  return loaded - bound


def parse(source: str) -> ast.Module:
  """The syntax tree of a test; an empty one for what is no Python."""
  try:
    return ast.parse(source)
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return ast.Module(body=[], type_ignores=[])


def _helper(name, called):
  """What the standard library means by a name: a module, unless the name is called, as modules cannot be."""
  if name in sys.stdlib_module_names and not called:
    return _module(name)
  return next((getattr(module, name) for module in map(_module, _HELPERS) if hasattr(module, name)), None)


def _called(tree):
  return {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}


def _module(name):
  try:
    return __import__(name)
  except ImportError:
    return None
