"""Compiles a run for a TPU slice, or several, that are not there, on any Linux machine, and says whether it fits.

  pip install libtpu
  python launch/compile.py --config=configs/gdsd_math.py:llada_8b --topology=v5e:4x4 [--slices=2]

The sampler, the scores and the distillation step of the config are compiled as training calls them, by the compiler
that the slice would use; weights are abstract, and the published models need no files. A table of each chip's memory,
FLOPs, memory traffic, collectives, bytes between slices and roofline; the last line of standard output is one JSON
object of the same. --explain: what holds the peak of each program, also of one that does not fit. Exit status 1: it
would not fit.
"""

from gdsd_jax import signals

if __name__ == "__main__":
  signals.begin()  # before imports that take seconds

import json
import os
import sys

# Read when JAX and libtpu start: compile here, beside other processes that do, and ask no metadata server for a slice.
_ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-16",
  "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TF_CPP_MIN_LOG_LEVEL": "2",
}
if __name__ == "__main__":
  for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

from absl import flags
from ml_collections import config_flags

from gdsd_jax import command

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Recipe, with its preset after a colon: configs/gdsd_math.py:llada_8b.",
  lock_config=False, accept_new_attributes=True,  # fields of one's own task are its own
)
_TOPOLOGY = flags.DEFINE_string("topology", None, "TPU slice: v5e:4x4, v5p:2x2x4, v6e:16x16, …")
_SLICES = flags.DEFINE_integer("slices", 1, "How many such slices, joined by the data center's network.")
_EXPLAIN = flags.DEFINE_bool("explain", False, "Whether to tell what holds each program's peak: the largest arrays that"
                             " are in memory then, and the lines of code that made them.")
_HLO = flags.DEFINE_string("hlo", None, "Folder for the optimised HLO of each program.")


def main():
  import jax

  from gdsd_jax.planning.plan import plan
  from gdsd_jax.planning.report import explanation, report, table
  from gdsd_jax.runs.config_dict import run_config
  from gdsd_jax.runs.files import local_folder
  from gdsd_jax.runs.metrics import log_to_stdout

  log_to_stdout()
  jax.config.update("jax_enable_compilation_cache", False)  # what is compiled for chips elsewhere, JAX cannot read back
  planned = plan(run_config(_CONFIG.value), _TOPOLOGY.value, _SLICES.value, _EXPLAIN.value)
  if _HLO.value is not None:
    folder = local_folder("--hlo", _HLO.value)
    folder.mkdir(parents=True, exist_ok=True)
    for program in planned.programs:
      (folder / f"{program.name}.hlo").write_text(program.hlo)
  fields = report(planned)
  if _EXPLAIN.value:
    print(explanation(fields))
  print(table(fields))
  print(json.dumps({"config": flags.FLAGS["config"].config_filename, **fields}), flush=True)
  if not planned.fits:
    sys.exit(1)


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "topology"])
  command.run(main)
