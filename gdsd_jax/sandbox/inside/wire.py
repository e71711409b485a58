"""The only language that judge and candidate share: JSON of plain data, decoded strictly.

Numbers, texts, true, false and null stand for themselves. All else is a list that begins with a tag: `["tuple", 1, 2]`.
No pickle: decoding builds exact builtin types and a few of the standard library's, and never calls the sender's code.
Containers that can change carry a number, so that both sides can say what became of them (`containers.py`). Everything
else crosses as a number that stands for an object on the sender's side (`peer.py`).
"""

from _collections import defaultdict
import binascii
import builtins
import json
import operator

import containers

MAX_DEPTH = 200  # containers in each other; each takes two of Python's 1000 frames

# Characters beyond ASCII stay as they are, because escapes would join the halves of a surrogate pair.
_JSON = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":"))
PLAIN_TYPES = (bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, range, slice,
               type(None), type(...), type(NotImplemented))
# Objects of their subclasses, such as named tuples, cross as the value that they hold, with a reference to the object.
BASES = (int, float, complex, str, bytes, tuple, frozenset, *containers.KINDS.values())
_VIEWS = {type(getattr({}, name)()): name for name in ("keys", "values", "items")}
# What crosses by its name: each side has its own.
_BUILTINS = {value.__name__: value for value in (
  *PLAIN_TYPES, object, type, abs, all, any, ascii, bin, callable, chr, divmod, format, hash, hex, isinstance,
  issubclass, iter, len, max, min, next, oct, ord, pow, print, repr, round, sorted, sum,
)} | containers.KINDS | {"Ellipsis": ..., "NotImplemented": NotImplemented} | {
  name: value for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)}
NAMES = {id(value): name for name, value in _BUILTINS.items()}
# Types of the standard library that are rebuilt: (module, name) -> what the constructor takes.
_STANDARD = {
  ("datetime", "date"): operator.attrgetter("year", "month", "day"),
  ("datetime", "datetime"): operator.attrgetter(
    "year", "month", "day", "hour", "minute", "second", "microsecond", "tzinfo"),
  ("datetime", "time"): operator.attrgetter("hour", "minute", "second", "microsecond", "tzinfo"),
  ("datetime", "timedelta"): operator.attrgetter("days", "seconds", "microseconds"),
  ("datetime", "timezone"): lambda value: (value.utcoffset(None),),
  ("decimal", "Decimal"): lambda value: (str(value),),
  ("fractions", "Fraction"): operator.attrgetter("numerator", "denominator"),
  ("pathlib", "PosixPath"): lambda value: (str(value),),
  ("pathlib", "PurePosixPath"): lambda value: (str(value),),
  ("uuid", "UUID"): lambda value: (value.hex,),
}


_ARGUMENTS = {"int", "str", "NoneType", "timedelta", "timezone"}


class Malformed(Exception):
  """Bytes that are no message of this language."""


class Terms:
  """What the two ends agree on beyond plain data; these agree on nothing, and containers cross as copies.

  `share(value)` gives (number, whether the other side has it) for a container, and `shared(number)` is the one of that
  number. `adopt(number, value)` takes one in that the other side made, before it is filled; `settle(number)` says that
  it is. `refer(value) -> (tag, parts)` names what is no plain data, `resolve(tag, parts)` finds it.
  """

  def share(self, value):
    return 0, False

  def adopt(self, number, value):
    pass

  def settle(self, number):
    pass

  def shared(self, number):
    raise Malformed("container")

  def refer(self, value):
    raise TypeError(f"a {type(value).__name__} is no plain data")

  def resolve(self, tag, parts):
    raise Malformed("reference")


def encode(value, terms) -> bytes:
  """The bytes of a value. ValueError on one that is nested too deeply; TypeError on one that must not be told."""
  return _JSON.encode(_to_json(value, terms, 0)).encode("utf-8", "surrogatepass")


def _to_json(value, terms, depth):
  if depth > MAX_DEPTH:
    raise ValueError("nested too deeply")
  kind = type(value)
  if value is None or kind in (bool, float, str) or kind is int and abs(value) < 2**63:
    return value
  tag, parts = _split(value, kind, terms)
  return [tag, *[_to_json(part, terms, depth + 1) for part in parts]]


