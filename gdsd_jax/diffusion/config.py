"""What a sampler is told and what it gives back."""

import dataclasses
import math
import numbers

from flax import struct
import jax

KINDS = ("llada", "dream")
REMASKING = ("low_confidence", "random")
ALGORITHMS = ("entropy", "maskgit_plus", "topk_margin", "origin")
PROBABILITIES = ("maskgit_plus", "topk_margin")  # algorithms whose confidence lies between 0 and 1
CACHES = ("none", "prefix", "dual")


@struct.dataclass
class Rollout:
  """Completions and how sure the denoiser was of them.

  Attributes:
    tokens: int32[B, L] completion tokens; the mask token is never among them.
    confidence: float32[B, L], what the sampler ordered its commits by, as of the moment that each token was unmasked.
      LLaDA: the probability of the token (full softmax, without temperature, after guidance). Dream: that of `alg`.
  """

  tokens: jax.Array
  confidence: jax.Array


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
  """How completions are sampled.

  With `cache`, `threshold` or `factor` (Fast-dLLM, arXiv 2505.22618; see fast_dllm.py) dream, too, goes block by block,
  and completions are no longer what the exact sampler's would be.

  Attributes:
    kind: "llada", semi-autoregressive blocks (arXiv 2502.09992, section 2.4 and its appendix), or "dream", the whole
      completion at once (arXiv 2508.15487 and its published `diffusion_generate`).
    completion_length: tokens of a completion (L).
    steps: denoising steps of the whole completion, spread evenly over the blocks where there are any. With threshold or
      factor they are not counted: a block takes one at least, as many as it has tokens at most.
    temperature: of the sampled tokens; 0 is greedy.
    block_length: tokens of a block (K); equal to completion_length for a single block. Dream without cache, threshold
      and factor has none.
    remasking: llada: which predictions of a step are kept: "low_confidence" remasks the least confident, "random" any.
    cfg_scale: llada: classifier-free guidance; 0 is off, otherwise a second pass with the prompt masked doubles the
      cost.
    alg: dream: confidence that commits are ordered by: "entropy" (the least of it first), "maskgit_plus" (the
      probability), "topk_margin" (the lead over the runner-up), or "origin" (at random).
    alg_temp: dream: above 0, positions are drawn with probability softmax(confidence / alg_temp).
    top_p, top_k: dream: tokens outside the nucleus, or beyond the k most probable, are not sampled; None is off.
    eps: dream: time of the last step; times run evenly from 1 to eps (in each block, where there are any).
    cache: of keys and values, filled by the first step of each block: "prefix", its other steps compute the block and
      what is behind it; "dual", the block alone; "none", the whole sequence.
    threshold: a step commits every token of the block whose confidence exceeds it, and the surest one anyway.
    factor: a step commits the n surest tokens of the block, for the largest n with (n + 1)(1 - c) < factor, c the
      confidence of the nth; and the surest one anyway.
    early_stop: of block-wise samplers: once every completion of the batch has an end of text in its finished blocks,
      the rest is not computed but filled with it, at confidence 1. Texts up to their end stay the same; what is behind
      it, which masks and scores of training look at, does not.
  """

  kind: str = "llada"
  completion_length: int = 256
  steps: int = 256
  temperature: float = 1.0
  block_length: int = 32
  remasking: str = "low_confidence"
  cfg_scale: float = 0.0
  alg: str = "entropy"
  alg_temp: float = 0.0
  top_p: float | None = None
  top_k: int | None = None
  eps: float = 1e-3
  cache: str = "none"
  threshold: float | None = None
  factor: float | None = None
  early_stop: bool = False

  def __post_init__(self):
    for field, known in (("kind", KINDS), ("remasking", REMASKING), ("alg", ALGORITHMS), ("cache", CACHES)):
      if getattr(self, field) not in known:
        raise ValueError(f"sampler.{field}: {getattr(self, field)!r} is not one of {', '.join(known)}")
    for field in ("completion_length", "steps", "block_length", "top_k"):
      value = getattr(self, field)
      if field == "top_k" and value is None:
        continue
      if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"sampler.{field}: must be an integer of at least 1, not {value!r}")
    for field in ("temperature", "cfg_scale", "alg_temp"):
      value = getattr(self, field)
      if not isinstance(value, numbers.Real) or not 0 <= value < math.inf:
        raise ValueError(f"sampler.{field}: must be a number and not negative, not {value!r}")
    if self.is_fast:
      self._check_fast()
    if self.kind == "llada":
      self._check_llada()
    else:
      self._check_dream()
    if self.is_blockwise:
      self._check_blocks()
    if not isinstance(self.early_stop, bool):
      raise ValueError(f"sampler.early_stop: must be True or False, not {self.early_stop!r}")
    if self.early_stop and not self.is_blockwise:
      raise ValueError("sampler.early_stop: the dream sampler has no blocks without sampler.cache, threshold or factor")

  def _check_fast(self):
    if self.threshold is not None and self.factor is not None:
      raise ValueError("sampler.factor: sampler.threshold says already what a step commits; give one of them")
    if self.threshold is not None and not (isinstance(self.threshold, numbers.Real) and 0 <= self.threshold <= 1):
      raise ValueError(f"sampler.threshold: must lie in [0, 1], not {self.threshold!r}")
    if self.factor is not None and not (isinstance(self.factor, numbers.Real) and 0 < self.factor < math.inf):
      raise ValueError(f"sampler.factor: must be a positive number, not {self.factor!r}")
    if self.cfg_scale:
      raise ValueError("sampler.cfg_scale: must be 0 with sampler.cache, threshold or factor")
    if not self.is_parallel:
      return
    if self.kind == "llada" and self.remasking != "low_confidence":
      raise ValueError(
        f"sampler.remasking: must be 'low_confidence' with sampler.threshold or factor, not {self.remasking!r}"
      )
    if self.kind == "dream" and self.alg not in PROBABILITIES:
      raise ValueError(
        f"sampler.alg: must be one of {', '.join(PROBABILITIES)} with sampler.threshold or factor, whose confidence"
        f" lies between 0 and 1, not {self.alg!r}"
      )
    if self.alg_temp:
      raise ValueError("sampler.alg_temp: must be 0 with sampler.threshold or factor, which draw no positions")

  def _check_blocks(self):
    if self.completion_length % self.block_length:
      raise ValueError(
        f"sampler.block_length: {self.block_length} must divide completion_length, {self.completion_length}"
      )
    if self.steps % self.num_blocks and not self.is_parallel:
      raise ValueError(
        f"sampler.steps: {self.steps} must be a multiple of the {self.num_blocks} blocks"
        " (completion_length / block_length)"
      )

  def _check_llada(self):
    for field in ("top_p", "top_k"):
      if getattr(self, field) is not None:
        raise ValueError(f"sampler.{field}: only the dream sampler has it (sampler.kind is {self.kind!r})")

  def _check_dream(self):
    if self.cfg_scale:
      raise ValueError("sampler.cfg_scale: only the llada sampler has it (sampler.kind is 'dream')")
    if self.top_p is not None and not (isinstance(self.top_p, numbers.Real) and 0 < self.top_p <= 1):
      raise ValueError(f"sampler.top_p: must lie in (0, 1], not {self.top_p!r}")
    if not (isinstance(self.eps, numbers.Real) and 0 < self.eps < 1):
      raise ValueError(f"sampler.eps: must lie between 0 and 1, not {self.eps!r}")

  @property
  def is_parallel(self) -> bool:
    """Whether the confidence alone says how many tokens a step commits."""
    return self.threshold is not None or self.factor is not None

  @property
  def is_fast(self) -> bool:
    """Whether any of Fast-dLLM's options is on."""
    return self.cache != "none" or self.is_parallel

  @property
  def is_blockwise(self) -> bool:
    return self.kind == "llada" or self.is_fast

  @property
  def num_blocks(self) -> int:
    return self.completion_length // self.block_length if self.is_blockwise else 1

  @property
  def forward_process(self) -> dict[str, int | str | None]:
    """`block_length` and `remasking` of the forward process (`consistent_masks`) whose masks this sampler visits."""
    if self.kind == "llada":
      return dict(block_length=self.block_length, remasking=self.remasking)
    block_length = self.block_length if self.is_blockwise else None
    return dict(block_length=block_length, remasking="random" if self.alg == "origin" else "low_confidence")
