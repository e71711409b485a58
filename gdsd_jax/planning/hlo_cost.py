"""What a compiled program costs one chip, counted from its optimised HLO text with every loop as often as it runs.

XLA's own `cost_analysis()` counts the body of a loop once, and a scanned transformer is nothing but loops. Here the
computations are walked from ENTRY and multiplied by trip counts. Counted are the bytes that pass between HBM and the
chip, those that a chip sends in collectives, and the floating-point operations of matrix products: dots and
convolutions, fused or not, and those of attention kernels. Arrays count without the padding of their tiles.

A program for several TPU slices is written as that of one. Its collectives are among the chips of a slice, and what
goes to other slices is handed to Megascale, the runtime that joins them over the data center's network.
"""

import dataclasses
import functools
import math
import re

import numpy as np

from gdsd_jax.planning.hlo import Instruction, Module, trip_count

COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

# Instructions that move nothing by themselves: names for what is there, or control flow whose bodies are counted.
_FREE = frozenset((
  "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id", "replica-id", "while",
  "conditional", "call", "custom-call", "opt-barrier", "async-start", "async-update", "async-done", "copy-done",
  "slice-done", "send-done", "recv-done", *(f"{kind}-done" for kind in COLLECTIVES),
))
# JAX's TPU kernels (models/attention_kernels.py) -> their products of queries with keys, or of as many multiply-adds.
_KERNEL_PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}


@dataclasses.dataclass
class Cost:
  """What one chip does in one execution."""

  flops: float = 0.0  # two for each multiply-add in a matrix product
  hbm_bytes: float = 0.0
  # Kind -> (how many, bytes that the chip sends over the interconnect by a ring).
  collectives: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
  between_slices: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)  # the same to other slices
  loops_of_unknown_length: int = 0  # whose trip count the text does not tell; they are counted once

  @property
  def collective_bytes(self) -> float:
    return sum(sent for _, sent in self.collectives.values())

  @property
  def bytes_between_slices(self) -> float:
    return sum(sent for _, sent in self.between_slices.values())

  def add(self, other: "Cost", times: float = 1) -> None:
    self.flops += times * other.flops
    self.hbm_bytes += times * other.hbm_bytes
    for own, added in ((self.collectives, other.collectives), (self.between_slices, other.between_slices)):
      for kind, (count, sent) in added.items():
        old_count, old_sent = own.get(kind, (0, 0))
        own[kind] = (old_count + times * count, old_sent + times * sent)
    self.loops_of_unknown_length += other.loops_of_unknown_length


def program_cost(hlo_text: str, expert_shards: int = 1) -> Cost:
  """Cost of a compiled program, `compiled.as_text()`, to each chip. Raises ValueError if the text is no HLO module.

  Grouped products of experts, split over so many shards, count by an even load: each row once, on one of the shards.
  """
  module = Module(hlo_text)
  return _Walk(module, expert_shards).computation(module.entry)


