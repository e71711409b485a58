"""What the two ends of the channel tell each other of containers, objects, classes and exceptions."""

from _weakref import ref
from itertools import count
import sys
import types

import containers
import standins
import wire
from wire import Malformed

_CALLABLE = (types.FunctionType, types.BuiltinFunctionType, types.MethodType)
_WRAPPERS = {kind.__name__: kind for kind in (staticmethod, classmethod, property)}


class Objects(wire.Terms):
  """One end's objects that the other end knows by their numbers, and its stand-ins for the other's."""

  def __init__(self, first: int):
    self._shared = containers.Shared(first)
    self._objects, self._numbers, self._count = {}, {}, count(1)  # the other side's stand-ins are for these
    self._standins = {}  # number -> stand-in, where it can be a weak reference to one
    self._disguised = {}  # id -> number, of what stands for an object and does not look like it
    self._told = set()  # numbers of classes whose description the other side has
    self._dropped, self._unused = [], []  # numbers of stand-ins and containers that are no more
    self._new = []  # what the message in the making brings in: numbers of containers, negative ones of classes

  # What became of them since the last message.

  def changes(self) -> tuple:
    """(changes of containers, numbers of containers, numbers of stand-ins that are needed no more)."""
    changes = self._shared.changes()  # first, lest what is needed no more take its last change with it
    self._unused += self._shared.unused()
    return changes, (*self._unused,), (*self._dropped,)

  def told(self, changes: tuple, unused: tuple, dropped: tuple) -> None:
    """Says that the other side has these."""
    self._shared.told(changes)
    del self._unused[:len(unused)], self._dropped[:len(dropped)]

  def take(self, changes: tuple, unused: tuple, dropped: tuple) -> None:
    """Does what the other side says that it did."""
    for number in dropped:
      if number in self._objects:
        del self._numbers[id(self._objects.pop(number))]
    for number, items in changes:
      self._shared.change(number, [*items])
    self._shared.drop(unused)

  def begin(self) -> None:
    """Says that a message is in the making."""
    self._new = []

  def undo(self) -> None:
    """Says that it was not sent."""
    self._shared.drop(number for number in self._new if number > 0)
    self._told.difference_update(-number for number in self._new)

  # Containers.

  def share(self, value):
    number = self._shared.number(value)
    if number is not None:
      return number, True
    self._new.append(self._shared.add(value, type(value)))
    return self._new[-1], False

  def adopt(self, number, value):
    self._shared.enter(number, value, type(value))

  def settle(self, number):
    self._shared.settle(number)

  def shared(self, number):
    return self._shared.get(number)

  # Objects.

  def check(self, value) -> None:
    """Raises TypeError on an object that the other side must not have."""

  def refer(self, value):
    if standins.is_standin(value):
      return "yours", (standins.number_of(value),)
    if id(value) in self._disguised:
      return "yours", (self._disguised[id(value)],)
    if isinstance(value, BaseException):
      return "raised", self._describe(value)
    if type(value) in _WRAPPERS.values():
      parts = (value.fget, value.fset, value.fdel) if type(value) is property else (value.__func__,)
      return "wrapper", (type(value).__name__, *parts)
    self.check(value)
    if isinstance(value, type):
      return "class", self._describe_class(value)
    number, kind = self._export(value), self._describe_class(type(value))
    base = next((base for base in wire.BASES if isinstance(value, base)), None)
    if base is None:
      tag = "coroutine" if isinstance(value, types.CoroutineType) else "object"
      return tag, (number, kind, *([value.__name__, value.__doc__] if isinstance(value, _CALLABLE) else ()))
    if base not in containers.KINDS.values():
      return "held", (number, kind, str.__str__(value) if base is str else base(value))
    shared = self._shared.number(value)
    if shared is None:
      shared = self._shared.add(value, base)
      self._new.append(shared)
    return "holding", (number, kind, shared, tuple(containers.contents(base, value)))

  def _export(self, value):
    number = self._numbers.get(id(value))
    if number is None:
      number = self._numbers[id(value)] = next(self._count)
      self._objects[number] = value  # kept alive, so that its id stays its own
    return number

  def _describe(self, error):
    """The parts of an exception: what it is, and for it and what it came of (number, type, arguments, attributes)."""
    chain = [error, error.__cause__, error.__context__]
    return (*(None if one is None else self._parts(one) for one in chain), error.__suppress_context__)

  def _parts(self, error):
    builtin = id(type(error)) in wire.NAMES
    if standins.is_standin(error):
      return -standins.number_of(error), None, (), None
    number = 0 if builtin else self._export(error)
    given = error.__reduce__()[1] if builtin and isinstance(error, OSError) else error.args
    kind = type(error) if builtin else self._describe_class(type(error))
    return number, kind, given, vars(error) if builtin else None

  def _describe_class(self, kind):
    number = self._export(kind)
    if number in self._told:
      return (number,)
    self._told.add(number)
    self._new.append(-number)
    bases = tuple(base if _is_held(base) else object if base.__module__ == "builtins" else self._describe_class(base)
                  for base in kind.__bases__)
    above = next(filter(_is_held, kind.__mro__), object)
    found = {}
    for base in reversed(kind.__mro__[:kind.__mro__.index(above)]):
      found.update(vars(base))
    if above is object:
      found = vars(object) | found
    methods = tuple(name for name in standins.METHODS if found.get(name) is not None)
    attributes = () if kind.__module__ == "builtins" else tuple(vars(kind))
    return number, kind.__name__, bases, methods, attributes, kind.__module__

  def resolve(self, tag, parts):
    match tag, parts:
      case "yours", [int(number)]:
        return self._objects[number]
      case "class", _:
        return self._class(parts)
      case "object" | "coroutine", [int(number), tuple(kind), *_]:
        kind = self._class(kind)
        found = self.standin(number)
        if found is None:
          found = self._keep(number, standins.create(kind, number, standins.base_of(kind)))
        return self._disguise(number, found) if tag == "coroutine" else found
      case "held", [int(number), tuple(kind), value] if type(value) in wire.BASES:
        kind = self._class(kind)
        base = standins.base_of(kind)
        if base is not type(value):
          raise Malformed("held")
        found = self.standin(number)
        return self._keep(number, standins.create(kind, number, base, value)) if found is None else found
      case "holding", [int(number), tuple(kind), int(shared), tuple(items)]:
        kind = self._class(kind)
        found = self.standin(number)
        return self._adopt_holding(number, kind, shared, items) if found is None else found
      case "raised", [tuple(error), cause, context, bool(suppress)]:
        error, *rest = (part and self._rebuild(*part) for part in (error, cause, context))
        error.__cause__, error.__context__ = rest
        error.__suppress_context__ = suppress
        return error
      case "wrapper", [str(name), *given]:
        return _WRAPPERS[name](*given)
    raise Malformed("unknown tag")

  def _class(self, parts):
    """The class that stands for another, which is described when it first comes."""
    match parts:
      case [int(number)] if isinstance(self._standins.get(number), type):
        return self._standins[number]
      case [int(number), str(name), tuple(bases), tuple(methods), tuple(attributes), str(module)]:
        # Those of unittest would tell its runner what became of the test.
        pythons = module.partition(".")[0] in sys.stdlib_module_names - {"unittest"}
        known = getattr(sys.modules.get(module), name, None) if pythons else None
        if isinstance(known, type) and issubclass(known, Exception):
          self._standins[number] = known
          return known
        if number not in self._standins:
          bases = tuple(self._class(base) if type(base) is tuple else base for base in bases)
          return self._keep(number, standins.make_class(number, name, bases, methods, attributes))
    raise Malformed("class")

  def standin(self, number):
    found = self._standins.get(number)
    return found() if type(found) is ref else found

  def _keep(self, number, standin):
    if type(number) is not int or number < 1:
      raise Malformed("number")
    if number in self._dropped:
      self._dropped.remove(number)
    try:
      if type(standin) is standins.Meta:
        raise TypeError  # classes stay
      self._standins[number] = ref(standin, lambda _: self._forget(number))
    except TypeError:  # such as an integer
      self._standins[number] = standin
    return standin

  def _forget(self, number):
    self._standins.pop(number, None)
    self._dropped.append(number)

  def _disguise(self, number, standin):
    if id(standin) not in self._disguised:
      self._standins[number] = found = standins.awaited(standin)
      self._disguised[id(found)] = number
      return found
    return standin

  def _adopt_holding(self, number, kind, shared, items):
    base = standins.base_of(kind)
    if base not in containers.KINDS.values():
      raise Malformed("holding")
    value = standins.create(kind, number, base)
    self._shared.enter(shared, value, base)
    containers.fill(base, value, list(items))
    self._shared.settle(shared)
    return self._keep(number, value)

  def _rebuild(self, number, kind, given, attributes):
    if number < 0:
      return self._objects[-number]
    kind = self._class(kind) if type(kind) is tuple else kind
    number = number if type(kind) is standins.Meta else 0
    if number and self.standin(number) is not None:
      return self.standin(number)
    base = standins.base_of(kind) if type(kind) is standins.Meta else kind
    if not issubclass(base, BaseException):
      raise Malformed("no exception")
    try:
      error = base.__new__(kind, *given)
      if not number:
        error.__init__(*given)
    except TypeError:
      error = base.__new__(kind)
      error.args = given
    if number:
      object.__getattribute__(error, "__dict__")["_number"] = number
      return self._keep(number, error)
    vars(error).update(attributes or {})
    return error


def _is_held(kind):
  """Whether what is of this type of Python's own is of it on the other side, too."""
  return kind in wire.BASES or issubclass(kind, BaseException) and kind.__module__ == "builtins"
