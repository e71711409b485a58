"""Optimised HLO text read: computations, instructions, shapes, and how often each loop runs."""

import dataclasses
import functools
import math
import re

_BITS = {"pred": 8, "token": 0, "opaque": 0}  # all others state theirs: f32, bf16, s4, f8e4m3fn
_RENAMES = ("bitcast", "copy", "get-tuple-element", "convert")  # through which a loop counter is followed


@dataclasses.dataclass(frozen=True)
class Shape:
  """One array: element type, dimensions, and whether it lies in HBM (TPU layouts name other memories, S(1) is VMEM)."""

  dtype: str
  dimensions: tuple[int, ...]
  in_hbm: bool = True

  @property
  def size(self) -> int:
    return math.prod(self.dimensions)

  @property
  def nbytes(self) -> int:
    bits = _BITS[self.dtype] if self.dtype in _BITS else int(re.search(r"\d+", self.dtype)[0])
    return math.ceil(self.size * bits / 8)

  @property
  def hbm_bytes(self) -> int:
    return self.nbytes if self.in_hbm else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of HLO; `shapes` has several arrays where the result is a tuple."""

  name: str
  shapes: tuple[Shape, ...]
  opcode: str
  operands: tuple[str, ...]
  literal: str  # what stands between the parentheses
  attributes: str
  is_root: bool

  def computation(self, attribute: str) -> str | None:
    """The computation that an attribute such as `calls` or `body` names."""
    found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
    return found and found[1]

  def window(self, field: str, rank: int, default: int) -> list[int]:
    """A field of `window={…}`, one number for each of `rank` spatial dimensions."""
    found = re.search(rf"window={{[^}}]*\b{field}=([\dx]+)", self.attributes)
    return [int(size) for size in found[1].split("x")] if found else [default] * rank


class Module:
  """The computations of an HLO module by name."""

  def __init__(self, text: str):
    self.computations: dict[str, dict[str, Instruction]] = {}
    self.entry = None
    self._users: dict[str, dict[str, list[tuple[Instruction, int]]]] = {}
    partitions = re.search(r"num_partitions=(\d+)", text[:200_000])
    self.num_partitions = int(partitions[1]) if partitions else 1
    current = None
    for line in text.splitlines():
      if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
        current = self.computations.setdefault(header[2], {})
        self.entry = header[2] if header[1] else self.entry
      elif current is not None and (instruction := _parse(line)):
        current[instruction.name] = instruction
    if self.entry is None:
      raise ValueError("the text is no HLO module: it has no ENTRY computation")

  def root(self, computation: str) -> Instruction:
    return next(i for i in self.computations[computation].values() if i.is_root)

  def users(self, computation: str, name: str) -> list[tuple[Instruction, int]]:
    """Instructions of the computation that read `name`, with the position of the operand."""
    if computation not in self._users:
      users = self._users[computation] = {}
      for instruction in self.computations[computation].values():
        for position, operand in enumerate(instruction.operands):
          users.setdefault(operand, []).append((instruction, position))
    return self._users[computation].get(name, [])

  @functools.cached_property
  def started_channels(self) -> set[str]:
    """Channels of collectives that TPU's compiler spreads over several fusions: a start, others, a done."""
    starts = filter(self.starts_collective, self.computations)
    return {number for name in starts for i in self.computations[name].values() if (number := channel(i))}

  def starts_collective(self, computation: str) -> bool:
    return any("AsyncCollectiveStart" in i.attributes for i in self.computations[computation].values())


def _parse(line: str) -> Instruction | None:
  head = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
  if not head:
    return None
  rest = line[head.end():]
  end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
  result, rest = rest[:end], rest[end:].lstrip()
  opcode, _, _ = rest.partition("(")
  end = _closing(rest, len(opcode))
  literal, attributes = rest[len(opcode) + 1:end], rest[end + 1:]
  operands = () if opcode in ("constant", "parameter") else tuple(re.findall(r"%([\w.\-]+)", literal))
  return Instruction(head[2], _shapes(result), opcode, operands, literal, attributes, bool(head[1]))


def _closing(text: str, start: int) -> int:
  """Position of the parenthesis that closes the one at `start`."""
  depth = 0
  for found in re.finditer(r"[()]", text[start:]):
    depth += 1 if found[0] == "(" else -1
    if depth == 0:
      return start + found.start()
  raise ValueError(f"HLO line with an open parenthesis: {text[:100]}")


def _shapes(text: str) -> tuple[Shape, ...]:
  return tuple(
    Shape(dtype, tuple(int(size) for size in re.findall(r"\d+", dimensions)),
          re.search(r"S\([1-9]", layout or "") is None)
    for dtype, dimensions, layout in re.findall(r"(\w+)\[([^\]]*)\](\{[^}]*\})?", text)
  )


