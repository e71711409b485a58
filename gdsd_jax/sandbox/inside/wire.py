"""The only language that judge and candidate share: length-prefixed JSON of plain data, decoded strictly.

Numbers, texts, true, false and null stand for themselves. All else is a list that begins with a tag: `["tuple", 1, 2]`.
No pickle: decoding builds exact builtin types and a few of the standard library's, and never calls the sender's code.
Everything else crosses as a number that stands for an object on the sender's side.
"""

import binascii
import builtins
import json
import operator
import struct

MAX_MESSAGE = 16 * 2**20  # bytes
FUNCTIONS, SCRIPT = b"1", b"2"  # how the judge wants a program run: for what it defines, or for what it prints
MAX_DEPTH = 200  # containers in each other; each takes two of Python's 1000 frames

_LENGTH = struct.Struct("<I")
# Characters beyond ASCII stay as they are, because escapes would join the halves of a surrogate pair.
_JSON = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":"))
_COLLECTIONS = {kind.__name__: kind for kind in (list, tuple, set, frozenset)}
PLAIN_TYPES = (bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, range, type(None))
# What crosses by its name: each side has its own.
_BUILTINS = {value.__name__: value for value in (
  *PLAIN_TYPES, object, enumerate, filter, map, reversed, zip, abs, all, any, ascii, bin, callable, chr, divmod, format,
  hash, hex, isinstance, issubclass, iter, len, max, min, next, oct, ord, pow, repr, round, sorted, sum,
)}
# Types of the standard library that are rebuilt: (module, name) -> what the constructor takes.
_STANDARD = {
  ("collections", "Counter"): lambda value: (dict(value),),
  ("collections", "OrderedDict"): lambda value: (list(value.items()),),
  ("collections", "deque"): lambda value: (list(value), value.maxlen),
  ("datetime", "date"): operator.attrgetter("year", "month", "day"),
  ("datetime", "datetime"): operator.attrgetter("year", "month", "day", "hour", "minute", "second", "microsecond"),
  ("datetime", "time"): operator.attrgetter("hour", "minute", "second", "microsecond"),
  ("datetime", "timedelta"): operator.attrgetter("days", "seconds", "microseconds"),
  ("decimal", "Decimal"): lambda value: (str(value),),
  ("fractions", "Fraction"): operator.attrgetter("numerator", "denominator"),
}
_ARGUMENTS = {dict, list, int, str, type(None)}  # no range, with which a deque would fill the memory
# Objects of their subclasses, such as named tuples, cross as the value that they hold, with a reference to the object.
BASES = (int, float, str, bytes, tuple, frozenset)


class Malformed(Exception):
  """Bytes that are no message of this language."""


def encode(value, refer) -> bytes:
  """The bytes of a value; `refer(value) -> (tag, number)` names whatever is no plain data.

  Its tags are "object", "coroutine", "callback", and "held" for an object of a subclass of `BASES`, which crosses with
  the value that it holds. ValueError on a value that is nested too deeply.
  """
  return _JSON.encode(_to_json(value, refer, 0)).encode("utf-8", "surrogatepass")


def _to_json(value, refer, depth):
  if depth > MAX_DEPTH:
    raise ValueError("nested too deeply")
  kind = type(value)
  if value is None or kind in (bool, float, str) or kind is int and abs(value) < 2**63:
    return value
  tag, parts = _split(value, kind, refer)
  return [tag, *[_to_json(part, refer, depth + 1) for part in parts]]


def _split(value, kind, refer):
  """The tag of a value, and the values that follow the tag."""
  if kind in _COLLECTIONS.values():
    return kind.__name__, value
  if kind is dict:
    return "dict", [part for item in value.items() for part in item]
  if kind is int:  # beyond what every JSON parser reads; hexadecimal, since Python limits decimal digits
    return "int", (f"{value:x}",)
  if kind is complex:
    return "complex", (value.real, value.imag)
  if kind is bytes or kind is bytearray:
    return kind.__name__, (binascii.b2a_base64(value, newline=False).decode(),)
  if kind is range:
    return "range", (value.start, value.stop, value.step)
  if kind in (type, type(len)) and _BUILTINS.get(value.__name__) is value:
    return "builtin", (value.__name__,)
  name = (kind.__module__, kind.__name__)
  if name in _STANDARD and getattr(value, "tzinfo", None) is None:
    return "standard", (*name, *_STANDARD[name](value))
  if name == ("collections", "defaultdict"):
    return _split(dict(value), dict, refer)
  tag, number = refer(value)
  if tag != "held":
    return tag, (number,)
  base = next(base for base in BASES if isinstance(value, base))
  return tag, (number, str.__str__(value) if base is str else base(value))


