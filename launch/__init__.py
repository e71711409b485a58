"""The commands of an installed package: `gdsd-train` does what `python launch/train.py` does in a clone, and so on."""

import runpy
import sys


def _command(module: str):
  """A function that runs a module as a script, flags of the command line included."""

  def run() -> None:
    runpy.run_module(module, run_name="__main__", alter_sys=True)

  return run


train, evaluate, export, pretrain, compile, benchmark, compare, exact, report, sample = (
  _command(f"{__name__}.{name}")
  for name in (
    "train", "evaluate", "export", "pretrain", "compile", "benchmark", "compare", "exact", "report", "sample")
)


def lm_eval() -> None:
  """The command line of lm-evaluation-harness, with the model gdsd_jax known to it."""
  try:
    from gdsd_jax.evaluation.harness import main
  except ImportError as error:
    sys.exit(f"error: {error}")
  main()
