"""Tests that the sandbox cannot run as one interpreter would, told apart by reading them: see docs/code.md."""

import ast
import builtins
from collections.abc import Sequence
import re
import sys

from gdsd_jax.sandbox.inside import names

# Modules that look into the program's process or its files, which a test shares with no program here.
_APART = {"pickle", "shelve", "marshal", "doctest", "gc", "tracemalloc", "multiprocessing", "tempfile", "subprocess",
          "shutil", "glob", "sqlite3", "dis", "importlib", "ctypes", "socket"}
# What may be replaced in a module of Python's own: the program notices.
_REPLACEABLE = {"sys.stdin", "sys.stdout", "sys.stderr", "builtins.input"}
_DYNAMIC = {"eval", "exec", "globals", "locals", "vars", "open", "__import__", "breakpoint"}
_FILES = {"environ", "mkdir", "makedirs", "remove", "unlink", "listdir", "chdir", "write_text", "write_bytes", "touch",
          "getsource", "getenv", "putenv"}
# A test of one assertion about one call, in which nothing of all this can be.
_SIMPLE = re.compile(r"assert (?:not )?\(?([a-z_]\w*)\(")
_SUSPECT = re.compile(r"import|patch|environ|write_|def test|\b[A-Z]\w*\(|\b(?:{})\b".format(
  "|".join([*names.PACKAGES, *_DYNAMIC, *_FILES])))


def refusal(tests: Sequence[str], setup: str = "", known: Sequence[str] = (),
            classes: Sequence[str] | None = None) -> str:
  """Why tests of a program cannot be run here, as the end of a sentence about one of them; "" where they can.

  The arguments are those of `Program`.
  """
  suspects = setup or known or any(_SUSPECT.search(test) or not _is_simple(test) for test in tests)
  trees = []
  for number, test in enumerate(tests, 1):
    try:
      trees.append(ast.parse(f"{setup}\n{test}"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
      return f"test {number} is no Python"
  if not suspects:
    return ""
  bound = names.under_test(trees, list(known))
  for number, tree in enumerate(trees, 1):
    if why := _refused(tree, bound & names.free(tree)):
      return f"test {number} {why}"
  unsure = names.compared_with_plain(trees) & bound - names.classes(trees, bound) - {*known}
  if classes is None and unsure:
    name = min(unsure)
    return (f"a test compares {name}(…) with plain data: if {name} is a class, name it in the column 'classes', a "
            "list; if it is a function, let that list be empty")
  return ""


def _is_simple(test):
  found = _SIMPLE.match(test)
  return found and not hasattr(builtins, found[1]) and not names.is_pythons(found[1])


def _refused(tree, bound):
  """Why one test cannot be run, "" where it can."""
  imported, defined = names.imports(tree), names.defined(tree)
  for module in sorted(imported):
    if module not in sys.stdlib_module_names:
      return f"imports {module}: programs and tests have Python's standard library alone"
    if module in _APART:
      return f"imports {module}: a test cannot look into the program's process and its files"
  if not bound:
    return "takes nothing from the program"
  packages, dynamic = names.PACKAGES - bound - defined, _DYNAMIC - bound - defined
  for node in ast.walk(tree):
    if isinstance(node, ast.Name) and node.id in packages:
      return f"uses {node.id}: programs and tests have Python's standard library alone"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in dynamic:
      if node.func.id != "vars" or not node.args:
        return f"calls {node.func.id}(): a test shares neither names nor files with the program"
    if isinstance(node, ast.Attribute) and node.attr in _FILES:
      return f"uses .{node.attr}: a test cannot look into the program's process and its files"
    if target := _replaced(node, imported):
      return f"replaces {target}: the program has one of its own"
  for name in names.uncalled_tests(tree):
    node = next(node for node in tree.body if getattr(node, "name", None) == name)
    if len(node.args.args) > len(node.args.defaults):
      return f"defines {name} with arguments: there is no pytest to give it fixtures"
  return ""


def _replaced(node, imported):
  """What of Python's own a statement or a call replaces, as "module.name", unless the program would notice."""
  targets = node.targets if isinstance(node, ast.Assign) else []
  found = [f"{target.value.id}.{target.attr}" for target in targets
           if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id in imported]
  if isinstance(node, ast.Call) and node.args:
    called = ast.unparse(node.func)
    if called.endswith("patch") and isinstance(node.args[0], ast.Constant):
      found.append(str(node.args[0].value))
    elif called.endswith("patch.object") and ast.unparse(node.args[0]) in imported:
      found.append(f"{ast.unparse(node.args[0])}.{getattr(node.args[1], 'value', '')}")
    elif called.endswith("patch.dict"):
      found.append(ast.unparse(node.args[0]))
  return next((target for target in found if target not in _REPLACEABLE), "")
