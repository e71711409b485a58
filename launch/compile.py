"""Compiles a run for a TPU slice that is not there, on any Linux machine, and says whether it fits.

  pip install libtpu
  python launch/compile.py --config=configs/gdsd_math.py:llada_8b --topology=v5e:4x4 [--config.mesh.fsdp=16]

The sampler, the scores and the distillation step of the config are compiled as training calls them, by the compiler
that the slice would use; weights are abstract, and the published models need no files. A table of each chip's memory,
FLOPs, memory traffic, collectives and roofline; the last line of standard output is one JSON object of the same. Exit
status 1: it would not fit.
"""

import json
import os
from pathlib import Path
import sys

# Read when JAX and libtpu start: compile here, ask no metadata server for a slice, and keep to warnings.
_ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-16",
  "TPU_WORKER_HOSTNAMES": "localhost", "TF_CPP_MIN_LOG_LEVEL": "2",
}
if __name__ == "__main__":
  for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

from absl import flags  # noqa: E402  (after the environment)
from ml_collections import config_flags  # noqa: E402

from gdsd_jax.training import command  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Recipe, with its preset after a colon: configs/gdsd_math.py:llada_8b.", lock_config=True
)
_TOPOLOGY = flags.DEFINE_string("topology", None, "TPU slice: v5e:4x4, v5p:2x2x4, v6e:16x16, …")
_HLO = flags.DEFINE_string("hlo", None, "Folder for the optimised HLO of each program.")

_GB = 1e9


def _rows(plan: dict):
  """(label, one value for each program) of the table."""
  programs = plan["programs"].values()
  figure = lambda name, unit, digits=2: [f"{program[name] / unit:.{digits}f}" for program in programs]
  yield "calls an iteration", [str(program["calls"]) for program in programs]
  yield "memory, GB", [""] * len(programs)
  yield "  arguments", figure("argument_bytes", _GB)
  yield "  outputs not aliased", [f"{(p['output_bytes'] - p['alias_bytes']) / _GB:.2f}" for p in programs]
  yield "  temporaries", figure("temporary_bytes", _GB)
  yield "  rest of the state", figure("resident_bytes", _GB)
  yield "  all programs", [f"{plan['code_bytes'] / _GB:.2f}"] * len(programs)
  yield "  sum", [
    "too much" if program["error"] else f"{(program['peak_bytes'] + plan['code_bytes']) / _GB:.2f}"
    for program in programs
  ]
  yield "one call", [""] * len(programs)
  yield "  TFLOP", figure("flops", 1e12, 1)
  yield "  HBM traffic, GB", figure("hbm_bytes", _GB, 1)
  yield "  collectives, GB sent", figure("collective_bytes", _GB, 1)
  for kind in sorted({kind for program in programs for kind in program["collectives"]}):
    found = [program["collectives"].get(kind, {"count": 0, "bytes": 0}) for program in programs]
    yield f"    {kind}", [f"{each['bytes'] / _GB:.2f} ({each['count']:.0f})" if each["count"] else "" for each in found]
  for part in ("compute", "memory", "interconnect"):
    yield f"  {part}, s", [f"{program['seconds'][part]:.2f}" for program in programs]
  yield "  roofline, s", figure("roofline_seconds", 1)
  yield "  utilisation", ["" if p["utilisation"] is None else f"{p['utilisation']:.0%}" for p in programs]


def table(plan: dict) -> str:
  """The plan (`PodPlan.as_json`) for a reader; figures are of one chip."""
  chip, mesh = plan["chip"], ", ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
  lines = [
    f"{plan['topology']}: {plan['chips']} chips of {chip['hbm_bytes'] / _GB:.0f} GB, mesh {mesh}",
    f"{plan['parameters'] / 1e9:.3g} G parameters, {plan['trained_parameters'] / 1e9:.3g} G of them trained;"
    f" {plan['rollouts']} rollouts of {plan['prompt_length']} + {plan['completion_length']} tokens, in microbatches of"
    f" {plan['microbatch']}",
    "",
  ]
  rows = [("each chip", list(plan["programs"])), *_rows(plan)]
  widths = [max(map(len, column)) for column in zip(*([label, *values] for label, values in rows))]
  for label, values in rows:
    cells = [label.ljust(widths[0]), *(value.rjust(width) for value, width in zip(values, widths[1:]))]
    lines.append("  ".join(cells).rstrip())
  lines.append("")
  for name, program in plan["programs"].items():
    if program["error"]:
      lines.append(f"{name} {program['error']}")
  iteration = plan["iteration"]
  if plan["peak_bytes"] is not None:
    lines.append(
      f"an iteration by the roofline: {iteration['roofline_seconds']:.1f} s at {iteration['utilisation']:.0%}"
      " utilisation, each program bound by the slowest of the three and nothing else"
    )
  peak = "more" if plan["peak_bytes"] is None else f"{plan['peak_bytes'] / _GB:.2f} GB"
  lines.append(f"{'fits' if plan['fits'] else 'DOES NOT FIT'}: {peak} of {chip['hbm_bytes'] / _GB:.0f} GB")
  return "\n".join(lines)


def main():
  from gdsd_jax.training.metrics import log_to_stdout
  from gdsd_jax.training.pod_plan import plan

  log_to_stdout()
  planned = plan(_CONFIG.value, _TOPOLOGY.value)
  if _HLO.value is not None:
    folder = Path(_HLO.value)
    folder.mkdir(parents=True, exist_ok=True)
    for program in planned.programs:
      (folder / f"{program.name}.hlo").write_text(program.hlo)
  fields = planned.as_json()
  print(table(fields))
  print(json.dumps({"config": flags.FLAGS["config"].config_filename, **fields}), flush=True)
  if not planned.fits:
    sys.exit(1)


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "topology"])
  command.run(main)
