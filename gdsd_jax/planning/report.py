"""What a pod plan says, as JSON values and as a table."""

import dataclasses
import math
from typing import Any

from gdsd_jax.planning.plan import PodPlan, Program
from gdsd_jax.planning.slices import in_words

_GB = 1e9


def report(plan: PodPlan) -> dict[str, Any]:
  """A plan as JSON values, with a roofline of each program and of an iteration. Bytes, FLOPs, seconds are one device's.

  A device is a chip, or what JAX takes as one device of a chip that is several. A program's time is that of the
  slowest of its FLOPs, its memory traffic, its collectives and what it sends to other slices, each at the chip's
  published peak and the others hidden behind it: no program is faster. Utilisation is the share of it that FLOPs take,
  recomputed ones among them.
  """
  programs = {program.name: _program(plan, program) for program in plan.programs}
  fields = vars(plan) | {
    "chip": dataclasses.asdict(plan.chip),
    "programs": programs,
    "chips": math.prod(plan.mesh.values()) // plan.chip.devices_per_chip,
    "code_bytes": plan.code_bytes,
    "peak_bytes": plan.peak_bytes,
    "fits": plan.fits,
    "iteration": None if plan.peak_bytes is None else _iteration(plan, programs),
  }
  del fields["prompt_buckets"]
  return fields


def _program(plan: PodPlan, program: Program) -> dict[str, Any]:
  cost, chip = program.cost, plan.chip
  seconds = {
    "compute": cost.flops / chip.flops_per_second,
    "memory": cost.hbm_bytes / chip.hbm_bytes_per_second,
    "interconnect": cost.collective_bytes / chip.ici_bytes_per_second,
  }
  if plan.slices > 1:
    seconds["between slices"] = cost.bytes_between_slices / chip.dcn_bytes_per_second
  by_kind = lambda sent: {kind: {"count": count, "bytes": nbytes} for kind, (count, nbytes) in sorted(sent.items())}
  bound = max(seconds.values())
  fields = vars(program) | vars(cost) | {
    "peak_bytes": None if program.error else program.peak_bytes + plan.code_bytes,
    "collective_bytes": cost.collective_bytes,
    "collectives": by_kind(cost.collectives),
    "bytes_between_slices": cost.bytes_between_slices,
    "between_slices": by_kind(cost.between_slices),
    "seconds": seconds,
    "roofline_seconds": bound,
    "utilisation": seconds["compute"] / bound if bound else None,
    "compile_seconds": round(program.compile_seconds, 1),
  }
  left_out = {"name", "cost", "hlo", "peak"}
  if program.peak is not None:
    left_out.remove("peak")
    fields["peak"] = dataclasses.asdict(program.peak)
  return {name: value for name, value in fields.items() if name not in left_out}


def _iteration(plan: PodPlan, programs: dict[str, Any]) -> dict[str, float]:
  names = ("flops", "hbm_bytes", "collective_bytes", "bytes_between_slices", "roofline_seconds")
  total = {name: sum(program["calls"] * program[name] for program in programs.values()) for name in names}
  return {**total, "utilisation": total["flops"] / plan.chip.flops_per_second / total["roofline_seconds"]}


def table(fields: dict[str, Any]) -> str:
  """A report for a reader."""
  programs, hbm = fields["programs"], fields["chip"]["hbm_bytes"] / _GB
  mesh = ", ".join(f"{axis} {size}" for axis, size in fields["mesh"].items())
  parts = fields["chip"]["devices_per_chip"]
  chips = f"{fields['chips']} chips of {f'{parts} devices of ' * (parts > 1)}{hbm:.0f} GB"
  lines = [
    f"{in_words(fields['topology'], fields['slices'])}: {chips}, mesh {mesh}",
    f"{fields['parameters'] / 1e9:.3g} G parameters, {fields['trained_parameters'] / 1e9:.3g} G of them trained;"
    f" {fields['rollouts']} rollouts of {fields['prompt_length']} + {fields['completion_length']} tokens, in"
    f" microbatches of {fields['microbatch']}",
    "",
  ]
  columns = [_column(name, program, fields) for name, program in programs.items()]
  rows = [(label, *(column[label] for column in columns)) for label in columns[0]]
  widths = [max(map(len, column)) for column in zip(*rows)]
  for label, *cells in rows:
    lines.append("  ".join([label.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]).rstrip())
  lines.append("")
  lines += [f"{name} {program['error']}" for name, program in programs.items() if program["error"]]
  if iteration := fields["iteration"]:
    least, share = iteration["roofline_seconds"], iteration["utilisation"]
    lines.append(f"by the roofline an iteration takes {least:.3g} s or more, at {share:.0%} utilisation or less")
  peak = "" if fields["peak_bytes"] is None else f": {fields['peak_bytes'] / _GB:.2f} of {hbm:.0f} GB"
  lines.append(("fits" if fields["fits"] else "DOES NOT FIT") + peak)
  return "\n".join(lines)


