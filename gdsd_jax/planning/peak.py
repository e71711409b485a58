"""What lies in a chip's memory when a program needs the most of it, read from what XLA dumps of its assignment.

The assignment names each value's place, and the live ranges when it is there: an index into one sequence of all
instructions, those of loops' bodies within it.
"""

from collections.abc import Iterator
import dataclasses
import itertools
from pathlib import Path
import re
from typing import NamedTuple

from gdsd_jax.planning.code_lines import CodeLines
from gdsd_jax.planning.hlo import Instruction, Module


@dataclasses.dataclass(frozen=True)
class Buffer:
  """Memory that is taken at the peak."""

  nbytes: int
  kind: str  # argument, output (that lies in no argument), temporary or constant
  shape: str  # as bf16[32,2,656,4096]; the largest one's
  made_by: str  # the operation, by JAX's name for it; of an argument, its own
  lines: tuple[str, ...]  # of the code that asked for it, innermost first
  count: int = 1  # how many arrays of this source there are; nbytes is of all of them


@dataclasses.dataclass(frozen=True)
class Peak:
  """A program's memory at the moment when most of the temporary part is in use."""

  temporary_bytes: int  # of the block that temporaries lie in
  live_bytes: int  # of it, what is in use at the peak; the rest are gaps
  buffers: tuple[Buffer, ...]  # in use, the largest first


class _Value(NamedTuple):
  """One that lies in memory."""

  name: str  # of its instruction
  index: str  # in the instruction's tuple, or nothing
  nbytes: int
  offset: int  # in its allocation
  shape: str


@dataclasses.dataclass(frozen=True)
class _Allocation:
  nbytes: int
  kind: str
  values: list[_Value]


def peak_of(folder: Path) -> Peak | None:
  """The peak of the program that XLA dumped into a folder as text; None where it got to no assignment."""
  read = lambda suffix: max((file.read_text() for file in folder.glob(f"*after_optimizations{suffix}.txt")), key=len,
                            default=None)
  text, assignment, ranges = map(read, ("", "-buffer-assignment", "-live-range"))
  if None in (text, assignment, ranges):
    return None
  describe, ranges = _Describer(text), _live_ranges(ranges)
  allocations = list(_allocations(assignment))
  temporary = [allocation for allocation in allocations if allocation.kind == "temporary"]
  slots = _live_slots([value for allocation in temporary for value in allocation.values], ranges)
  # What is written last, where temporaries had the place of an output before.
  last = lambda value: ranges.get((value.name, value.index), (0, 0))[1]
  found = [describe(allocation.kind, allocation.nbytes, sorted(allocation.values, key=last, reverse=True))
           for allocation in allocations if allocation.kind != "temporary"]
  found += [describe("temporary", values[0].nbytes, values) for values in slots]
  return Peak(sum(allocation.nbytes for allocation in temporary), sum(values[0].nbytes for values in slots),
              tuple(sorted(_together(found), key=lambda buffer: -buffer.nbytes)))


def host_bytes(folder: Path) -> int:
  """What a program that XLA dumped into a folder keeps in the memory of the chip's host, the one of colour 5."""
  texts = [file.read_text() for file in folder.glob("*after_optimizations-buffer-assignment.txt")]
  sizes = re.findall(r"^allocation \d+: size (\d+), color 5,", max(texts, key=len, default=""), re.M)
  return sum(map(int, sizes))


def _allocations(text: str) -> Iterator[_Allocation]:
  """Those in a chip's main memory, which is the one without a colour."""
  for part in re.split(r"^allocation \d+: ", text, flags=re.M)[1:]:
    head, _, rest = part.partition("\n")
    if re.search(r", color [1-9]|thread-local", head):
      continue
    kind = ("argument" if re.search(r", parameter \d", head) else
            "temporary" if "preallocated-temp" in head else "output" if "maybe-live-out" in head else "constant")
    values = [
      _Value(name, index or "", int(nbytes), int(offset), re.sub(r"\{[^}]*\}", "", shape))
      for name, index, nbytes, offset, shape in re.findall(
        r"^ value: <\d+ ([\w.\-]+)(?:\{([\d,]*)\})?(?: \(phi\))? @\d+> \(size=(\d+),offset=(\d+)\): (.+)$", rest, re.M)]
    yield _Allocation(int(re.search(r"size (\d+)", head)[1]), kind, values)


def _live_ranges(text: str) -> dict[tuple[str, str], tuple[int, int]]:
  """(instruction, index) -> first and last place in the sequence at which the value is needed."""
  found = re.findall(r"^    ([\w.\-]+)\{([\d,]*)\}:(\d+)-(\d+)$", text, re.M)
  return {(name, index): (int(first), int(last)) for name, index, first, last in found}


