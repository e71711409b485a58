"""What a compiled program costs one chip, counted from its optimised HLO text with every loop as often as it runs.

XLA's own `cost_analysis()` counts the body of a loop once, and a scanned transformer is nothing but loops. Here the
computations are walked from ENTRY and multiplied by trip counts. Counted are the floating-point operations of matrix
products (dots and convolutions, fused or not), the bytes that pass between HBM and the chip, and the bytes that a chip
sends in collectives. Arrays count without the padding of their tiles.
"""

import dataclasses
import functools
import math
import re

import numpy as np

COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

_BITS = {"pred": 8, "token": 0, "opaque": 0}  # all others state theirs: f32, bf16, s4, f8e4m3fn
# Instructions that move nothing by themselves: names for what is there, or control flow whose bodies are counted.
_FREE = frozenset((
  "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id", "replica-id", "while",
  "conditional", "call", "custom-call", "opt-barrier", "async-start", "async-update", "async-done", "copy-done",
  "slice-done", *(f"{kind}-done" for kind in COLLECTIVES),
))
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
  """One line of HLO: its result (several arrays of a tuple), operation, the names of its operands, and attributes."""

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


@dataclasses.dataclass
class Cost:
  """What one chip does in one execution.

  Attributes:
    flops: of matrix products, two for each multiply-add.
    hbm_bytes: read from HBM and written to it.
    collectives: kind -> (how many, bytes that the chip sends over the interconnect by a ring).
    loops_of_unknown_length: loops whose trip count the text does not tell; they are counted once.
  """

  flops: float = 0.0
  hbm_bytes: float = 0.0
  collectives: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
  loops_of_unknown_length: int = 0

  @property
  def collective_bytes(self) -> float:
    return sum(sent for _, sent in self.collectives.values())

  def add(self, other: "Cost", times: float = 1) -> None:
    self.flops += times * other.flops
    self.hbm_bytes += times * other.hbm_bytes
    for kind, (count, sent) in other.collectives.items():
      old_count, old_sent = self.collectives.get(kind, (0, 0))
      self.collectives[kind] = (old_count + times * count, old_sent + times * sent)
    self.loops_of_unknown_length += other.loops_of_unknown_length


def program_cost(hlo_text: str) -> Cost:
  """Cost of a compiled program, `compiled.as_text()`, to each chip. Raises ValueError if the text is no HLO module."""
  return _Walk(_Module(hlo_text)).computation(None)


class _Module:
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

  def parameter(self, computation: str, position: int) -> Instruction | None:
    of_position = (i for i in self.computations[computation].values() if i.opcode == "parameter"
                   and i.literal == str(position))
    return next(of_position, None)

  @functools.cached_property
  def started_channels(self) -> set[str]:
    """Channels of collectives that TPU's compiler spreads over several fusions: a start, others, a done."""
    starts = (c.values() for c in self.computations.values() if any("AsyncCollectiveStart" in i.attributes
                                                                    for i in c.values()))
    return {_channel(i) for instructions in starts for i in instructions if _channel(i)}


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


def _channel(instruction: Instruction) -> str | None:
  found = re.search(r"channel_id=(\d+)", instruction.attributes)
  return found and found[1]


