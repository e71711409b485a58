"""The commands of an installed package: `gdsd-train` does what `python launch/train.py` does in a clone, and so on."""

import runpy


def _command(name: str):
  """A function that runs the file of its name as a script, flags of the command line included."""

  def run() -> None:
    runpy.run_module(f"{__name__}.{name}", run_name="__main__", alter_sys=True)

  return run


train, evaluate, export, pretrain, compile, benchmark = map(
  _command, ("train", "evaluate", "export", "pretrain", "compile", "benchmark")
)
