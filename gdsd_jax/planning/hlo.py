"""Optimised HLO text read: computations, instructions, shapes, and how often each loop runs."""

import dataclasses
import functools
import math
import re

_BITS = {"pred": 8, "token": 0, "opaque": 0}  # all others state theirs: f32, bf16, s4, f8e4m3fn


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


@dataclasses.dataclass(eq=False)
class Instruction:
  """One line of HLO."""

  computation: str  # name of the one that it stands in
  name: str
  shapes: tuple[Shape, ...]  # several arrays where the result is a tuple
  opcode: str
  operands: tuple["Instruction", ...] = dataclasses.field(repr=False)
  literal: str  # what stands between the parentheses
  attributes: str
  is_root: bool
  # Instructions that read it, with the position of the operand.
  users: list[tuple["Instruction", int]] = dataclasses.field(default_factory=list, repr=False)

  @property
  def hbm_bytes(self) -> int:
    return sum(shape.hbm_bytes for shape in self.shapes)

  @property
  def nbytes(self) -> int:
    return sum(shape.nbytes for shape in self.shapes)

  @property
  def channel(self) -> str | None:
    """Number that the parts of one collective share; None for any other instruction."""
    return self.attribute(r"channel_id=(\d+)")

  def attribute(self, pattern: str, default: str | None = None) -> str | None:
    """What the group of a regular expression finds in the attributes."""
    found = re.search(pattern, self.attributes)
    return found[1] if found else default

  def called(self, attribute: str) -> str | None:
    """The computation that an attribute such as `calls` or `body` names."""
    return self.attribute(rf"\b{attribute}=%?([\w.\-]+)")


class Module:
  """The computations of an HLO module by name, and in each its instructions by name."""

  def __init__(self, text: str):
    self.computations: dict[str, dict[str, Instruction]] = {}
    self.entry = name = None
    partitions = re.search(r"num_partitions=(\d+)", text[:200_000])
    self.num_partitions = int(partitions[1]) if partitions else 1
    for line in text.splitlines():
      if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
        name = header[2]
        self.computations[name] = {}
        self.entry = name if header[1] else self.entry
      elif name is not None:
        _parse(line, name, self.computations[name])
    if self.entry is None:
      raise ValueError("the text is no HLO module: it has no ENTRY computation")

  def root(self, computation: str) -> Instruction:
    return next(i for i in self.computations[computation].values() if i.is_root)

  def parameters(self, computation: str) -> list[Instruction]:
    found = [i for i in self.computations[computation].values() if i.opcode == "parameter"]
    return sorted(found, key=lambda parameter: int(parameter.literal))

  @functools.cached_property
  def loops(self) -> list[Instruction]:
    return [i for inside in self.computations.values() for i in inside.values() if i.opcode == "while"]

  @functools.cached_property
  def started_channels(self) -> set[str]:
    """Channels of collectives that TPU's compiler spreads over several fusions: a start, others, a done."""
    starts = filter(self.starts_collective, self.computations)
    return {i.channel for name in starts for i in self.computations[name].values() if i.channel}

  def starts_collective(self, computation: str) -> bool:
    return any("AsyncCollectiveStart" in i.attributes for i in self.computations[computation].values())


def _parse(line: str, computation: str, known: dict[str, Instruction]) -> None:
  """Adds the line's instruction, if it has one, to the `known` ones before it."""
  head = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
  if not head:
    return
  rest = line[head.end():]
  end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
  result, rest = rest[:end], rest[end:].lstrip()
  opcode, _, _ = rest.partition("(")
  end = _closing(rest, len(opcode))
  literal, attributes = rest[len(opcode) + 1:end], rest[end + 1:]
  names = () if opcode in ("constant", "parameter") else re.findall(r"%([\w.\-]+)", literal)
  operands = tuple(known[name] for name in names)
  instruction = Instruction(computation, head[2], _shapes(result), opcode, operands, literal, attributes, bool(head[1]))
  for position, operand in enumerate(operands):
    operand.users.append((instruction, position))
  known[instruction.name] = instruction


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


