"""Which names of a test belong to the program under test, and which to Python itself."""

import ast
import builtins
import sys

# Modules whose names tests use without importing them, because reference solutions did.
_HELPERS = ("math", "cmath", "collections", "itertools", "functools", "decimal", "fractions", "datetime", "copy")
# Packages that tests use without importing them: not in the sandbox, and a program's own could compare as it likes.
PACKAGES = {"np", "numpy", "pd", "pandas", "pytest", "scipy", "sp", "sympy", "tf", "torch"}
# Names in these modules that compare rather than compute.
_COMPARERS = {"isclose", "fabs", "deepcopy"}
ONLY_SYNTAX = ast.PyCF_ONLY_AST
# Functions that are given data, and no functions, by position.
_TAKES_VARIABLES = {"len", "list", "tuple", "set", "sorted", "sum", "str", "repr", "print", "dict", "type"}
_CHECKS = ("isinstance", "issubclass")
_OF_PLAIN = {name for kind in (int, float, complex, str, tuple, frozenset, range) for name in dir(kind)}
_NAMED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.ExceptHandler, ast.MatchAs, ast.MatchStar)


def under_test(tests: list, known: list) -> set:
  """Names that tests take from the program.

  What Python itself defines is Python's, lest the program bring its own `all`, `set` or `isclose`: unless it is among
  the `known` names, which the reference solution defines, or the tests call nothing else. Tests are syntax trees.
  """
  loaded = set().union(*map(free, tests))
  called = set().union(*map(_called, tests)) & loaded
  variables = loaded - set().union(*(free(tree) - _variables(tree) for tree in tests))
  helping = {name: _helper(name, name in called) for name in loaded}
  of_python = {name for name in loaded if hasattr(builtins, name) or name in PACKAGES - called
               or helping[name] is not None and (name not in variables or isinstance(helping[name], float))}
  own = loaded - of_python | loaded.intersection(known)
  if own:
    return own
  of_modules = {name for name in called if not hasattr(builtins, name)} - _COMPARERS
  return of_modules or (called if len(called) == 1 else set())


def classes(tests: list, bound: set) -> set:
  """Names that tests treat as classes: what they call so is an object, and no plain data, by what they do with it.

  They say so outright (`isinstance(x, C)`, `except C`, `class D(C)`), or begin the name with a capital and use the
  attributes of what it makes, or compare what it makes (`C(1) + C(2) == C(3)`).
  """
  found = set()
  for tree in tests:
    made = _made(tree)
    for node in ast.walk(tree):
      if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CHECKS:
        found |= set().union(*map(_names, node.args[1:]))
      elif isinstance(node, ast.ExceptHandler) and node.type:
        found |= _names(node.type)
      elif isinstance(node, ast.ClassDef):
        found |= set().union(*map(_names, node.bases))
      elif isinstance(node, ast.Raise) and node.exc:
        found |= _makers(node.exc, made) | _names(node.exc)
      elif isinstance(node, ast.Attribute) and node.attr not in _OF_PLAIN:
        found |= {name for name in _makers(node.value, made) | _names(node.value) if name[0].isupper()}
      elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
        found |= {name for name in _makers(node.value, made) if name[0].isupper()}
      elif isinstance(node, (ast.With, ast.AsyncWith)):
        found |= {name for item in node.items for name in _makers(item.context_expr, made) if name[0].isupper()}
      elif isinstance(node, ast.Compare):
        both = _makers(node.left, made) & _makers(node.comparators[0], made)
        found |= {name for name in both if name[0].isupper()}
  return found & bound


def is_class_name(name: str) -> bool:
  """Whether a name is written as those of classes are."""
  return name[0].isupper() and "_" not in name and (len(name) == 1 or not name.isupper())


def compared_with_plain(tests: list) -> set:
  """Names in the manner of classes whose objects tests compare with plain data."""
  found = set()
  for tree in tests:
    made = _made(tree)
    for node in ast.walk(tree):
      if isinstance(node, ast.Compare) and len(node.comparators) == 1:
        for one, other in ((node.left, node.comparators[0]), (node.comparators[0], node.left)):
          if not isinstance(node.ops[0], (ast.Is, ast.IsNot)) and _is_plain(other):
            names = set() if isinstance(one, ast.BinOp) else _makers(one, made)
            found |= {name for name in names if is_class_name(name)}
  return found


def imports(tree) -> set:
  """Top-level modules that a test imports."""
  found = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      found |= {alias.name.partition(".")[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      found.add((node.module or ".").partition(".")[0])
  return found


def uncalled_tests(tree) -> list:
  """Functions that a test defines for a test runner to call, as pytest has them, and does not call itself."""
  used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
  return [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
          and node.name.startswith("test") and node.name not in used]


def _made(tree):
  """Variable -> names whose calls it was given, for variables that a test assigns nothing else."""
  made, other = {}, set()
  for node in ast.walk(tree):
    for target in node.targets if isinstance(node, ast.Assign) else ():
      pairs = [(target, node.value)]
      if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
        pairs = zip(target.elts, node.value.elts)
      for name, value in pairs:
        if isinstance(name, ast.Name):
          given = _makers(value, {})
          made.setdefault(name.id, set()).update(given)
          other.update(set() if given else {name.id})
  return {name: given for name, given in made.items() if name not in other}


def _makers(node, made):
  """The names whose call is what an expression gives, or of which an operator makes it."""
  if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
    return {node.func.id}
  if isinstance(node, ast.BinOp):
    return _makers(node.left, made) | _makers(node.right, made)
  return made.get(node.id, set()) if isinstance(node, ast.Name) else set()


def _names(node):
  nodes = node.elts if isinstance(node, ast.Tuple) else [node]
  return {part.id for part in nodes if isinstance(part, ast.Name)}


def _is_plain(node):
  try:
    ast.literal_eval(node)
  except ValueError:
    return False
  return True


def helpers(tree) -> dict:
  """The standard library's values for those names of a test that belong to it, whether the test imports them or not."""
  called = _called(tree)
  values = {name: _helper(name, name in called) for name in free(tree) if not hasattr(builtins, name)}
  return {name: value for name, value in values.items() if value is not None}


def free(tree) -> set:
  """Names that a test uses and does not define itself."""
  loaded = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
  return loaded - defined(tree)


def defined(tree) -> set:
  """Names that a test gives a value."""
  bound = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
      bound.add(node.id)
    elif isinstance(node, _NAMED):
      bound.add(node.name)
    elif isinstance(node, ast.arg):
      bound.add(node.arg)
    elif isinstance(node, ast.alias):
      bound.add((node.asname or node.name).partition(".")[0])
  return bound


def is_pythons(name: str) -> bool:
  """Whether a name may be meant as the standard library's."""
  return name in sys.stdlib_module_names or _helper(name, True) is not None


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


def _variables(tree):
  """Names that a test uses as variables: as no module, whose attributes are all that is asked, and as no function."""
  used, found = {}, set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
      module = _module(node.value.id) if node.value.id in sys.stdlib_module_names else None
      used[node.value] = hasattr(module, node.attr)
    elif isinstance(node, ast.Call):
      takes = isinstance(node.func, ast.Name) and node.func.id in _TAKES_VARIABLES
      used |= dict.fromkeys([node.func, *(keyword.value for keyword in node.keywords)], True)
      used |= dict.fromkeys(node.args, not takes)
  for node in ast.walk(tree):
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and not used.get(node):
      found.add(node.id)
  return found - {node.id for node in used if isinstance(node, ast.Name) and used[node]}


def _called(tree):
  return {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}


def _module(name):
  try:
    return __import__(name)
  except ImportError:
    return None
