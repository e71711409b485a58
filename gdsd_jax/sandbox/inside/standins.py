"""Stand-ins: objects here for those of the other side, of classes that are here for theirs.

A stand-in has the special methods that its class has there, so that Python itself finds out here what an object can be
asked. Each of them asks the other side to do the same with the object itself. Exceptions are exceptions here, and what
holds plain data, such as a named tuple, is plain data here.
"""

import builtins
import operator

import containers

peer = None  # this end of the channel, of which a process has one
_loop = None  # for what one side awaits for the other

ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift", "and", "or", "xor",
              "matmul", "divmod")
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
NUMERIC = ("neg", "pos", "abs", "invert", "index", "int", "float", "complex", "round", "trunc", "floor", "ceil")
_OTHERS = ("bool", "len", "hash", "str", "repr", "format", "bytes", "getitem", "setitem", "delitem", "contains", "iter",
           "next", "reversed", "fspath", "dir", "enter", "exit", "missing")
_AWAITED = ("anext", "aenter", "aexit")
# What one side does for the other with an object of its own.
OPERATIONS = {
  name: getattr(operator, name, None) or getattr(operator, f"{name}_", None) or getattr(builtins, name, None)
  for name in (*ARITHMETIC, *COMPARISONS, *NUMERIC, *_OTHERS)
} | {f"i{name}": getattr(operator, f"i{name}") for name in ARITHMETIC[:-1]} | {
  "enter": lambda value: type(value).__enter__(value),
  "exit": lambda value, *error: type(value).__exit__(value, *error),
  "trunc": lambda value: type(value).__trunc__(value), "floor": lambda value: type(value).__floor__(value),
  "ceil": lambda value: type(value).__ceil__(value), "fspath": lambda value: type(value).__fspath__(value),
  "missing": lambda value, key: type(value).__missing__(value, key),
  "aiter": aiter, "anext": lambda value: complete(anext(value)),
  "aenter": lambda value: complete(type(value).__aenter__(value)), "await": lambda value: complete(value),
  "aexit": lambda value, *error: complete(type(value).__aexit__(value, *error)),
  "call": lambda function, args, named: function(*args, **dict(named)),
  "isinstance": isinstance, "issubclass": issubclass, "getattr": getattr, "setattr": setattr, "delattr": delattr,
  "copy": lambda value: __import__("copy").copy(value), "deepcopy": lambda value: __import__("copy").deepcopy(value),
}


def complete(awaitable):
  """What an awaitable gives, also where a loop is running, which waits meanwhile."""
  global _loop
  import asyncio  # late, as few programs need it

  async def wait():
    return await awaitable

  running = asyncio._get_running_loop()
  _loop = _loop or asyncio.new_event_loop()  # one for all, as locks and queues stay with theirs
  asyncio._set_running_loop(None)
  try:
    return (asyncio.new_event_loop() if running else _loop).run_until_complete(wait())
  finally:
    asyncio._set_running_loop(running)


def _asks(operation):
  return lambda self, *operands: peer.operate(operation, self, *operands)


def _asks_reflected(operation):
  return lambda self, other: peer.operate(operation, other, self)


def _asks_awaiting(operation):
  async def method(self, *operands):  # of what `__aexit__` gets, a traceback stays here
    return peer.operate(operation, self, *operands[:2], *[None] * len(operands[2:]))

  return method


async def awaited(standin):
  return peer.operate("await", standin)


# Special name -> the method of stand-ins whose class has it.
METHODS = (
  {f"__{name}__": _asks(name) for name in (*ARITHMETIC, *COMPARISONS, *NUMERIC, *_OTHERS, "aiter")}
  | {f"__r{name}__": _asks_reflected(name) for name in ARITHMETIC}
  | {f"__i{name}__": _asks(f"i{name}") for name in ARITHMETIC[:-1]}
  | {f"__{name}__": _asks_awaiting(name) for name in _AWAITED}
  | {"__await__": lambda self: awaited(self).__await__(),
     "__copy__": _asks("copy"), "__deepcopy__": lambda self, memo: peer.operate("deepcopy", self),
     "__exit__": lambda self, kind, error, trace: peer.operate("exit", self, kind, error, None),
     "__call__": lambda self, *args, **kwargs: peer.operate("call", self, args, (*kwargs.items(),))}
)
_OF_CLASSES = {"__class__", "__mro__", "__bases__", "__name__", "__qualname__", "mro", "__instancecheck__",
               "__subclasscheck__", "__subclasshook__", "__prepare__"}
_NEVER_LOCAL = {"__dict__", "__doc__", "__init__", "__module__"}


