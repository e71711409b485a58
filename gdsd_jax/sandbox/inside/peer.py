"""One end of the channel between judge and candidate: the messages."""

import _thread
import struct

import objects
import standins
import wire
from wire import Malformed

MAX_MESSAGE = 16 * 2**20  # bytes
FUNCTIONS, SCRIPT = b"1", b"2"  # how the judge wants a program run: for what it defines, or for what it prints
_LENGTH = struct.Struct("<I")


class Closed(Exception):
  """The other side is gone."""


class Peer(objects.Objects):
  """Both ends may ask, and answer what they are asked while they wait.

  A message is a tuple: ("ask", operation, operands), ("ok", value) or ("error", exception), and last the news: what
  became of containers that both have, what the sender needs no more, and `news()`. The ends differ in that, and in
  `handle(operation, operands)`, which gives the value to answer a question with.
  """

  def __init__(self, sock, first: int):
    super().__init__(first)
    self._socket = sock
    self._lock = _thread.RLock()
    standins.peer = self

  def send(self, *message) -> None:
    changes, unused, dropped = self.changes()
    news = (changes, unused, dropped, self.news())
    self.begin()
    try:
      data = wire.encode((*message, news if any(news) else None), self)
      if len(data) > MAX_MESSAGE:
        raise ValueError("too much data")
    except BaseException:
      self.undo()
      raise
    self.told(changes, unused, dropped)
    self._socket.sendall(_LENGTH.pack(len(data)) + data)

  def receive(self) -> tuple:
    """The next message, without the news. Closed at the end of the channel, Malformed on anything that is none."""
    size = _LENGTH.unpack(self._read(_LENGTH.size))[0]
    if size > MAX_MESSAGE:
      raise Malformed("too much data")
    message = wire.decode(self._read(size), self)
    if type(message) is not tuple or len(message) < 2 or type(message[0]) is not str:
      raise Malformed("no message")
    if message[-1] is not None:
      self._hear(message[-1])
    return message[:-1]

  def _hear(self, news):
    try:
      *known, more = news
      self.take(*known)
      self.hear(more)
    except Exception as error:
      raise Malformed("news") from error

  def news(self):
    return None

  def hear(self, more) -> None:
    if more is not None:
      raise Malformed("news")

  def _read(self, size):
    data = bytearray()
    while len(data) < size:
      chunk = self._socket.recv(min(size - len(data), 2**16))
      if not chunk:
        raise Closed
      data += chunk
    return bytes(data)

  def ask(self, operation, *operands):
    """The other side's answer; what it raises is raised here."""
    with self._lock:
      self.send("ask", operation, operands)
      while True:
        message = self.receive()
        if message[0] == "ask":
          self.answer(message)
        elif message[0] == "ok" and len(message) == 2:
          return message[1]
        elif message[0] == "error" and len(message) == 2 and isinstance(message[1], BaseException):
          raise message[1]
        else:
          raise Malformed("no answer")

  operate = ask  # what stand-ins do

  def answer(self, message) -> None:
    if len(message) != 3 or type(message[1]) is not str or type(message[2]) is not tuple:
      raise Malformed("no question")
    try:
      self.send("ok", self.handle(message[1], message[2]))
    except (Malformed, Closed):
      raise
    except BaseException as error:  # whatever the other side's request raised is its answer
      self.send("error", error)
