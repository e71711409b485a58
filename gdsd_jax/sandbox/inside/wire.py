"""The only language that judge and candidate share: length-prefixed messages of plain data, decoded strictly.

No pickle: decoding builds exact builtin types and a few of the standard library's, and never calls the sender's code.
Everything else crosses as a number that stands for an object on the sender's side.
"""

import struct

MAX_MESSAGE = 16 * 2**20  # bytes
MAX_DEPTH = 200  # of containers in each other; decoding takes two of Python's 1000 frames for each

_DOUBLE = struct.Struct("<d")
_LENGTH = struct.Struct("<I")
_SEQUENCES = {list: b"l", tuple: b"t", set: b"S", frozenset: b"Z"}
_SEQUENCE_TYPES = {tag[0]: kind for kind, tag in _SEQUENCES.items()}
PLAIN_TYPES = (
  bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, range, type(None),
)
# What crosses by its name: each side has its own.
_BUILTINS = {value.__name__: value for value in (
  *PLAIN_TYPES, object, enumerate, filter, map, reversed, zip, abs, all, any, ascii, bin, callable, chr, divmod, format,
  hash, hex, isinstance, issubclass, iter, len, max, min, next, oct, ord, pow, repr, round, sorted, sum,
)}
_KINDS_OF_BUILTINS = (type, type(len))
# Types of the standard library that are rebuilt: (module, name) -> what the constructor takes.
_STANDARD = {
  ("collections", "Counter"): lambda value: (dict(value),),
  ("collections", "OrderedDict"): lambda value: (list(value.items()),),
  ("collections", "deque"): lambda value: (list(value), value.maxlen),
  ("datetime", "date"): lambda value: (value.year, value.month, value.day),
  ("datetime", "datetime"): lambda value: (value.year, value.month, value.day, value.hour, value.minute, value.second,
                                           value.microsecond),
  ("datetime", "time"): lambda value: (value.hour, value.minute, value.second, value.microsecond),
  ("datetime", "timedelta"): lambda value: (value.days, value.seconds, value.microseconds),
  ("decimal", "Decimal"): lambda value: (str(value),),
  ("fractions", "Fraction"): lambda value: (value.numerator, value.denominator),
}
# Immutable types whose subclasses (named tuples, enumerations of numbers) cross as the value that they hold, with a
# reference to the object itself.
BASES = (int, float, str, bytes, tuple, frozenset)


class Malformed(Exception):
  """Bytes that are no message of this language."""


def encode(value, refer) -> bytes:
  """The bytes of a value; `refer(value) -> (tag, number)` names whatever is no plain data.

  The tags: h, an object; a, a coroutine; c, a callback; v, an object of a subclass of `BASES`, followed by its value.
  """
  out = []
  _encode(value, refer, out, 0)
  return b"".join(out)


def _encode(value, refer, out, depth):
  kind = type(value)
  if depth > MAX_DEPTH:
    raise ValueError("nested too deeply")
  if value is None:
    out.append(b"N")
  elif kind is bool:
    out.append(b"T" if value else b"F")
  elif kind is int:
    out.append(b"i%x;" % value if value >= 0 else b"i-%x;" % -value)
  elif kind is float:
    out.append(b"f" + _DOUBLE.pack(value))
  elif kind is complex:
    out.append(b"j" + _DOUBLE.pack(value.real) + _DOUBLE.pack(value.imag))
  elif kind is str:
    _encode_bytes(b"s", value.encode("utf-8", "surrogatepass"), out)
  elif kind is bytes or kind is bytearray:
    _encode_bytes(b"b" if kind is bytes else b"B", bytes(value), out)
  elif kind in _SEQUENCES:
    out.append(b"%c%x;" % (_SEQUENCES[kind], len(value)))
    for item in value:
      _encode(item, refer, out, depth + 1)
  elif kind is dict:
    out.append(b"d%x;" % len(value))
    for key, item in value.items():
      _encode(key, refer, out, depth + 1)
      _encode(item, refer, out, depth + 1)
  elif kind is range:
    out.append(b"r")
    _encode((value.start, value.stop, value.step), refer, out, depth + 1)
  elif kind in _KINDS_OF_BUILTINS and _BUILTINS.get(value.__name__) is value:
    _encode_bytes(b"y", value.__name__.encode(), out)
  else:
    _encode_other(value, kind, refer, out, depth)


def _encode_other(value, kind, refer, out, depth):
  name = (kind.__module__, kind.__name__)
  if name in _STANDARD and getattr(value, "tzinfo", None) is None:
    out.append(b"x")
    _encode((*name, _STANDARD[name](value)), refer, out, depth + 1)
  elif name == ("collections", "defaultdict"):
    _encode(dict(value), refer, out, depth)
  else:
    base = next((base for base in BASES if isinstance(value, base)), None)
    tag, number = refer(value)
    out.append(b"%c%x;" % (tag, number))
    if tag == b"v":
      _encode(str.__str__(value) if base is str else base(value), refer, out, depth + 1)


