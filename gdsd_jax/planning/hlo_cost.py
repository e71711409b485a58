"""What a compiled program costs one chip, counted from its optimised HLO text with every loop as often as it runs.

XLA's own `cost_analysis()` counts the body of a loop once, and a scanned transformer is nothing but loops. Here the
computations are walked from ENTRY and multiplied by trip counts. Counted are the bytes that pass between HBM and the
chip, those that a chip sends in collectives, and the floating-point operations of matrix products: dots and
convolutions, fused or not, and those of attention kernels. Arrays count without the padding of their tiles.
"""

import dataclasses
import functools
import math
import re

import numpy as np

from gdsd_jax.planning.hlo import channel, Instruction, Module, Shape, trip_count

COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

# Instructions that move nothing by themselves: names for what is there, or control flow whose bodies are counted.
_FREE = frozenset((
  "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id", "replica-id", "while",
  "conditional", "call", "custom-call", "opt-barrier", "async-start", "async-update", "async-done", "copy-done",
  "slice-done", *(f"{kind}-done" for kind in COLLECTIVES),
))
# JAX's TPU kernels (models/attention_kernels.py) -> their products of queries with keys, or of as many multiply-adds.
_KERNEL_PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}


@dataclasses.dataclass
class Cost:
  """What one chip does in one execution.

  Attributes:
    flops: two for each multiply-add in a matrix product.
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
  return _Walk(Module(hlo_text)).computation(None)


class _Walk:
  """Adds up costs, each computation once."""

  def __init__(self, module: Module):
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
    elif _is_kernel(instruction):
      cost.flops = _kernel_flops(instruction, [self.module.computations[computation][o] for o in instruction.operands])
    elif opcode == "while":
      trips = trip_count(self.module, computation, instruction)
      cost.loops_of_unknown_length = int(trips is None)
      for attribute in ("condition", "body"):
        cost.add(self.computation(instruction.computation(attribute)), 1 if trips is None else trips)
    elif opcode == "conditional":  # the dearest branch
      branches = re.search(r"branch_computations={([^}]*)}", instruction.attributes)
      names = (re.findall(r"[\w.\-]+", branches[1]) if branches else
               [instruction.computation(f"{side}_computation") for side in ("true", "false")])
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
    return channel(instruction) not in self.module.started_channels or self.module.starts_collective(computation)

  def _sent_bytes(self, computation: str, kind: str, instruction: Instruction) -> float:
    """Bytes that a chip in a group of n sends around a ring: each piece n − 1 times, or twice that to sum and share."""
    inside = self.module.computations[computation]
    operand = sum(shape.nbytes for name in instruction.operands for shape in inside[name].shapes)
    n = _group_size(instruction.attributes, self.module.num_partitions)
    share = {"all-gather": n - 1, "all-reduce": 2 * (n - 1) / n, "collective-permute": 1}
    return operand * share.get(kind, (n - 1) / n)

  def _hbm_bytes(self, computation: str, instruction: Instruction) -> float:
    """Bytes that an instruction reads from HBM and writes to it."""
    opcode, inside = instruction.opcode, self.module.computations[computation]
    if opcode in _FREE and not _is_kernel(instruction):
      return 0
    operands = [sum(shape.hbm_bytes for shape in inside[name].shapes) for name in instruction.operands]
    if opcode == "fusion":
      called = instruction.computation("calls")
      read = sum(min(self._read(called, i), 1) * held for i, held in enumerate(operands))
      written = zip(instruction.shapes, self._written(called, instruction.shapes))
      return read + sum(shape.hbm_bytes * share for shape, share in written)
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
    for name, value in self.module.computations[computation].items():
      if value.opcode == "parameter" and value.literal == str(position):
        return self._read_value(computation, name, sum(shape.nbytes for shape in value.shapes))
    return 0

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
    inside, root = self.module.computations[computation], self.module.root(computation)
    values = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
    known = len(values) == len(shapes)
    return [self._written_value(inside, value) for value in values] if known else [1.0] * len(shapes)

  def _written_value(self, inside: dict[str, Instruction], value: Instruction) -> float:
    while value.opcode == "bitcast":
      value = inside[value.operands[0]]
    if value.opcode == "parameter":
      return 0.0  # handed through
    if value.opcode == "dynamic-update-slice":
      return inside[value.operands[1]].shapes[0].size / max(value.shapes[0].size, 1)
    if value.opcode in COLLECTIVES and channel(value) in self.module.started_channels:
      return 0.0  # written where it starts
    if value.opcode == "fusion" and len(value.shapes) == 1:
      return self._written(value.computation("calls"), value.shapes)[0]
    return 1.0


def _is_kernel(instruction: Instruction) -> bool:
  """Whether it is a TPU kernel, whose inside the text does not tell; it reads its operands once at least."""
  return instruction.opcode == "custom-call" and 'custom_call_target="tpu_custom_call"' in instruction.attributes


def _kernel_flops(kernel: Instruction, operands: list[Instruction]) -> float:
  products = next((n for name, n in _KERNEL_PRODUCTS.items() if kernel.name.startswith(name)), 0)
  if not products:
    return 0.0
  query, key = (operand.shapes[0].dimensions for operand in operands[2:4])  # [B, heads, tokens, width] each
  return 2.0 * products * math.prod(query) * key[2]


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
  sizes = ((output[str(axis)], kernel[str(axis)], inputs[str(axis)]) for axis in range(rank))
  pairs = [_pairs_on_input(*of_axis, *numbers) for of_axis, numbers in zip(sizes, window)]
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
