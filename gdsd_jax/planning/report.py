"""What a pod plan says, as JSON values and as a table."""

from collections.abc import Iterator
import dataclasses
import math
from typing import Any

from gdsd_jax.planning.plan import PodPlan, Program

_GB = 1e9


def report(plan: PodPlan) -> dict[str, Any]:
  """A plan as JSON values, with a roofline of each program and of an iteration. Bytes, FLOPs, seconds are one chip's.

  A program's time is that of the slowest of its FLOPs, its memory traffic and its collectives, each at the chip's
  published peak and the others hidden behind it: no program is faster. Utilisation is the share of it that FLOPs take,
  recomputed ones among them.
  """
  programs = {program.name: _program(plan, program) for program in plan.programs}
  return {
    **_without(vars(plan), "prompt_buckets"),
    "chip": dataclasses.asdict(plan.chip),
    "chips": math.prod(plan.mesh.values()),
    "code_bytes": plan.code_bytes,
    "peak_bytes": plan.peak_bytes,
    "fits": plan.fits,
    "programs": programs,
    "iteration": None if plan.peak_bytes is None else _iteration(plan, programs),
  }


def _program(plan: PodPlan, program: Program) -> dict[str, Any]:
  cost, seconds = program.cost, program.seconds(plan.chip)
  bound = max(seconds.values())
  return {
    **_without(vars(program), "name", "cost", "hlo"),
    **vars(cost),
    "peak_bytes": None if program.error else program.peak_bytes + plan.code_bytes,
    "collective_bytes": cost.collective_bytes,
    "collectives": {kind: {"count": count, "bytes": sent} for kind, (count, sent) in sorted(cost.collectives.items())},
    "seconds": seconds,
    "roofline_seconds": bound,
    "utilisation": seconds["compute"] / bound if bound else None,
    "compile_seconds": round(program.compile_seconds, 1),
  }


def _without(fields: dict[str, Any], *names: str) -> dict[str, Any]:
  return {name: value for name, value in fields.items() if name not in names}


def _iteration(plan: PodPlan, programs: dict[str, Any]) -> dict[str, float]:
  total = lambda name: sum(program["calls"] * program[name] for program in programs.values())
  bound = total("roofline_seconds")
  return {
    **{name: total(name) for name in ("flops", "hbm_bytes", "collective_bytes", "roofline_seconds")},
    "utilisation": total("flops") / plan.chip.flops_per_second / bound,
  }


def table(fields: dict[str, Any]) -> str:
  """A report for a reader."""
  programs, hbm = fields["programs"], fields["chip"]["hbm_bytes"] / _GB
  mesh = ", ".join(f"{axis} {size}" for axis, size in fields["mesh"].items())
  lines = [
    f"{fields['topology']}: {fields['chips']} chips of {hbm:.0f} GB, mesh {mesh}",
    f"{fields['parameters'] / 1e9:.3g} G parameters, {fields['trained_parameters'] / 1e9:.3g} G of them trained;"
    f" {fields['rollouts']} rollouts of {fields['prompt_length']} + {fields['completion_length']} tokens, in"
    f" microbatches of {fields['microbatch']}",
    "",
  ]
  rows = [("each chip", list(programs)), *_rows(list(programs.values()))]
  widths = [max(map(len, column)) for column in zip(*([label, *values] for label, values in rows))]
  for label, values in rows:
    cells = [label.ljust(widths[0]), *(value.rjust(width) for value, width in zip(values, widths[1:]))]
    lines.append("  ".join(cells).rstrip())
  lines.append("")
  lines += [f"{name} {program['error']}" for name, program in programs.items() if program["error"]]
  if iteration := fields["iteration"]:
    least, share = iteration["roofline_seconds"], iteration["utilisation"]
    lines.append(f"by the roofline an iteration takes {least:.3g} s or more, at {share:.0%} utilisation or less")
  peak = "" if fields["peak_bytes"] is None else f": {fields['peak_bytes'] / _GB:.2f} of {hbm:.0f} GB"
  lines.append(("fits" if fields["fits"] else "DOES NOT FIT") + peak)
  return "\n".join(lines)


def _figure(value: float) -> str:
  return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _rows(programs: list[dict[str, Any]]) -> Iterator[tuple[str, list[str]]]:
  """(label, a cell for each program) of the table; a program that did not compile has none."""

  def row(label, cell):
    return label, ["" if program["error"] else cell(program) for program in programs]

  def number(label, name, unit=1.0):
    return row(label, lambda program: _figure(program[name] / unit))

  def gigabytes(label, nbytes):
    return row(label, lambda program: f"{nbytes(program) / _GB:.3f}")

  def collective(kind):
    def cell(program):
      found = program["collectives"].get(kind)
      return f"{_figure(found['bytes'] / _GB)} in {found['count']:,.0f}" if found else ""

    return row(f"    {kind}", cell)

  yield number("calls an iteration", "calls")
  yield row("memory, GB", lambda program: "")
  yield gigabytes("  arguments", lambda program: program["argument_bytes"])
  yield gigabytes("  outputs not in place", lambda program: program["output_bytes"] - program["alias_bytes"])
  yield gigabytes("  temporaries", lambda program: program["temporary_bytes"])
  yield gigabytes("  the rest of the run's state", lambda program: program["resident_bytes"])
  yield gigabytes("  with the programs themselves", lambda program: program["peak_bytes"])
  yield row("one call", lambda program: "")
  yield number("  TFLOP", "flops", 1e12)
  yield number("  memory traffic, GB", "hbm_bytes", _GB)
  yield number("  sent to other chips, GB", "collective_bytes", _GB)
  for kind in sorted({kind for program in programs for kind in program["collectives"]}):
    yield collective(kind)
  yield row("  seconds at the chip's peak", lambda program: "")
  for part in ("compute", "memory", "interconnect"):
    yield row(f"    {part}", lambda program, part=part: f"{program['seconds'][part]:.3g}")