def trip_count(module: Module, loop: Instruction) -> int | None:
  """How often a loop's body runs: as XLA noted it, or from the counter that its condition compares with a constant.

  A loop that may end earlier, since its condition asks for more besides, runs as often as it may.
  """
  if noted := loop.attribute(r"known_trip_count\W+n\W+(\d+)"):
    return int(noted)
  condition, fusion = _source(module, module.root(loop.called("condition")))
  asked = [(condition, fusion)]
  if condition.opcode == "and":
    asked = [_source(module, operand, fusion) for operand in condition.operands]
  return min((count for each in asked if (count := _counted(module, loop, *each)) is not None), default=None)


def _counted(module: Module, loop: Instruction, compare: Instruction, fusion: Instruction | None) -> int | None:
  """How often a loop's body runs by a comparison of its counter with a constant; None where it is none."""
  if compare.opcode != "compare":
    return None
  direction = compare.attribute(r"direction=(\w+)")
  counter, limit = (_loop_value(module, side, fusion) for side in compare.operands)
  if isinstance(counter, int):  # constant first: turned round
    counter, limit, direction = limit, counter, {"GT": "LT", "GE": "LE"}.get(direction, direction)
  if not isinstance(counter, tuple) or direction not in ("LT", "LE", "NE"):
    return None
  if isinstance(limit, tuple):  # a constant that the loop carries
    limit = _constant(module, loop, *limit) if _keeps(module, loop, *limit) else None
  first, step = _constant(module, loop, *counter), _step(module, loop, *counter)
  if None in (limit, first, step):
    return None
  return max(0, -(-(limit + (direction == "LE") - first) // step))


def _source(module: Module, value: Instruction, fusion: Instruction | None = None):
  """(where a value is computed, the fusion that this is inside of or None), through copies, into fusions and out."""
  while True:
    if value.opcode in ("bitcast", "copy", "convert"):
      value = value.operands[0]
    elif value.opcode == "fusion" and fusion is None:
      value, fusion = module.root(value.called("calls")), value
    elif value.opcode == "parameter" and fusion is not None:
      value, fusion = fusion.operands[int(value.literal)], None
    else:
      return value, fusion


def _loop_value(module: Module, value: Instruction, fusion: Instruction | None = None) -> int | tuple[int] | None:
  """A constant's value, or (index,) of an element of the loop's state, in its condition or body."""
  value, fusion = _source(module, value, fusion)
  if value.opcode == "constant" and re.fullmatch(r"-?\d+", value.literal):
    return int(value.literal)
  if value.opcode == "get-tuple-element" and value.operands[0].opcode == "parameter" and fusion is None:
    return (int(value.attribute(r"index=(\d+)")),)
  return None


def _constant(module: Module, loop: Instruction, index: int) -> int | None:
  """The integer that element `index` of a loop's state begins with; followed out of loops that only carry it."""
  value = _loop_value(module, loop.operands[0].operands[index])
  if not isinstance(value, tuple):
    return value
  for outer in module.loops:
    if outer.called("body") == loop.computation and _keeps(module, outer, *value):
      return _constant(module, outer, *value)
  return None


def _after(module: Module, loop: Instruction, index: int) -> Instruction:
  """What a loop's body makes of element `index` of its state."""
  root = module.root(loop.called("body"))
  return root.operands[index] if root.opcode == "tuple" else root


def _keeps(module: Module, loop: Instruction, index: int) -> bool:
  return _loop_value(module, _after(module, loop, index)) == (index,)


def _step(module: Module, loop: Instruction, index: int) -> int | None:
  """What a loop adds to its counter, element `index` of its state."""
  added, fusion = _source(module, _after(module, loop, index))
  terms = [_loop_value(module, term, fusion) for term in added.operands] if added.opcode == "add" else []
  steps = [term for term in terms if isinstance(term, int)]
  return steps[0] if len(steps) == 1 and (index,) in terms else None
