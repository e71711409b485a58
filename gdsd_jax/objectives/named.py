"""The objectives by name."""

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class ObjectiveFields:
  """What recipes may say of an objective, a part of section `objective`: its name, and settings that several have.

  What is None is at the objective's own default, which its dataclass explains. Others that it has are named as these
  are, `--config.objective.eubo_beta=1.0`, and what it has not is refused.
  """

  name: str = "gdsd"  # one of docs/objectives.md, or one's own, FILE.py:NAME (docs/own.md)
  psi: float | None = None  # guidance strength per token (gdsd, gdsd_tlc)
  epsilon: float | None = None  # trust region of the ratio, or of the log-ratio (gdsd, gdsd_tlc)
  beta: float | None = None  # weight of the KL
  center_top_k: int | None = None  # k of the logit centre (gdsd_tlc)
  center_gradient: bool | None = None  # whether the gradient flows through the centre (gdsd_tlc)
  weighted: bool | None = None  # whether tokens have the weights of the forward process (gdsd, gdsd_tlc, espo)
  coupled: bool | None = None  # whether each mask is scored together with its complement (gdsd, gdsd_tlc)


def objective_class(name: str) -> type[Objective]:
  """The class of an objective of ours. Raises ValueError for another name."""
  require(name in _CLASSES, "objective.name",
          f"{name!r} is not one of {', '.join(OBJECTIVES)}{did_you_mean(name, OBJECTIVES)};"
          " one of your own is FILE.py:NAME")
  file, _, found = _CLASSES[name].partition(":")
  return getattr(importlib.import_module(f"gdsd_jax.objectives.{file}"), found)


def settings() -> dict[str, list[str]]:
  """Setting -> the objectives that have it."""
  found = {}
  for name in OBJECTIVES:
    for field in dataclasses.fields(objective_class(name)):
      found.setdefault(field.name, []).append(name)
  return found
