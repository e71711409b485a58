"""Containers that both sides hold: what one side changes in them is told to the other with its next message."""

from _collections import defaultdict, deque, OrderedDict
from collections import Counter
from itertools import count
import operator
import sys

KINDS = {kind.__name__: kind for kind in (list, dict, set, bytearray, deque, OrderedDict, defaultdict, Counter)}


def contents(kind, value) -> list:
  """What is in a container of `kind` or of a subclass, of dicts the keys and then the values."""
  if issubclass(kind, dict):
    return [*kind.keys(value), *kind.values(value)]
  return list(kind.__iter__(value))


def fill(kind, value, items: list) -> None:
  """Makes `items` the contents, in place. Any exception where they cannot be."""
  if kind is list or kind is bytearray:
    kind.__setitem__(value, slice(None), items)
    return
  kind.clear(value)
  if issubclass(kind, dict):
    half, odd = divmod(len(items), 2)
    if odd:
      raise ValueError("a key without a value")
    for key, item in zip(items[:half], items[half:]):
      kind.__setitem__(value, key, item)
  else:
    (kind.extend if kind is deque else kind.update)(value, items)


class Shared:
  """The containers that both sides have, by number: each side numbers what it brings in, from `first` on by two."""

  def __init__(self, first: int):
    self._numbers = {}  # id -> number
    self._entries = {}  # number -> [container, its kind, contents as last told, None while it is being filled]
    self._count = count(first, 2)

  def number(self, value):
    return self._numbers.get(id(value))

  def add(self, value, kind) -> int:
    number = next(self._count)
    self.enter(number, value, kind)
    self.settle(number)
    return number

  def enter(self, number: int, value, kind) -> None:
    if number in self._entries:
      raise ValueError("a number that is taken")
    self._entries[number] = [value, kind, None]
    self._numbers[id(value)] = number

  def settle(self, number: int) -> None:
    if number in self._entries:  # else the other side has dropped it meanwhile
      entry = self._entries[number]
      entry[2] = contents(entry[1], entry[0])

  def get(self, number: int):
    return self._entries[number][0]

  def changes(self) -> tuple:
    """(number, contents now) of those that differ from what was told."""
    found = []
    for number, (value, kind, told) in list(self._entries.items()):
      if told is not None:
        now = contents(kind, value)
        if len(now) != len(told) or not all(map(operator.is_, now, told)):
          found.append((number, (*now,)))
    return tuple(found)

  def told(self, changes) -> None:
    for number, now in changes:
      if number in self._entries:
        self._entries[number][2] = now

  def change(self, number: int, items: list) -> None:
    """What the other side made of a container."""
    entry = self._entries[number]
    entry[2] = None
    fill(entry[1], entry[0], items)
    self.settle(number)

  def drop(self, numbers) -> None:
    for number in numbers:
      if number in self._entries:  # else the other side has dropped it, too
        del self._numbers[id(self._entries.pop(number)[0])]

  def unused(self) -> tuple:
    """Drops what nothing but this table holds, and returns the numbers."""
    dropped = []
    while lost := [number for number, entry in self._entries.items()
                   if entry[2] is not None and sys.getrefcount(entry[0]) == 2]:
      self.drop(lost)
      dropped += lost
    return tuple(dropped)
