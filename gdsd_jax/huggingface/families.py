"""The families of published models, and which of them a config.json is of."""

from collections.abc import Mapping
from typing import Any

from gdsd_jax.huggingface.illada import ILLADA
from gdsd_jax.huggingface.layouts import DREAM, LLADA
from gdsd_jax.huggingface.llada2 import LLADA2
from gdsd_jax.huggingface.llada_moe import LLADA_MOE
from gdsd_jax.huggingface.sdar import SDAR, SDAR_MOE

# By the `model_type` of config.json, in small letters.
FAMILIES = {"llada": LLADA, "dream": DREAM, "sdar": SDAR, "sdar_moe": SDAR_MOE, "llada2_moe": LLADA2, "illada": ILLADA,
            "lladamoe": LLADA_MOE}
SAMPLED_AS_LLADA = ("llada", "illada", "lladamoe")
# Families that may have another model_type: LLaDA-MoE's own code says llada, dFactory's llada2_moe_veomni.
_BY_CLASS = {FAMILIES[name].architecture: name for name in FAMILIES if name not in ("llada", "dream")}


def model_type_of(fields: Mapping[str, Any]) -> str:
  """The model_type of a config.json in small letters, or what the class that it names as its architecture has."""
  architectures = fields.get("architectures")
  names = [name for name in architectures if isinstance(name, str)] if isinstance(architectures, list) else []
  return next((_BY_CLASS[name] for name in names if name in _BY_CLASS), str(fields.get("model_type", "")).lower())
