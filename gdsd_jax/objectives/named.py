"""The objectives by name."""

import importlib

from gdsd_jax.checks import did_you_mean, require
from gdsd_jax.objectives.objective import Objective

_CLASSES = {
  "gdsd": "gdsd:Gdsd", "gdsd_tlc": "gdsd:GdsdTlc", "espo": "espo:Espo", "diffu_grpo": "diffu_grpo:DiffuGrpo",
  "wd1": "wd1:Wd1", "wd1_positive": "wd1:Wd1Positive", "spg": "spg:Spg", "coupled_grpo": "coupled_grpo:CoupledGrpo",
  "unigrpo": "unigrpo:UniGrpo", "dmpo": "dmpo:Dmpo", "gdpo": "gdpo:Gdpo", "bgpo": "bgpo:Bgpo",
  "trace_rl": "trace_rl:TraceRl", "d2": "d2:D2", "cj_grpo": "cj_grpo:CjGrpo", "agrpo": "agrpo:Agrpo",
  "just_grpo": "just_grpo:JustGrpo", "vrpo": "vrpo:Vrpo", "mdpo": "mdpo:Mdpo",
}
OBJECTIVES = tuple(_CLASSES)


def objective_class(name: str) -> type[Objective]:
  """The class of an objective of ours. Raises ValueError for another name."""
  require(name in _CLASSES, "objective.name",
          f"{name!r} is not one of {', '.join(OBJECTIVES)}{did_you_mean(name, OBJECTIVES)};"
          " one of your own is FILE.py:NAME")
  file, _, found = _CLASSES[name].partition(":")
  return getattr(importlib.import_module(f"gdsd_jax.objectives.{file}"), found)