class _Walk:
  """Adds up costs, each computation once."""

  def __init__(self, module: Module, expert_shards: int):
    self.module, self.expert_shards, self.known = module, expert_shards, {}

  def computation(self, name: str, fused: bool = False) -> Cost:
    """Cost of one execution; inside a fusion (`fused`) values between instructions never reach HBM."""
    if (name, fused) not in self.known:
      total = self.known[name, fused] = Cost()
      for instruction in self.module.computations[name].values():
        total.add(self._instruction(instruction, fused))
    return self.known[name, fused]

  def _instruction(self, instruction: Instruction, fused: bool) -> Cost:
    opcode, kind = instruction.opcode, instruction.opcode.removesuffix("-start")
    cost = Cost(_flops(instruction), 0 if fused else self._hbm_bytes(instruction))
    if opcode == "while":
      trips = trip_count(self.module, instruction)
      cost.loops_of_unknown_length = int(trips is None)
      for attribute in ("condition", "body"):
        cost.add(self.computation(instruction.called(attribute)), 1 if trips is None else trips)
    elif opcode == "conditional":  # the dearest branch
      branches = instruction.attribute(r"branch_computations={([^}]*)}")
      names = (re.findall(r"[\w.\-]+", branches) if branches else
               [instruction.called(f"{side}_computation") for side in ("true", "false")])
      cost.add(max((self.computation(name) for name in names), key=lambda branch: (branch.flops, branch.hbm_bytes)))
    elif opcode in ("fusion", "call", "async-start"):
      called = instruction.called("calls") or instruction.called("to_apply")
      inside = dataclasses.replace(self.computation(called, fused or opcode == "fusion"))
      if groups := instruction.attribute(r'"num_groups_in_ragged_dot":"(\d+)"'):  # as a product of each with all rows
        inside.flops /= int(groups) * self.expert_shards
      cost.add(inside)
    elif opcode == "custom-call" and (called := instruction.attribute(r"called_computations={%?([\w.\-]+)}")):
      cost.add(self.computation(called, fused))  # a collective that a SparseCore carries out
    elif kind in COLLECTIVES and self._starts_here(instruction):
      if kind == "all-reduce" and instruction.computation.startswith("all-reduce-scatter"):  # TPU's reduce-scatter
        kind = "reduce-scatter"
      cost.collectives = {kind: (1, self._sent_bytes(kind, instruction))}
    elif opcode == "send" and (between := instruction.attribute(r'_xla_megascale_transfer_type="(\w+)"')):
      kind = between.lower().replace("_", "-")
      cost.between_slices = {kind: (1, instruction.operands[0].nbytes * _share_sent(kind, _slices(instruction)))}
    return cost

  def _starts_here(self, collective: Instruction) -> bool:
    spread = collective.channel in self.module.started_channels
    return not spread or self.module.starts_collective(collective.computation)

  def _sent_bytes(self, kind: str, collective: Instruction) -> float:
    """Bytes that a chip sends around a ring."""
    share = _share_sent(kind, _group_size(collective, self.module.num_partitions))
    return sum(operand.nbytes for operand in collective.operands) * share

  def _hbm_bytes(self, instruction: Instruction) -> float:
    """Bytes that an instruction reads from HBM and writes to it."""
    opcode, shapes = instruction.opcode, instruction.shapes
    if opcode in _FREE and not _is_kernel(instruction):
      return 0
    operands = [operand.hbm_bytes for operand in instruction.operands]
    if opcode == "fusion":
      called = instruction.called("calls")
      parameters = self.module.parameters(called)
      read = sum(min(self._read(parameter), 1) * held for parameter, held in zip(parameters, operands))
      return read + sum(shape.hbm_bytes * share for shape, share in zip(shapes, self._written(called, len(shapes))))
    if opcode == "copy-start":  # (destination, source, context)
      return operands[0] + shapes[0].hbm_bytes
    if opcode in ("dynamic-slice", "gather", "slice", "slice-start"):  # reads what it takes; (source, taken, context)
      taken = shapes[1 if opcode == "slice-start" else 0]
      return (taken.nbytes if operands[0] else 0) + taken.hbm_bytes + sum(operands[1:])
    if opcode == "dynamic-update-slice":
      return 2 * operands[1]
    if opcode in ("send", "recv"):  # (the array, context, token)
      return operands[0] if opcode == "send" else shapes[0].hbm_bytes
    if opcode.removesuffix("-start") in COLLECTIVES:
      return sum(operands) + shapes[-1 if opcode == "all-gather-start" else 0].hbm_bytes
    return sum(operands) + instruction.hbm_bytes

  def _read(self, value: Instruction) -> float:
    """Share of its operand, the parameter `value`, that a fusion reads: slices of it alone, if that is all it uses."""
    read = 0.0
    for user, position in value.users:
      if user.opcode == "bitcast":
        read += self._read(user)
      elif user.opcode in ("dynamic-slice", "slice", "gather") and position == 0:
        read += user.nbytes / max(value.nbytes, 1)
      elif user.opcode == "dynamic-update-slice" and position == 0 or user.opcode in ("tuple", "custom-call"):
        continue  # what is updated in place, or handed through
      elif user.opcode.removesuffix("-start") in COLLECTIVES and not self._starts_here(user):
        continue
      elif user.opcode == "fusion":
        read += self._read(self.module.parameters(user.called("calls"))[position])
      else:
        read += 1
    return read

  def _written(self, computation: str, results: int) -> list[float]:
    """Share of each of its results that a fusion writes: the update of one that is updated in place."""
    root = self.module.root(computation)
    values = root.operands if root.opcode == "tuple" else (root,)
    return [self._written_value(value) for value in values] if len(values) == results else [1.0] * results

  def _written_value(self, value: Instruction) -> float:
    while value.opcode == "bitcast":
      value = value.operands[0]
    if value.opcode == "parameter":
      return 0.0  # handed through
    if value.opcode == "dynamic-update-slice":
      return value.operands[1].shapes[0].size / max(value.shapes[0].size, 1)
    if value.opcode in COLLECTIVES and value.channel in self.module.started_channels:
      return 0.0  # written where it starts
    if value.opcode == "fusion" and len(value.shapes) == 1:
      return self._written(value.called("calls"), 1)[0]
    return 1.0


