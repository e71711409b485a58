"""What a sampler is told and what it gives back."""

import dataclasses
import math
import numbers

from flax import struct
import jax

KINDS = ("llada", "dream")
REMASKING = ("low_confidence", "random")
ALGORITHMS = ("entropy", "maskgit_plus", "topk_margin", "origin")


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

  Attributes:
    kind: "llada", semi-autoregressive blocks (arXiv 2502.09992, section 2.4 and its appendix), or "dream", the whole
      completion at once (arXiv 2508.15487 and its published `diffusion_generate`).
    completion_length: tokens of a completion (L).
    steps: denoising steps of the whole completion; spread evenly over the blocks (llada).
    temperature: of the sampled tokens; 0 is greedy.
    block_length: llada: tokens of a block (K); equal to completion_length for a single block.
    remasking: llada: which predictions of a step are kept: "low_confidence" remasks the least confident, "random" any.
    cfg_scale: llada: classifier-free guidance; 0 is off, otherwise a second pass with the prompt masked doubles the
      cost.
    alg: dream: confidence that commits are ordered by: "entropy" (the least of it first), "maskgit_plus" (the
      probability), "topk_margin" (the lead over the runner-up), or "origin" (at random).
    alg_temp: dream: above 0, positions are drawn with probability softmax(confidence / alg_temp).
    top_p, top_k: dream: tokens outside the nucleus, or beyond the k most probable, are not sampled; None is off.
    eps: dream: time of the last step; times run evenly from 1 to eps.
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

  def __post_init__(self):
    for field, known in (("kind", KINDS), ("remasking", REMASKING), ("alg", ALGORITHMS)):
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
    if self.kind == "llada":
      self._check_llada()
    else:
      self._check_dream()

  def _check_llada(self):
    if self.completion_length % self.block_length:
      raise ValueError(
        f"sampler.block_length: {self.block_length} must divide completion_length, {self.completion_length}"
      )
    if self.steps % self.num_blocks:
      raise ValueError(
        f"sampler.steps: {self.steps} must be a multiple of the {self.num_blocks} blocks"
        " (completion_length / block_length)"
      )
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
  def num_blocks(self) -> int:
    return self.completion_length // self.block_length if self.kind == "llada" else 1

  @property
  def forward_process(self) -> dict[str, int | str | None]:
    """`block_length` and `remasking` of the forward process (`consistent_masks`) whose masks this sampler visits."""
    if self.kind == "llada":
      return dict(block_length=self.block_length, remasking=self.remasking)
    return dict(block_length=None, remasking="random" if self.alg == "origin" else "low_confidence")