def _split(value, kind, terms):
  """The tag of a value, and the values that follow the tag."""
  if containers.KINDS.get(kind.__name__) is kind:
    number, known = terms.share(value)
    return ("same", (number,)) if known else (kind.__name__, (number, *_told(kind, value)))
  if kind is tuple or kind is frozenset:
    return kind.__name__, value
  if kind is int:  # beyond what every JSON parser reads; hexadecimal, since Python limits decimal digits
    return "int", (f"{value:x}",)
  if kind is complex:
    return "complex", (value.real, value.imag)
  if kind is bytes:
    return "bytes", (binascii.b2a_base64(value, newline=False).decode(),)
  if kind is range or kind is slice:
    return kind.__name__, (value.start, value.stop, value.step)
  if kind in _VIEWS:
    return "view", (_VIEWS[kind], {**value.mapping})
  if id(value) in NAMES:
    return "builtin", (NAMES[id(value)],)
  name = type.__getattribute__(kind, "__module__"), kind.__name__  # as it is here, where it stands for another
  if name in _STANDARD and type(getattr(value, "tzinfo", None)).__name__ in ("NoneType", "timezone"):
    return "standard", (*name, *_STANDARD[name](value))
  return terms.refer(value)


def _told(kind, value):
  extra = (value.default_factory,) if kind is defaultdict else (value.maxlen,) if kind is containers.deque else ()
  return (*extra, *containers.contents(kind, value))


def decode(data: bytes, terms):
  """The value that the bytes stand for. Malformed where they stand for none."""
  try:
    # Each not-a-number is an object of its own, as it was: two of them are two keys of a dict.
    return _from_json(json.loads(data.decode("utf-8", "surrogatepass"), parse_constant=float), terms, 0)
  except Exception as error:  # whatever a hostile message leads to: want of memory and of stack among it
    raise Malformed(str(error)) from error


def _from_json(node, terms, depth):
  if depth > MAX_DEPTH:
    raise Malformed("nested too deeply")
  if type(node) is dict:
    raise Malformed("an object of JSON")
  if type(node) is not list:
    return node
  if type(node[0]) is str and node[0] in containers.KINDS:
    return _container(node, terms, depth)
  tag, parts = node[0], [_from_json(part, terms, depth + 1) for part in node[1:]]
  match tag, parts:
    case "tuple", _:
      return tuple(parts)
    case "frozenset", _:
      return frozenset(parts)
    case "same", [int(number)]:
      return terms.shared(number)
    case "int", [str(digits)]:
      return int(digits, 16)
    case "complex", [float(real), float(imaginary)]:
      return complex(real, imaginary)
    case "bytes", [str(text)]:
      return binascii.a2b_base64(text, strict_mode=True)
    case "range", [int(start), int(stop), int(step)]:
      return range(start, stop, step)
    case "slice", [start, stop, step]:
      return slice(start, stop, step)
    case "view", ["keys" | "values" | "items" as name, value] if type(value) is dict:
      return getattr(value, name)()
    case "builtin", [str(name)]:
      return _BUILTINS[name]
    case "standard", [module, name, *arguments] if (module, name) in _STANDARD:
      if not _ARGUMENTS.issuperset(type(given).__name__ for given in arguments):
        raise Malformed("arguments")
      return getattr(__import__(module), name)(*arguments)
    case str(), _:
      return terms.resolve(tag, parts)
  raise Malformed("unknown tag")


def _container(node, terms, depth):
  """A container that the other side made. It is known before it is filled, since it may be within itself."""
  tag, number, *rest = node
  if type(number) is not int:
    raise Malformed("number")
  kind, extra = containers.KINDS[tag], ()
  if tag in ("defaultdict", "deque"):
    extra, rest = (_from_json(rest[0], terms, depth + 1),), rest[1:]
    if tag == "deque":
      extra = ((), None if extra[0] is None else operator.index(extra[0]))
  value = kind(*extra)
  terms.adopt(number, value)
  containers.fill(kind, value, [_from_json(part, terms, depth + 1) for part in rest])
  terms.settle(number)
  return value