class _Walk:
  """Adds up costs, each computation once."""

  def __init__(self, module: _Module):
    self.module, self.known = module, {}

  def computation(self, name: str | None, fused: bool = False) -> Cost:
    """Cost of one execution; inside a fusion (`fused`) values between instructions never reach HBM."""
    name = name or self.module.entry
    if (name, fused) not in self.known:
      total = Cost()
      for instruction in self.module.computations[name].values():
        total.add(self._instruction(name, instruction, fused))
      self.known[name, fused] = total
    return self.known[name, fused]

  def _instruction(self, computation: str, instruction: Instruction, fused: bool) -> Cost:
    opcode, cost = instruction.opcode, Cost()
    if not fused:
      cost.hbm_bytes = self._hbm_bytes(computation, instruction)
    if opcode in ("dot", "convolution"):
      shapes = [self.module.computations[computation][operand].shapes[0] for operand in instruction.operands]
      cost.flops = (_dot_flops if opcode == "dot" else _convolution_flops)(instruction, *shapes)
    elif opcode == "while":
      trips = _trip_count(self.module, computation, instruction)
      cost.loops_of_unknown_length = int(trips is None)
      for attribute in ("condition", "body"):
        cost.add(self.computation(instruction.computation(attribute)), 1 if trips is None else trips)
    elif opcode == "conditional":  # the dearest branch
      branches = re.search(r"branch_computations={([^}]*)}", instruction.attributes)
      names = re.findall(r"[\w.\-]+", branches[1]) if branches else [
        instruction.computation(f"{side}_computation") for side in ("true", "false")
      ]
      cost.add(max((self.computation(name) for name in names), key=lambda branch: (branch.flops, branch.hbm_bytes)))
    elif opcode in ("fusion", "call", "async-start"):
      called = instruction.computation("calls") or instruction.computation("to_apply")
      cost.add(self.computation(called, fused or opcode == "fusion"))
    kind = opcode.removesuffix("-start")
    if kind in COLLECTIVES and self._starts_here(computation, instruction):
      if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):  # TPU's reduce-scatter
        kind = "reduce-scatter"
      cost.collectives = {kind: (1, self._sent_bytes(computation, kind, instruction))}
    return cost

  def _starts_here(self, computation: str, instruction: Instruction) -> bool:
    if _channel(instruction) not in self.module.started_channels:
      return True
    return any("AsyncCollectiveStart" in other.attributes for other in self.module.computations[computation].values())

  def _sent_bytes(self, computation: str, kind: str, instruction: Instruction) -> float:
    """Bytes that a chip of a group of n sends around a ring: of each piece n − 1, or twice that to sum and share."""
    inside = self.module.computations[computation]
    operand = sum(shape.nbytes for name in instruction.operands for shape in inside[name].shapes)
    n = _group_size(instruction.attributes, self.module.num_partitions)
    share = {"all-gather": n - 1, "reduce-scatter": (n - 1) / n, "all-reduce": 2 * (n - 1) / n,
             "all-to-all": (n - 1) / n, "collective-permute": 1}
    return operand * share[kind]

  def _hbm_bytes(self, computation: str, instruction: Instruction) -> float:
    """Bytes that an instruction reads from HBM and writes to it."""
    opcode, inside = instruction.opcode, self.module.computations[computation]
    if opcode in _FREE:
      return 0
    if opcode == "fusion":
      called = instruction.computation("calls")
      read = sum(
        min(self._read(called, position), 1) * sum(shape.nbytes for shape in inside[name].shapes if shape.in_hbm)
        for position, name in enumerate(instruction.operands)
      )
      return read + sum(
        shape.hbm_bytes * share for shape, share in zip(instruction.shapes, self._written(called, instruction.shapes))
      )
    operands = [sum(shape.hbm_bytes for shape in inside[name].shapes) for name in instruction.operands]
    if opcode == "copy-start":  # (destination, source, context)
      return operands[0] + instruction.shapes[0].hbm_bytes
    if opcode in ("dynamic-slice", "gather", "slice", "slice-start"):  # reads what it takes; (source, taken, context)
      taken = instruction.shapes[1 if opcode == "slice-start" else 0]
      return (taken.nbytes if operands[0] else 0) + taken.hbm_bytes + sum(operands[1:])
    if opcode == "dynamic-update-slice":
      return 2 * operands[1]
    if opcode.removesuffix("-start") in COLLECTIVES:
      received = instruction.shapes[-1] if opcode == "all-gather-start" else None
      return sum(operands) + (received.hbm_bytes if received else sum(s.hbm_bytes for s in instruction.shapes[:1]))
    return sum(operands) + sum(shape.hbm_bytes for shape in instruction.shapes)

  def _read(self, computation: str, position: int) -> float:
    """Share of its operand at `position` that a fusion reads: slices of it alone, if that is all it uses."""
    parameter = self.module.parameter(computation, position)
    if parameter is None:
      return 0
    return self._read_value(computation, parameter.name, sum(shape.nbytes for shape in parameter.shapes))

  def _read_value(self, computation: str, name: str, whole: int) -> float:
    read = 0.0
    for user, position in self.module.users(computation, name):
      if user.opcode == "bitcast":
        read += self._read_value(computation, user.name, whole)
      elif user.opcode in ("dynamic-slice", "slice", "gather") and position == 0:
        read += sum(shape.nbytes for shape in user.shapes) / max(whole, 1)
      elif user.opcode == "dynamic-update-slice" and position == 0 or user.opcode in ("tuple", "custom-call"):
        continue  # what is updated in place, or handed through
      elif user.opcode.removesuffix("-start") in COLLECTIVES and not self._starts_here(computation, user):
        continue
      elif user.opcode == "fusion":
        read += self._read(user.computation("calls"), position)
      else:
        read += 1
    return read

  def _written(self, computation: str, shapes: tuple[Shape, ...]) -> list[float]:
    """Share of each of its results that a fusion writes: the update of one that is updated in place."""
    inside = self.module.computations[computation]
    root = self.module.root(computation)
    values = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
    if len(values) != len(shapes):
      return [1.0] * len(shapes)
    return [self._written_value(inside, value) for value in values]

  def _written_value(self, inside: dict[str, Instruction], value: Instruction) -> float:
    while value.opcode == "bitcast":
      value = inside[value.operands[0]]
    if value.opcode == "parameter":
      return 0.0  # handed through
    if value.opcode == "dynamic-update-slice":
      return inside[value.operands[1]].shapes[0].size / max(value.shapes[0].size, 1)
    if value.opcode in COLLECTIVES and _channel(value) in self.module.started_channels:
      return 0.0  # written where it starts
    if value.opcode == "fusion" and len(value.shapes) == 1:
      return self._written(value.computation("calls"), value.shapes)[0]
    return 1.0


