"""What a test takes the program's word for, and what of a test the program may use.

Where every operand is an object of the program, the program says what an operation on them gives. What a test compares
with plain data is plain data, or an object that the test itself has made of a class of the program; any other object
equals no plain data, whatever it says. An operation with plain data tells the program a value of the test, and this may
be what the test expects: no number may come of it (`abs(f(3) - 5) < 1e-6`).
"""

import builtins
import functools
import os
import sys
import types

import containers
import peer
import standins
import wire

_COMPARED = {*standins.COMPARISONS, "contains"}
_ARITHMETIC = {*standins.ARITHMETIC, *(f"i{name}" for name in standins.ARITHMETIC)}
_VALUES = {*standins.NUMERIC, "bool"}
_NUMERIC = {*_VALUES, "len", "hash", "iter", "getitem", "bytes"}
_TEXT = {"str", "repr", "format"}
_SAME = {"enter", "aenter"} | {f"i{name}" for name in standins.ARITHMETIC}  # what these give may be the object itself
_PLAIN_NAMES = set().union(*map(dir, wire.PLAIN_TYPES)).difference(dir(object))
# What tests ask of texts, sets and numbers. An object of the program in their place would say yes to all of it.
_CLAIMS = {name for name in _PLAIN_NAMES if name.startswith("is") or name.endswith("swith")}
_OF_GENERATORS = ("send", "throw", "close")
_OF_TYPES = {id(value): name for name, value in vars(types).items() if isinstance(value, type)}
_isinstance = isinstance  # the test's own may be another


class Judge(peer.Peer):
  """The tests' end of the channel."""

  def __init__(self, sock, namespace, bound):
    super().__init__(sock, first=2)
    self._namespace, self._bound = namespace, bound
    # Numbers of objects: classes that tests make objects of, the objects that they made, what operators made of those,
    # and what came of an operation with plain data.
    self._classes, self._made, self._derived, self._tainted = set(), set(), set(), set()

  def trust(self, values) -> None:
    """Says which of the program's classes tests make objects of."""
    self._classes.update(standins.number_of(value) for value in values if type(value) is standins.Meta)

  def hear(self, more):
    if more is not None:
      printed, complaints, changed = more
      if type(changed) is not dict or not self._bound.issuperset(changed):
        raise peer.Malformed("names")
      self._namespace.update(changed)
      sys.stdout.write(printed)
      sys.stderr.write(complaints)

  def operate(self, operation, *operands):
    own = {standins.number_of(value) for value in operands if standins.is_standin(value)}
    mixed = len([value for value in operands if standins.is_standin(value)]) < len(operands)
    trusted = own <= self._made | self._classes
    if operation in _COMPARED | _ARITHMETIC and mixed and not trusted:
      return self._with_plain(operation, operands, own)
    if operation in _VALUES and not trusted and standins.plain(operands[0]) is not operands[0]:
      return standins.OPERATIONS[operation](standins.plain(operands[0]), *operands[1:])
    if own & self._tainted and (operation in _NUMERIC or operation in _TEXT and not own <= self._derived
                                or operation == "getattr" and operands[1] in _PLAIN_NAMES):
      raise TypeError(f"{operation} of what came of plain data")
    if operation == "getattr" and operands[1] in _CLAIMS and not trusted:
      raise AttributeError(operands[1])
    answer = self._asked(operation, *operands)
    if standins.is_standin(answer):
      number = standins.number_of(answer)
      if operation == "call" and own <= self._classes or operation in _SAME and trusted and number in own:
        self._made.add(number)
      elif operation in _ARITHMETIC:
        self._mark(number, own, own & self._tainted)
    elif operation == "subclass":
      raise peer.Malformed("no class")
    return answer

  def _with_plain(self, operation, operands, own):
    """An operation of an object with plain data where the program could learn what is expected."""
    plain = [standins.plain(value) if standins.is_standin(value) else value for value in operands]
    if not any(map(standins.is_standin, plain)):
      return standins.OPERATIONS[operation](*plain)
    if operation == "contains":
      return any(item is operands[1] or item == operands[1] for item in operands[0])
    if operation in _COMPARED:
      return NotImplemented
    answer = self._asked(operation, *operands)
    if not standins.is_standin(answer) or standins.plain(answer) is not answer:
      raise TypeError(f"{operation} of an object and plain data gives plain data")
    self._mark(standins.number_of(answer), own, True)
    return answer

  def _mark(self, number, own, tainted):
    if own <= self._made | self._derived:
      self._derived.add(number)
    else:
      self._derived.discard(number)
    if tainted:
      self._tainted.add(number)

  def _asked(self, operation, *operands):
    try:
      return self.ask(operation, *operands)
    except (peer.Malformed, peer.Closed, ConnectionError):
      os._exit(1)  # no `except` of a test may take a broken channel for an answer

  def resolve(self, tag, parts):
    if tag in ("object", "held", "holding") and type(parts[0]) is int:
      self._made.discard(parts[0])  # what comes from the program is not what the test has made
    return super().resolve(tag, parts)

  # What of a test the program may use.

  def refer(self, value):
    if standins.is_standin(value):
      return super().refer(value)
    if _isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType)):
      module = getattr(value, "__module__", None)
      if type(module) is str and module.partition(".")[0] in sys.stdlib_module_names and module != "__main__" and (
          getattr(sys.modules.get(module), value.__name__, None) is value):
        return "std", (module, value.__name__)  # the program has its own
      name = _OF_TYPES.get(id(value))
      if name:
        return "std", ("types", name)
    return super().refer(value)

  def check(self, value):
    if not (_isinstance(value, type) or _is_open(value) or _may_be_called(value) or hasattr(type(value), "__next__")
            or _isinstance(value, types.CoroutineType)):
      raise TypeError(f"a {type(value).__name__} cannot be handed to the program")

  def handle(self, operation, operands):
    """The program may call and ask what a test handed to it, and read what the test lets it read."""
    if operation == "readline" and not operands:
      return sys.stdin.readline()
    if operation == "input" and len(operands) == 1:
      return builtins.input(*operands)
    given = [value for value in operands if id(value) in self._numbers]
    if operation not in standins.OPERATIONS or not given:
      raise peer.Malformed("question")
    if operation.endswith("attr"):
      owner, name = operands[0], operands[1]
      if owner is not given[0] or type(name) is not str or not _may_be_asked(owner, name, operation):
        raise AttributeError(name)
    if operation == "call":
      function, args, named = operands
      if function is not given[0] or type(args) is not tuple or type(named) is not tuple or (
          _isinstance(function, type) and function.__module__ != "__main__"):
        raise peer.Malformed("call")
    return standins.OPERATIONS[operation](*operands)