def _live_slots(values: list[_Value], ranges) -> list[list[_Value]]:
  """Values by the place that they share, where the most bytes are in use at a time."""
  values = [value for value in values if (value.name, value.index) in ranges]
  when = {value: ranges[value.name, value.index] for value in values}
  place = lambda value: (value.offset, value.nbytes)
  spans, changes = [], {}
  for _, sharing in itertools.groupby(sorted(values, key=lambda value: (*place(value), when[value])), key=place):
    span, last = [], -1
    for value in sharing:
      if span and when[value][0] > last:
        spans.append(span)
        span = []
      span.append(value)
      last = when[value][1] if len(span) == 1 else max(last, when[value][1])
    spans.append(span)
  bounds = [(when[span[0]][0], max(when[value][1] for value in span)) for span in spans]
  for span, (first, last) in zip(spans, bounds):
    changes[first] = changes.get(first, 0) + span[0].nbytes
    changes[last + 1] = changes.get(last + 1, 0) - span[0].nbytes
  moments = sorted(changes)
  in_use = list(itertools.accumulate(changes[moment] for moment in moments))
  peak = moments[max(range(len(moments)), key=in_use.__getitem__)] if moments else 0
  live = []
  for span, (first, last) in zip(spans, bounds):
    if first <= peak <= last:  # those before and after the moment itself tell less of what lies there
      live.append(sorted(span, key=lambda value: not when[value][0] <= peak <= when[value][1]))
  return live


class _Describer:
  """Describes memory by the instruction of a program's text that tells most of it."""

  def __init__(self, text: str):
    self._module, self._code = Module(text), CodeLines(text)
    self._instructions = {name: i for inside in self._module.computations.values() for name, i in inside.items()}
    self._loop_of = {loop.called("body"): loop for loop in self._module.loops}

  def __call__(self, kind: str, nbytes: int, values: list[_Value]) -> Buffer:
    made = [self._made(value) for value in values if value.name in self._instructions]
    shape = next((value.shape for value in values if not value.shape.startswith("(")), "tuple")
    if kind == "argument":
      best = next((each for each in made if each.opcode == "parameter"), None)
    elif kind == "output":
      best = next(iter(made), None)
    else:
      best = min(made, key=self._tells_little, default=None)
    if best is None:
      return Buffer(nbytes, kind, shape, kind, ())
    told = self._origin(best)
    name = _short(told.attribute(r'\bop_name="([^"]*)"', "")) or best.name
    name = name if told is best else f"{best.opcode.removesuffix('-start')} of {name}"
    return Buffer(nbytes, kind, shape, name, () if kind == "argument" else self._code.of(told))

  def _made(self, value: _Value) -> Instruction:
    """The instruction that made a value: of a fusion with several results, the one inside of it."""
    found = self._instructions[value.name]
    if found.opcode == "fusion" and not self._code.of(found):
      root = self._module.root(found.called("calls"))
      inside = root.operands[int(value.index)] if root.opcode == "tuple" and value.index.isdigit() else root
      return inside if self._code.of(inside) else found
    return found

  def _tells_little(self, made: Instruction):
    passes_on = made.opcode in ("parameter", "while", "tuple", "get-tuple-element", "conditional", "call")
    return not self._code.of(made), passes_on, made.opcode in ("copy", "broadcast", "bitcast", "copy-start", "constant")

  def _origin(self, made: Instruction) -> Instruction:
    """Where an instruction without a name has what it copies from, through loops; itself where nothing tells."""
    found = made
    while "op_name=" not in found.attributes or found.opcode == "get-tuple-element":
      if found.opcode == "get-tuple-element":
        found = self._element(found)
      elif found.opcode in ("copy", "copy-start", "copy-done", "convert", "bitcast") or (
          found.opcode == "fusion" and len(found.operands) == 1):
        found = found.operands[0]
      else:
        return made
      if found is None:
        return made
    return found

  def _element(self, taken: Instruction) -> Instruction | None:
    whole, index = taken.operands[0], int(taken.attribute(r"index=(\d+)"))
    if whole.opcode == "parameter" and whole.computation in self._loop_of:
      whole = self._loop_of[whole.computation].operands[0]
    return whole.operands[index] if whole.opcode == "tuple" else None


def _short(name: str) -> str:
  """JAX's name of an operation, without what stands for all of them."""
  name = name.replace("\\'", "'")
  parts = re.split(r"/(?![^()]*\))", name)
  kept = [part for part in parts[1:] if part not in ("while", "body", "closed_call", "checkpoint", "cond", "shard_map")]
  return "/".join(kept) if len(parts) > 1 and kept else name


def _together(buffers: list[Buffer]) -> Iterator[Buffer]:
  """One for all that the same operation of the same lines made, as the gradients of many weights."""
  sources = lambda buffer: (buffer.kind, buffer.made_by, buffer.lines)
  by_source = {}
  for buffer in sorted(buffers, key=lambda buffer: -buffer.nbytes):
    by_source.setdefault(sources(buffer), []).append(buffer)
  for largest, *others in by_source.values():
    nbytes = largest.nbytes + sum(buffer.nbytes for buffer in others)
    yield dataclasses.replace(largest, nbytes=nbytes, count=1 + len(others))