def _encode_bytes(tag, data, out):
  out.append(b"%c%x;" % (tag, len(data)))
  out.append(data)


def decode(data: bytes, resolve):
  """The value of these bytes. Malformed on anything else.

  `resolve(tag, number, value)` gives the object for a reference; `value` is None but for the tag v.
  """
  try:
    value, end = _decode(data, 0, resolve, 0)
  except (ValueError, TypeError, IndexError, ArithmeticError, RecursionError, MemoryError, struct.error) as error:
    raise Malformed(str(error)) from error
  if end != len(data):
    raise Malformed("trailing bytes")
  return value


def _decode(data, at, resolve, depth):
  if depth > MAX_DEPTH:
    raise Malformed("nested too deeply")
  tag = data[at]
  at += 1
  if tag in b"NTF":
    return {78: None, 84: True, 70: False}[tag], at
  if tag == 102:  # f
    return _DOUBLE.unpack_from(data, at)[0], at + 8
  if tag == 106:  # j
    return complex(_DOUBLE.unpack_from(data, at)[0], _DOUBLE.unpack_from(data, at + 8)[0]), at + 16
  if tag == 114:  # r
    bounds, at = _decode(data, at, resolve, depth + 1)
    return range(*bounds), at
  if tag == 120:  # x
    (module, name, arguments), at = _decode(data, at, resolve, depth + 1)
    if (module, name) not in _STANDARD or type(arguments) is not tuple:
      raise Malformed("unknown type")
    return getattr(__import__(module), name)(*arguments), at
  end = data.index(b";", at)
  number = int(data[at:end], 16)
  at = end + 1
  if tag == 105:  # i
    return number, at
  if tag in b"hac":
    return resolve(tag, number, None), at
  if tag == 118:  # v
    value, at = _decode(data, at, resolve, depth + 1)
    if type(value) not in BASES:
      raise Malformed("no value")
    return resolve(tag, number, value), at
  if not 0 <= number <= len(data) - at:
    raise Malformed("length")
  return _decode_sized(tag, number, data, at, resolve, depth)


def _decode_sized(tag, size, data, at, resolve, depth):
  if tag in b"sbBy":
    content = data[at:at + size]
    if tag == 115:  # s
      return content.decode("utf-8", "surrogatepass"), at + size
    if tag == 121:  # y
      if content.decode() not in _BUILTINS:
        raise Malformed("unknown builtin")
      return _BUILTINS[content.decode()], at + size
    return (bytearray(content) if tag == 66 else content), at + size
  items = []
  if tag == 100:  # d
    size *= 2
  elif tag not in _SEQUENCE_TYPES:
    raise Malformed("unknown tag")
  for _ in range(size):
    item, at = _decode(data, at, resolve, depth + 1)
    items.append(item)
  return (dict(zip(items[::2], items[1::2])) if tag == 100 else _SEQUENCE_TYPES[tag](items)), at


class Peer:
  """One end of the channel. Both ends may ask, and answer what they are asked while they wait.

  A message is a tuple: ("ask", operation, arguments), ("ok", value) or ("error", names, text).
  """

  def __init__(self, sock):
    self._socket = sock
    self._buffer = bytearray()

  def refer(self, value):
    """(tag, number) for an object that is no plain data."""
    raise NotImplementedError

  def resolve(self, tag, number, value):
    """The object behind a reference."""
    raise NotImplementedError

  def handle(self, operation, arguments):
    """The value to answer a question with."""
    raise NotImplementedError

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
    while len(self._buffer) < size:
      chunk = self._socket.recv(2**16)
      if not chunk:
        raise EOFError
      self._buffer += chunk
    data = bytes(self._buffer[:size])
    del self._buffer[:size]
    return data

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
    except (Malformed, EOFError, OSError) as error:
      if type(error) in (Malformed, EOFError):
        raise
      self.send(describe(error))
    except BaseException as error:  # whatever the other side's request raised is its answer
      self.send(describe(error))

  def error(self, names, text) -> Exception:
    """The exception to raise for an error of the other side: the first builtin of `names`, a RuntimeError without."""
    import builtins

    if type(names) is not list or type(text) is not str:
      raise Malformed("no error")
    for name in names:
      kind = getattr(builtins, name, None) if type(name) is str else None
      if isinstance(kind, type) and issubclass(kind, Exception):
        try:
          return kind(text)
        except TypeError:  # such as UnicodeDecodeError, which takes more
          return RuntimeError(text)
    return RuntimeError(text)


def describe(error: BaseException) -> tuple:
  """The message about an exception."""
  try:
    text = str.__str__(str(error))[:1000]
  except BaseException:  # the program's own __str__ may raise anything
    text = ""
  return ("error", [kind.__name__ for kind in type(error).__mro__][:20], text)