def _is_open(value):
  """Whether it is an object whose attributes a program may use: of a test's own class, a file in memory, a mock."""
  return type(value).__module__ in ("__main__", "_io", "unittest.mock") and not _isinstance(value, type) and (
    type(value).__name__ in ("StringIO", "BytesIO") or type(value).__module__ != "_io")


def _may_be_asked(owner, name, operation):
  if name.startswith("__"):
    return False
  if _is_open(owner):
    return True
  if operation != "getattr":
    return False
  return _isinstance(owner, type) and owner.__module__ == "__main__" or (
    name in _OF_GENERATORS and hasattr(type(owner), "__next__"))


def _may_be_called(value):
  """Whether the program may call it: what could do more than compute could end the test."""
  while _isinstance(value, (functools.partial, types.MethodType)):
    if _isinstance(value, types.MethodType) and _is_open(value.__self__):
      return True
    value = value.func if _isinstance(value, functools.partial) else value.__func__
  if _isinstance(value, types.MethodDescriptorType):  # such as str.upper
    return value.__objclass__ in wire.PLAIN_TYPES
  if _isinstance(value, types.BuiltinMethodType) and not _isinstance(value.__self__, types.ModuleType):  # "a".count
    kind = type(value.__self__)
    return kind in wire.PLAIN_TYPES or kind in containers.KINDS.values() or _is_open(value.__self__) or (
      value.__name__ in _OF_GENERATORS)
  if type(value).__name__ in ("itemgetter", "attrgetter", "methodcaller", "_lru_cache_wrapper"):
    return type(value).__module__ in ("operator", "functools")
  return _isinstance(value, types.FunctionType) and value.__module__ == "__main__"