def _column(name: str, program: dict[str, Any], fields: dict[str, Any]) -> dict[str, str]:
  """Label -> cell of one of the report's programs; all empty where it did not compile."""
  gigabytes = lambda nbytes: f"{(nbytes or 0) / _GB:.3f}"

  def by_kind(sent: str) -> dict[str, str]:
    """A row for each kind that any of the programs sends."""
    found = {kind: f"{_figure(of['bytes'] / _GB)} in {of['count']:,.0f}" for kind, of in program[sent].items()}
    kinds = {kind for other in fields["programs"].values() for kind in other[sent]}
    return {kind: found.get(kind, "") for kind in sorted(kinds)}

  across = {}
  if fields["slices"] > 1:
    kinds = {f"    {kind} between slices": cell for kind, cell in by_kind("between_slices").items()}
    across = {"  bytes between slices, GB": _figure(program["bytes_between_slices"] / _GB), **kinds}
  cells = {
    "calls an iteration": _figure(program["calls"]),
    "memory, GB": "",
    "  arguments": gigabytes(program["argument_bytes"]),
    "  outputs not in place": gigabytes(program["output_bytes"] - program["alias_bytes"]),
    "  temporaries": gigabytes(program["temporary_bytes"]),
    "  the rest of the run's state": gigabytes(program["resident_bytes"]),
    "  with the programs themselves": gigabytes(program["peak_bytes"]),
    "  in the host's memory": gigabytes(program["host_bytes"]),
    "one call": "",
    "  TFLOP": _figure(program["flops"] / 1e12),
    "  memory traffic, GB": _figure(program["hbm_bytes"] / _GB),
    "  sent to other chips, GB": _figure(program["collective_bytes"] / _GB),
    **{f"    {kind}": cell for kind, cell in by_kind("collectives").items()},
    **across,
    "  seconds at the chip's peak": "",
    **{f"    {part}": f"{seconds:.3g}" for part, seconds in program["seconds"].items()},
  }
  each = "each chip" if fields["chip"]["devices_per_chip"] == 1 else "each device"
  return {each: name, **(dict.fromkeys(cells, "") if program["error"] else cells)}


def explanation(fields: dict[str, Any], longest: int = 20) -> str:
  """What holds the peak of each program of a report that was asked for it: arguments by their part of the state, and
  the largest of what else is in use.
  """
  tables = []
  for name, program in fields["programs"].items():
    if (peak := program.get("peak")) is None:
      tables.append(f"{name}: the compiler got to no assignment of memory")
      continue
    arguments, others, rest = {}, [], 0
    for buffer in peak["buffers"]:
      if buffer["kind"] == "argument":
        part = buffer["made_by"].partition("[")[0]
        arguments[part] = arguments.get(part, 0) + buffer["nbytes"]
      elif len(others) < longest:
        others.append(buffer)
      else:
        rest += buffer["nbytes"]
    tables.append(
      f"{name}, when most of its temporaries are in use, {peak['live_bytes'] / _GB:.3f} of"
      f" {peak['temporary_bytes'] / _GB:.3f} GB:")
    largest = sorted(arguments.items(), key=lambda part: -part[1])
    rows = [(f"{size / _GB:.3f}", "argument", part, "") for part, size in largest if size >= _GB / 1000]
    for buffer in others:
      shape = buffer["shape"] + (f" and {buffer['count'] - 1} more" if buffer["count"] > 1 else "")
      rows.append((f"{buffer['nbytes'] / _GB:.3f}", shape, buffer["made_by"], " < ".join(buffer["lines"][:3])))
    rows.append((f"{rest / _GB:.3f}", "the rest", "", ""))
    widths = [max(map(len, column)) for column in zip(*rows)]
    tables += ["  ".join([size.rjust(widths[0]), *map(str.ljust, cells, widths[1:])]).rstrip() for size, *cells in rows]
    tables.append("")
  return "\n".join(tables)


def _figure(value: float) -> str:
  return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
