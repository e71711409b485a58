"""Which fields of a sampler go together, and with which kind: each is obeyed or refused."""

import dataclasses
import math
from numbers import Real
from typing import Any

from gdsd_jax.checks import require

ONLY = {  # fields that some of the kinds have, and the others refuse
  ("llada",): ("cfg_scale",), ("llada", "block"): ("noise", "remasking"), ("dream",): ("alg", "alg_temp", "eps"),
  ("dream", "block"): ("top_p", "top_k"), ("block",): ("editing_threshold", "max_post_steps"),
}
PROBABILITIES = ("maskgit_plus", "topk_margin")  # Dream's algorithms whose confidence lies between 0 and 1.


def check_together(sampler) -> None:
  """Raises ValueError, one line naming the field, where a `SamplerConfig` of ours says what its kind does not do."""
  _check_fast(sampler)
  _check_kind(sampler)
  if sampler.kind == "block":
    _check_block(sampler)
  if sampler.slots is not None:
    must_fit(sampler.cache != "prefix", "cache", "'prefix' computes a part of another length in each block, and with"
             " sampler.slots each completion is at its own block; give dual")
    must_fit(not sampler.edits, "slots", "must be None with sampler.editing_threshold, by which a block goes on after"
             " its last mask")


def _check_kind(sampler):
  dream = sampler.kind == "dream"
  for field in dataclasses.fields(sampler):
    for kinds, own in ONLY.items():
      fits = sampler.kind in kinds or field.name not in own or getattr(sampler, field.name) == field.default
      must_fit(fits, field.name,
               f"only the {' or '.join(kinds)} sampler has it (sampler.kind is {sampler.kind!r})")
  must_fit(sampler.remasking != "sequential" or sampler.kind == "block", "remasking",
           f"only the block sampler has 'sequential' (sampler.kind is {sampler.kind!r})")
  fits = sampler.top_p is None or is_real(sampler.top_p) and 0 < sampler.top_p <= 1
  must_fit(fits, "top_p", f"must lie in (0, 1], not {sampler.top_p!r}")
  fits = not dream or is_real(sampler.eps) and 0 < sampler.eps < 1
  must_fit(fits, "eps", f"must lie between 0 and 1, not {sampler.eps!r}")
  if sampler.is_blockwise:
    must_fit(sampler.completion_length % sampler.block_length == 0, "block_length",
             f"{sampler.block_length} must divide completion_length, {sampler.completion_length}")
    must_fit(not sampler.counts_steps or sampler.steps % sampler.num_blocks == 0, "steps",
             f"{sampler.steps} must be a multiple of the {sampler.num_blocks} blocks (completion_length /"
             " block_length)")
  must_fit(sampler.is_blockwise or not sampler.early_stop, "early_stop",
           "the dream sampler has blocks only with sampler.block_length below completion_length")


def _check_block(sampler):
  must_fit(sampler.noise == "exact" or not sampler.is_filtered, "noise", "must be exact with sampler.top_p or top_k")
  editing = sampler.editing_threshold
  fits = editing is None or is_real(editing) and 0 <= editing <= 1
  must_fit(fits, "editing_threshold", f"must lie in [0, 1], not {editing!r}")
  must_fit(editing is None or sampler.threshold is not None, "editing_threshold",
           "needs sampler.threshold, which says what is set in the first place")
  must_fit(editing is not None or sampler.max_post_steps == type(sampler).max_post_steps, "max_post_steps",
           "has no effect without sampler.editing_threshold; leave it out")


def _check_fast(sampler):
  threshold, factor = sampler.threshold, sampler.factor
  must_fit(threshold is None or factor is None, "factor",
           "sampler.threshold says already what a step commits; give one of them")
  fits = threshold is None or is_real(threshold) and 0 <= threshold <= 1
  must_fit(fits, "threshold", f"must lie in [0, 1], not {threshold!r}")
  fits = factor is None or is_real(factor) and 0 < factor < math.inf
  must_fit(fits, "factor", f"must be a positive number, not {factor!r}")
  must_fit(not (sampler.is_fast and sampler.cfg_scale), "cfg_scale",
           "must be 0 with sampler.cache, threshold or factor")
  known = ("none", "exact") if sampler.kind == "block" else ("none", "prefix", "dual")
  must_fit(sampler.cache in known, "cache", f"must be one of {', '.join(known)} with the {sampler.kind} sampler, not"
           f" {sampler.cache!r}: only of a block-causal model do the keys of finished blocks never change")
  if sampler.is_parallel:
    must_fit(sampler.kind == "dream" or sampler.remasking == "low_confidence", "remasking",
             f"must be 'low_confidence' with sampler.threshold or factor, not {sampler.remasking!r}")
    must_fit(sampler.kind != "dream" or sampler.alg in PROBABILITIES, "alg",
             f"must be one of {', '.join(PROBABILITIES)} with sampler.threshold or factor, whose confidence"
             f" lies between 0 and 1, not {sampler.alg!r}")
    must_fit(not sampler.alg_temp, "alg_temp", "must be 0 with sampler.threshold or factor, which draw no positions")


def must_fit(holds: bool, field: str, message: str) -> None:
  """`checks.require` of a field of section `sampler`."""
  require(holds, f"sampler.{field}", message)


def is_real(value: Any) -> bool:
  """Whether it is a real number, and no word of yes or no."""
  return isinstance(value, Real) and not isinstance(value, bool)