def _dot_flops(dot: Instruction, lhs: Shape, rhs: Shape) -> float:
  contracted = re.search(r"lhs_contracting_dims={([\d,]*)}", dot.attributes)
  sizes = [lhs.dimensions[int(axis)] for axis in re.findall(r"\d+", contracted[1])] if contracted else []
  return 2.0 * dot.shapes[0].size * math.prod(sizes)


def _convolution_flops(convolution: Instruction, lhs: Shape, rhs: Shape) -> float:
  """As many multiply-adds as fall on the input: TPU's compiler writes batched dots as padded, dilated convolutions."""
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", convolution.attributes)
  of = lambda labelled, shape: dict(zip(labelled, shape.dimensions))
  inputs, kernel, output = of(labels[1], lhs), of(labels[2], rhs), of(labels[3], convolution.shapes[0])
  rank = sum(label.isdigit() for label in labels[1])
  group = lambda name: int((re.search(rf"{name}=(\d+)", convolution.attributes) or [0, 1])[1])
  padding = re.search(r"window={[^}]*\bpad=([\d_x\-]+)", convolution.attributes)
  low = [int(pad.split("_")[0]) for pad in padding[1].split("x")] if padding else [0] * rank
  window = zip(low, *(convolution.window(field, rank, 1) for field in ("stride", "lhs_dilate", "rhs_dilate")))
  pairs = [
    _pairs_on_input(output[axis], kernel[axis], inputs[axis], *numbers)
    for axis, numbers in zip(map(str, range(rank)), window)
  ]
  features = kernel["i"] * output["f"] * output["b"] / group("batch_group_count")
  return 2.0 * features * math.prod(pairs)