def _is_kernel(instruction: Instruction) -> bool:
  """Whether it is a TPU kernel, whose inside the text does not tell; it reads its operands once at least."""
  return instruction.opcode == "custom-call" and 'custom_call_target="tpu_custom_call"' in instruction.attributes


def _flops(instruction: Instruction) -> float:
  """FLOPs of a matrix product or an attention kernel; 0 of all else."""
  if instruction.opcode == "dot":
    contracted = re.findall(r"\d+", instruction.attribute(r"lhs_contracting_dims={([\d,]*)}", ""))
    left = instruction.operands[0].shapes[0].dimensions
    return 2.0 * instruction.shapes[0].size * math.prod(left[int(axis)] for axis in contracted)
  if instruction.opcode == "convolution":
    return _convolution_flops(instruction)
  products = next((n for name, n in _KERNEL_PRODUCTS.items() if instruction.name.startswith(name)), 0)
  if not products or not _is_kernel(instruction):
    return 0.0
  query, key = (operand.shapes[0].dimensions for operand in instruction.operands[2:4])  # [B, heads, tokens, width]
  return 2.0 * products * math.prod(query) * key[2]


def _convolution_flops(convolution: Instruction) -> float:
  """As many multiply-adds as fall on the input: TPU's compiler writes batched dots as padded, dilated convolutions."""
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", convolution.attributes).groups()
  arrays = [value.shapes[0].dimensions for value in (*convolution.operands, convolution)]
  inputs, kernel, output = (dict(zip(label, array)) for label, array in zip(labels, arrays))
  axes = sorted(filter(str.isdigit, inputs))

  def window(field: str, default: int) -> list[int]:
    """A number for each spatial axis; of a padding `low_high` the low one."""
    text = convolution.attribute(rf"window={{[^}}]*\b{field}=([\d_x\-]+)")
    return [int(size.partition("_")[0]) for size in text.split("x")] if text else [default] * len(axes)

  numbers = zip(window("pad", 0), window("stride", 1), window("lhs_dilate", 1), window("rhs_dilate", 1))
  pairs = [_pairs_on_input(output[axis], kernel[axis], inputs[axis], *of_axis) for axis, of_axis in zip(axes, numbers)]
  groups = int(convolution.attribute(r"batch_group_count=(\d+)", "1"))
  return 2.0 * kernel["i"] * output["f"] * output["b"] / groups * math.prod(pairs)


@functools.cache
def _pairs_on_input(outputs: int, kernel: int, inputs: int, low: int, stride: int, base: int, dilation: int) -> int:
  """Pairs (output, kernel position) of one spatial dimension that meet an input, not padding or dilation's zeros."""
  at = np.arange(outputs)[:, None] * stride + np.arange(kernel) * dilation - low
  return int(np.sum((at >= 0) & (at % base == 0) & (at // base < inputs)))


def _share_sent(kind: str, n: int) -> float:
  """Of its operand, what each of n sends around a ring: each piece n − 1 times, or twice that to sum and share."""
  share = {"all-gather": n - 1, "all-reduce": 2 * (n - 1) / n, "collective-permute": 1, "one-to-one": 1}
  return share.get(kind, (n - 1) / n)


def _slices(send: Instruction) -> int:
  """Slices of a group of a transfer between slices.

  They are noted as {1,2}x{0:3}, slices 1 and 2 and in each chips 0 to 3; as {{100000,200000},{100001,200001}}, a chip
  of each; or as pairs, {{100000->200001},{200001->100000}}.
  """
  if target := send.attribute(r'_xla_megascale_target="{([\d:,]*)}x'):
    ranges = [part.split(":") for part in target.split(",")]
    return sum(int(part[-1]) - int(part[0]) + 1 for part in ranges)
  return len(re.split(",|->", send.attribute(r"_xla_megascale_target={{([\d,>\-]*)}")))


def _group_size(collective: Instruction, num_partitions: int) -> int:
  """Chips of one group of a collective, noted as {{0,1},{2,3}}, [2,2]<=[4] or mesh['a'=2,'b'=2] {'b'}."""
  text = collective.attribute(r"replica_groups=(\{\{.*?\}\}|\[[\d,]+\]<=|\{\}|mesh\[.*?\{.*?\})", "{}")
  if text.startswith("{{"):
    return len(text[2:].partition("}")[0].split(","))
  if text.startswith("["):  # groups, size
    return int(text[1:text.index("]")].split(",")[-1])
  if text.startswith("mesh"):  # 'b':(1)2 would be a part of the axis, of size 2
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", text))
    parts = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", text[text.index("{"):])
    return math.prod(int(part or sizes[axis]) for axis, part in parts)
  return num_partitions