def channel(instruction: Instruction) -> str | None:
  """Number that the parts of one collective share; None for any other instruction."""
  found = re.search(r"channel_id=(\d+)", instruction.attributes)
  return found and found[1]


def trip_count(module: Module, computation: str, loop: Instruction) -> int | None:
  """How often a loop's body runs: as XLA noted it, or from the counter that its condition compares with a constant."""
  if noted := re.search(r'known_trip_count\W+n\W+(\d+)', loop.attributes):
    return int(noted[1])
  condition, body = loop.computation("condition"), loop.computation("body")
  compare, operands = _comparison(module, condition)
  if compare is None:
    return None
  direction = re.search(r"direction=(\w+)", compare.attributes)[1]
  sides = [_loop_value(module, condition, name) for name in operands]
  if isinstance(sides[0], int):  # constant first: turned round
    sides, direction = sides[::-1], {"GT": "LT", "GE": "LE"}.get(direction, direction)
  counter, limit = sides
  if not isinstance(counter, tuple) or direction not in ("LT", "LE", "NE"):
    return None
  carried = _carried(module, computation, loop)
  if isinstance(limit, tuple):  # a constant that the loop carries
    limit = _constant(module, computation, carried[limit[0]]) if _keeps(module, body, limit[0]) else None
  first = _constant(module, computation, carried[counter[0]])
  step = _step(module, body, counter[0])
  if None in (limit, first, step):
    return None
  return max(0, -(-(limit + (direction == "LE") - first) // step))


def _comparison(module: Module, condition: str) -> tuple[Instruction | None, tuple[str, ...]]:
  """The compare at a condition's root, and its operands' names in the condition; it may be fused."""
  root = module.root(condition)
  if root.opcode != "fusion":
    return (root, root.operands) if root.opcode == "compare" else (None, ())
  called = root.computation("calls")
  compare = module.root(called)
  names = [module.computations[called][name] for name in compare.operands]
  if compare.opcode != "compare" or any(name.opcode != "parameter" for name in names):
    return None, ()
  return compare, tuple(root.operands[int(name.literal)] for name in names)


def _loop_value(module: Module, computation: str, name: str) -> int | tuple[int] | None:
  """A constant's value, or (index,) of an element of the loop's state, in its condition or body."""
  value = module.computations[computation][name]
  if value.opcode == "constant":
    return int(value.literal) if re.fullmatch(r"-?\d+", value.literal) else None
  if value.opcode == "get-tuple-element" and module.computations[computation][value.operands[0]].opcode == "parameter":
    return (int(re.search(r"index=(\d+)", value.attributes)[1]),)
  if value.opcode in _RENAMES:
    return _loop_value(module, computation, value.operands[0])
  return None


def _carried(module: Module, computation: str, loop: Instruction) -> tuple[str, ...]:
  """Names of the elements of the state that a loop begins with."""
  return module.computations[computation][loop.operands[0]].operands


def _constant(module: Module, computation: str, name: str) -> int | None:
  """Value of an integer that is constant where a loop begins; followed out of enclosing loops that only carry it."""
  value = _loop_value(module, computation, name)
  if not isinstance(value, tuple):
    return value
  for outer, instructions in module.computations.items():
    for loop in instructions.values():
      if loop.opcode == "while" and loop.computation("body") == computation and _keeps(module, computation, value[0]):
        return _constant(module, outer, _carried(module, outer, loop)[value[0]])
  return None


def _keeps(module: Module, body: str, index: int) -> bool:
  """Whether a loop leaves element `index` of its state as it was."""
  root = module.root(body)
  return root.opcode == "tuple" and _loop_value(module, body, root.operands[index]) == (index,)


def _step(module: Module, body: str, index: int) -> int | None:
  """What a loop adds to its counter, element `index` of its state."""
  root = module.root(body)
  if root.opcode != "tuple":
    return None
  value = module.computations[body][root.operands[index]]
  while value.opcode in ("bitcast", "copy"):
    value = module.computations[body][value.operands[0]]
  if value.opcode == "fusion":  # the addition may be fused with others
    called = value.computation("calls")
    inside = module.computations[called].values()
    steps = [int(i.literal) for i in inside if i.opcode == "constant" and i.shapes[0].dtype == "s32"]
    added = module.root(called)
  else:
    steps, added = [], value
  steps += [step for name in value.operands if isinstance(step := _loop_value(module, body, name), int)]
  return steps[0] if added.opcode == "add" and len(steps) == 1 else None