@functools.cache
def _pairs_on_input(outputs: int, kernel: int, inputs: int, low: int, stride: int, base: int, dilation: int) -> int:
  """Pairs (output, kernel position) of one spatial dimension that meet an input, not padding or dilation's zeros."""
  at = np.arange(outputs)[:, None] * stride + np.arange(kernel) * dilation - low
  return int(np.sum((at >= 0) & (at % base == 0) & (at // base < inputs)))


def _group_size(attributes: str, num_partitions: int) -> int:
  """Chips of one group of a collective, noted as {{0,1},{2,3}}, [2,2]<=[4] or mesh['a'=2,'b'=2] {'b'}."""
  groups = re.search(r"replica_groups=(\{\{.*?\}\}|\[[\d,]+\]<=|\{\}|mesh\[.*?\{.*?\})", attributes)
  text = groups[1] if groups else "{}"
  if text.startswith("{{"):
    return len(text[2:].partition("}")[0].split(","))
  if text.startswith("["):  # groups, size
    return int(text[1:text.index("]")].split(",")[-1])
  if text.startswith("mesh"):  # 'b':(1)2 would be a part of the axis, of size 2
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", text))
    parts = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", text[text.index("{"):])
    return math.prod(int(part or sizes[axis]) for axis, part in parts)
  return num_partitions


def _trip_count(module: _Module, computation: str, loop: Instruction) -> int | None:
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


def _comparison(module: _Module, condition: str) -> tuple[Instruction | None, tuple[str, ...]]:
  """The compare at a condition's root, and its operands' names in the condition; it may be fused."""
  root = module.root(condition)
  if root.opcode == "compare":
    return root, root.operands
  if root.opcode != "fusion":
    return None, ()
  called = root.computation("calls")
  compare = module.root(called)
  names = [module.computations[called][name] for name in compare.operands]
  if compare.opcode != "compare" or any(name.opcode != "parameter" for name in names):
    return None, ()
  return compare, tuple(root.operands[int(name.literal)] for name in names)


def _loop_value(module: _Module, computation: str, name: str) -> int | tuple[int] | None:
  """A constant's value, or (index,) of an element of the loop's state, in its condition or body."""
  value = module.computations[computation][name]
  if value.opcode == "constant":
    return int(value.literal) if re.fullmatch(r"-?\d+", value.literal) else None
  if value.opcode == "get-tuple-element" and module.computations[computation][value.operands[0]].opcode == "parameter":
    return (int(re.search(r"index=(\d+)", value.attributes)[1]),)
  if value.opcode in _RENAMES:
    return _loop_value(module, computation, value.operands[0])
  return None


def _carried(module: _Module, computation: str, loop: Instruction) -> tuple[str, ...]:
  """Names of the elements of the state that a loop begins with."""
  return module.computations[computation][loop.operands[0]].operands


def _constant(module: _Module, computation: str, name: str) -> int | None:
  """Value of an integer that is constant where a loop begins; followed out of enclosing loops that only carry it."""
  value = _loop_value(module, computation, name)
  if not isinstance(value, tuple):
    return value
  for outer, instructions in module.computations.items():
    for loop in instructions.values():
      if loop.opcode == "while" and loop.computation("body") == computation and _keeps(module, computation, value[0]):
        return _constant(module, outer, _carried(module, outer, loop)[value[0]])
  return None


def _keeps(module: _Module, body: str, index: int) -> bool:
  """Whether a loop leaves element `index` of its state as it was."""
  root = module.root(body)
  return root.opcode == "tuple" and _loop_value(module, body, root.operands[index]) == (index,)


def _step(module: _Module, body: str, index: int) -> int | None:
  """What a loop adds to its counter, element `index` of its state."""
  root = module.root(body)
  if root.opcode != "tuple":
    return None
  value = module.computations[body][root.operands[index]]
  while value.opcode in ("bitcast", "copy"):
    value = module.computations[body][value.operands[0]]
  if value.opcode == "fusion":  # the addition may be fused with others
    called = value.computation("calls")
    root = module.root(called)
    constants = [i for i in module.computations[called].values() if i.opcode == "constant"]
    given = [_loop_value(module, body, name) for name in value.operands]
    numbers = [int(c.literal) for c in constants if c.shapes[0].dtype == "s32"] + [g for g in given if type(g) is int]
    return numbers[0] if root.opcode == "add" and len(numbers) == 1 else None
  if value.opcode != "add":
    return None
  steps = [step for name in value.operands if isinstance(step := _loop_value(module, body, name), int)]
  return steps[0] if len(steps) == 1 else None