def decode(data: bytes, resolve):
  """The value that the bytes stand for. Malformed where they stand for none.

  `resolve(tag, number, value)` gives the object for a reference; `value` is None unless the tag is "held".
  """
  try:
    # Each not-a-number is an object of its own, as it was: two of them are two keys of a dict.
    return _from_json(json.loads(data.decode("utf-8", "surrogatepass"), parse_constant=float), resolve, 0)
  except Exception as error:  # whatever a hostile message leads to: want of memory and of stack among it
    raise Malformed(str(error)) from error


def _from_json(node, resolve, depth):
  if depth > MAX_DEPTH:
    raise Malformed("nested too deeply")
  if type(node) is dict:
    raise Malformed("an object of JSON")
  if type(node) is not list:
    return node
  tag, parts = node[0], [_from_json(part, resolve, depth + 1) for part in node[1:]]
  if tag in _COLLECTIONS:
    return _COLLECTIONS[tag](parts)
  match tag, parts:
    case "dict", _:
      return dict(zip(parts[::2], parts[1::2], strict=True))
    case "int", [str(digits)]:
      return int(digits, 16)
    case "complex", [float(real), float(imaginary)]:
      return complex(real, imaginary)
    case "bytes" | "bytearray", [str(text)]:
      return _BUILTINS[tag](binascii.a2b_base64(text, strict_mode=True))
    case "range", [int(start), int(stop), int(step)]:
      return range(start, stop, step)
    case "builtin", [str(name)]:
      return _BUILTINS[name]
    case "standard", [module, name, *arguments] if (module, name) in _STANDARD:
      if not _ARGUMENTS.issuperset(map(type, arguments)):
        raise Malformed("arguments")
      return getattr(__import__(module), name)(*arguments)
    case "object" | "coroutine" | "callback", [number] if type(number) is int:
      return resolve(tag, number, None)
    case "held", [number, value] if type(number) is int and type(value) in BASES:
      return resolve(tag, number, value)
  raise Malformed("unknown tag")


class Peer:
  """One end of the channel. Both ends may ask, and answer what they are asked while they wait.

  A message is a tuple: ("ask", operation, arguments), ("ok", value) or ("error", names, text). The ends differ in
  `refer(value)` and `resolve(tag, number, value)`, see `encode` and `decode`, and in `handle(operation, arguments)`,
  which gives the value to answer a question with.
  """

  def __init__(self, sock):
    self._socket = sock

  def send(self, message) -> None:
    data = encode(message, self.refer)
    if len(data) > MAX_MESSAGE:
      raise ValueError("too much data")
    self._socket.sendall(_LENGTH.pack(len(data)) + data)

  def receive(self) -> tuple:
    """The next message. EOFError at the end of the channel, Malformed on anything that is no message."""
    size = _LENGTH.unpack(self._read(_LENGTH.size))[0]
    if size > MAX_MESSAGE:
      raise Malformed("too much data")
    message = decode(self._read(size), self.resolve)
    if type(message) is not tuple or not message or type(message[0]) is not str:
      raise Malformed("no message")
    return message

  def _read(self, size):
    data = bytearray()
    while len(data) < size:
      chunk = self._socket.recv(min(size - len(data), 2**16))
      if not chunk:
        raise EOFError
      data += chunk
    return bytes(data)

  def ask(self, operation, *arguments):
    """The other side's answer. Its errors are raised by `error`."""
    self.send(("ask", operation, arguments))
    while True:
      message = self.receive()
      if message[0] == "ask":
        self.answer(message)
      elif message[0] == "ok" and len(message) == 2:
        return message[1]
      elif message[0] == "error" and len(message) == 3:
        raise self.error(message[1], message[2])
      else:
        raise Malformed("no answer")

  def answer(self, message) -> None:
    if len(message) != 3 or type(message[1]) is not str or type(message[2]) is not tuple:
      raise Malformed("no question")
    try:
      self.send(("ok", self.handle(message[1], message[2])))
    except BaseException as error:  # whatever the other side's request raised is its answer
      if type(error) in (Malformed, EOFError):
        raise
      self.send(_describe(error))

  def error(self, names, text) -> Exception:
    """The exception to raise for an error of the other side: the first builtin of `names`, a RuntimeError without."""
    if type(names) is not list or type(text) is not str:
      raise Malformed("no error")
    kinds = (getattr(builtins, name, None) for name in names if type(name) is str)
    kind = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception)), RuntimeError)
    try:
      return kind(text)
    except TypeError:  # such as UnicodeDecodeError, which takes more
      return RuntimeError(text)


def _describe(error: BaseException) -> tuple:
  """The message about an exception."""
  try:
    text = str.__str__(str(error))[:1000]
  except BaseException:  # the program's own __str__ may raise anything
    text = ""
  return ("error", [kind.__name__ for kind in type(error).__mro__][:20], text)