class Meta(type):
  """The type of the classes that stand for the other side's."""

  def __new__(mcs, name, bases, namespace, **options):
    """A class that a test makes of the program's: the program gets it, with functions that are called here."""
    cell = namespace.pop("__classcell__", None)
    theirs = {key: value for key, value in namespace.items() if key not in ("__module__", "__qualname__")}
    made = peer.operate("subclass", name, bases, theirs, options)
    if cell is not None:
      cell.cell_contents = made
    return made

  def __init__(cls, *_, **__):
    pass

  def __call__(cls, *args, **kwargs):
    return peer.operate("call", cls, args, (*kwargs.items(),))

  def __getattribute__(cls, name):
    if name in _OF_CLASSES or name in METHODS:
      return type.__getattribute__(cls, name)
    return peer.operate("getattr", cls, name)

  def __setattr__(cls, name, value):
    peer.operate("setattr", cls, name, value)

  def __delattr__(cls, name):
    peer.operate("delattr", cls, name)

  def __instancecheck__(cls, value):
    return type.__instancecheck__(cls, value) or peer.operate("isinstance", value, cls)

  def __subclasscheck__(cls, other):
    return type.__subclasscheck__(cls, other) or peer.operate("issubclass", other, cls)

  def __bool__(cls):
    return True

  __iter__, __len__, __getitem__, __contains__ = map(_asks, ("iter", "len", "getitem", "contains"))
  __reversed__, __repr__, __dir__ = map(_asks, ("reversed", "repr", "dir"))


def is_standin(value) -> bool:
  return type(type(value)) is Meta or type(value) is Meta


def number_of(standin) -> int:
  if type(standin) is Meta:
    return type.__getattribute__(standin, "_number")
  return object.__getattribute__(standin, "__dict__")["_number"]


def base_of(cls):
  """The type of plain data, exception or object that a stand-in's class makes of it here."""
  return next(kind for kind in type.__getattribute__(cls, "__mro__") if type(kind) is not Meta)


class _Above:
  """What `super().name` finds in a class of the other side."""

  def __init__(self, owner, name):
    self._asked = owner, name

  def __get__(self, instance, kind=None):
    owner, name = self._asked
    return peer.operate("above", peer.standin(owner), instance, kind, name)


def _method(owner, name):
  """The special method of a class. A stand-in of another class meets it by `super()`, or by its full name."""
  ask = METHODS[name]

  def method(self, *operands, **named):
    if number_of(type(self)) == owner:
      return ask(self, *operands, **named)
    return peer.operate("above", peer.standin(owner), self, type(self), name)(*operands, **named)

  return method


def make_class(number: int, name: str, bases: tuple, methods: tuple, attributes: tuple) -> Meta:
  """The class that stands for the other side's class `number`. Any exception where there can be none."""
  namespace = {method: _method(number, method) for method in ("__copy__", "__deepcopy__", *methods)}
  namespace |= {attribute: _Above(number, attribute) for attribute in attributes
                if attribute[:2] != "__" or attribute == "__init__"}
  namespace |= {"_number": number, "__module__": "__main__", "__getattribute__": _get, "__setattr__": _set,
                "__delattr__": _delete}
  base = next((base_of(base) if type(base) is Meta else base for base in bases if base is not object), object)
  own = set() if base is object else {*dir(base)}.difference(methods, attributes, _NEVER_LOCAL)
  namespace["_local"] = own  # what an object asks of the plain data or the exception that it is here
  if "__hash__" not in methods:
    namespace["__hash__"] = None if base is object or "__eq__" in methods else base.__hash__
  return type.__new__(Meta, name, bases, namespace)


def _get(self, name):
  kind = type(self)
  if name == "__class__":
    return kind
  if name in METHODS or name in type.__getattribute__(kind, "_local"):
    found = object.__getattribute__(self, name)
    # Called by name, a comparison that says nothing says no: what stands for "nothing" counts as true.
    return (lambda other: found(other) is True) if name[2:-2] in COMPARISONS else found
  return peer.operate("getattr", self, name)


def _set(self, name, value):
  if name in type.__getattribute__(type(self), "_local"):
    object.__setattr__(self, name, value)
  else:
    peer.operate("setattr", self, name, value)


def _delete(self, name):
  peer.operate("delattr", self, name)


def plain(standin):
  """The plain data that a stand-in holds, whatever its class makes of it; itself where it holds none."""
  base = base_of(type(standin)) if type(standin) is not Meta else object
  if base in containers.KINDS.values():
    value = base()
    containers.fill(base, value, containers.contents(base, standin))
    return value
  if base in (tuple, frozenset, bytes):
    return base(base.__iter__(standin))
  exact = {int: "__index__", float: "__float__", complex: "__complex__", str: "__str__"}
  return getattr(base, exact[base])(standin) if base in exact else standin


def create(cls, number: int, base, *held):
  """A stand-in of a class, which holds what an object of `base` holds that is made of `held`."""
  standin = base.__new__(cls, *held)
  object.__getattribute__(standin, "__dict__")["_number"] = number
  return standin
