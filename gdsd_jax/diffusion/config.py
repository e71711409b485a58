"""What a sampler is told and what it gives back."""

from collections.abc import Collection
import dataclasses
import math
from numbers import Integral
from typing import Any

from flax import struct
import jax

from gdsd_jax import own_code
from gdsd_jax.checks import require, require_one_of
from gdsd_jax.diffusion.config_checks import check_together, is_real, must_fit
from gdsd_jax.diffusion.dream_schedule import commits
from gdsd_jax.models.config import DenoiserConfig

KINDS = ("llada", "dream")  # for models whose tokens all see each other; "block" is of those that go block by block
REMASKING = ("low_confidence", "random")
NOISES = ("exact", "official")
ALGORITHMS = ("entropy", "maskgit_plus", "topk_margin", "origin")
CACHES = ("none", "prefix", "dual", "exact")
BLOCK_LENGTH = 32  # where nothing else is said: of all published runs
_MOST_TOKENS = 2**20  # of a completion, of a block, of the vocabulary; and no sampler has more to do in steps
PASSED = ("denoiser", "params", "prompt", "prompt_mask", "key", "config")  # to one's own; more parameters are settings


@struct.dataclass
class Predictions:
  """What each of the S denoising steps of B rollouts took the whole completion to be."""

  tokens: jax.Array  # int32[B, S, L], those that were unmasked before, and a prediction of each one that was masked
  confidence: jax.Array  # float32[B, S, L], the predictions' probabilities; 0 where there was no mask


@struct.dataclass
class Beyond:
  """What the last block of a block-causal model's completion holds behind the completion, which it was sampled with."""

  tokens: jax.Array  # int32[B, K], first those that there are, as many as the prompt's last block wanted
  steps: jax.Array  # int32[B, K], as `Rollout.steps`


@struct.dataclass
class Rollout:
  """Completions and how sure the denoiser was of them."""

  tokens: jax.Array  # int32[B, L], the mask token never among them
  # float32[B, L], what the sampler ordered its commits by when each token was unmasked: with LLaDA the probability of
  # the token (full softmax, without temperature, after guidance and penalty), with Dream that of `alg`.
  confidence: jax.Array
  # int32[B, L], the denoising step that unmasked each token, from 0, or wrote it last where set tokens are edited; None
  # of one's own. What else is told of a token is that of the same step.
  steps: jax.Array | None = None
  # float32[B, L], of each token under the distribution that it was drawn from (after temperature, top-p, top-k, and
  # without the mask token), and the entropy of that in nats; None unless they were asked for.
  logp: jax.Array | None = None
  entropy: jax.Array | None = None
  kept: jax.Array | None = None  # int32[B, L, top_k], the tokens that the filters left there, -1 for none
  predictions: Predictions | None = None
  beyond: Beyond | None = None  # of the block sampler, for `replay`
  # int32[B, 2], with slots: of the passes over all of them, the first that worked at it, and the one after its last
  passes: jax.Array | None = None

  def only(self, names: Collection[str]) -> "Rollout":
    """The rollout without what it remembers beside these: checkpoints and objectives have what they need."""
    dropped = {"steps", "logp", "entropy", "kept", "predictions", "beyond", "passes"} - set(names)
    return self.replace(**dict.fromkeys(dropped))


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
  """How completions are sampled. Hashable, so it can be a static argument of `jax.jit`.

  LLaDA's sampler is from arXiv 2502.09992 (section 2.4 and its appendix), Dream's from arXiv 2508.15487 and its
  published `diffusion_generate`. With a `block_length` below completion_length dream, too, goes block by block. So it
  does with `cache`, `threshold` or `factor` (Fast-dLLM, arXiv 2505.22618; see blockwise.py), by which completions are
  no longer what the exact sampler's would be. One's own sampler (docs/own.md) has all fields, and makes of them what it
  will; at temperature 0 it should be greedy.
  """

  # Denoises blocks from left to right; or "dream", the whole completion at once unless block_length says otherwise; or
  # "block", block by block as block-causal models (SDAR, LLaDA 2) are (block_causal.py); or one's own, FILE.py:NAME.
  kind: str = "llada"
  completion_length: int = 256  # tokens of a completion (L)
  # Denoising steps of the whole completion, spread evenly over the blocks where there are any. With threshold or factor
  # they do not count: a block takes at least one, and at most as many as it has tokens. With block they do: a step then
  # commits no fewer tokens than without.
  steps: int = 256
  temperature: float = 1.0  # at which tokens are sampled; 0 is greedy
  # Tokens of a block (K); completion_length for a single one. None: 32, but dream's exact sampler then has no blocks.
  block_length: int | None = None
  # Noise of llada's draws at temperatures above 0. "exact" samples the softmax. "official" is what the published runs
  # drew in bfloat16: noise that never exceeds 5.54, so that improbable tokens are never drawn (see noise.py).
  noise: str = "exact"
  # Subtracted from the logits of end of text and padding while completions are sampled, in predictions and in the
  # confidence in them: against floods of end of text, where blocks fill with it from the end. A chat format's end of
  # turn is free. LLaDA's logits_eos_inf is this at 100, say.
  eos_penalty: float = 0.0
  # llada keeps a step's most confident predictions; or "random", any. With block also "sequential", the first masks.
  remasking: str = "low_confidence"
  cfg_scale: float = 0.0  # llada's guidance; above 0, a second pass with the prompt masked doubles the cost
  # The confidence that dream orders its commits by: "entropy" (the least first), "maskgit_plus" (the probability),
  # "topk_margin" (the lead over the runner-up), or "origin" (none: positions are drawn at random).
  alg: str = "entropy"
  alg_temp: float = 0.0  # above 0, dream draws positions with probability softmax(confidence / alg_temp)
  # dream and block sample no token outside the nucleus, nor beyond the k most probable; None is off. With dream the
  # nucleus is that of all tokens, with block, as in SDAR's code, that of the k.
  top_p: float | None = None
  top_k: int | None = None  # see top_p
  eps: float = 1e-3  # time of dream's last step; times run evenly from 1 to eps, in each block where there are any
  # Keys and values that the first step of each block keeps for its other steps. With "prefix", these compute the block
  # and what is behind it; with "dual", the block alone; with "none", the whole sequence. With "exact", which only block
  # has, prompt and finished blocks are computed once, and steps compute the block alone: the same tokens as "none".
  cache: str = "none"
  threshold: float | None = None  # a step commits all tokens of the block that are surer, and the surest one anyway
  # A step commits the n surest tokens of the block, for the largest n with (n + 1)(1 - c) < factor, where c is the
  # confidence of the nth; and the surest one anyway.
  factor: float | None = None
  # Once every completion of the batch has an end of text in its finished blocks, the others are not computed but filled
  # with it, at confidence 1. Texts up to their end stay the same; what is behind it, which training scores, does not.
  # With block, and with slots, each completion is filled by itself.
  early_stop: bool = False
  # LLaDA 2.1's editing with block: a set token of the block, none of the prompt's, is replaced where another one is
  # predicted and its confidence exceeds this; None is off. It needs threshold. Then steps do not count: each commits a
  # token at least, and a block goes on after its last mask until nothing changes, for at most max_post_steps steps.
  editing_threshold: float | None = None
  max_post_steps: int = 16  # see editing_threshold
  # Prompts that are worked at together, each at its own block; one that is done gives its slot to the next prompt of
  # the batch. Random numbers are then each prompt's own, whatever the slots. None: all at once, until the last is done.
  slots: int | None = None
  own: tuple[tuple[str, Any], ...] = dataclasses.field(default_factory=tuple)  # fields that only one's own sampler has

  def __post_init__(self):
    require(self.is_own or self.kind in (*KINDS, "block"), "sampler.kind",
            f"{self.kind!r} is not one of {', '.join((*KINDS, 'block'))}; one of your own is FILE.py:NAME")
    orders = *REMASKING, "sequential"
    for field, known in (("noise", NOISES), ("remasking", orders), ("alg", ALGORITHMS), ("cache", CACHES)):
      require_one_of(f"sampler.{field}", getattr(self, field), known)
    if self.block_length is None and (self.kind != "dream" or self.is_fast):
      object.__setattr__(self, "block_length", BLOCK_LENGTH)
    for field in ("completion_length", "steps", "block_length", "top_k", "slots"):
      value = getattr(self, field)
      fits = isinstance(value, Integral) and not isinstance(value, bool) and value >= 1
      fits |= field in ("block_length", "top_k", "slots") and value is None
      must_fit(fits, field, f"must be an integer of at least 1, not {value!r}")
      must_fit(value is None or value <= _MOST_TOKENS, field, f"{value} is more than any model's {_MOST_TOKENS} tokens")
    for field in ("temperature", "eos_penalty", "cfg_scale", "alg_temp"):
      value = getattr(self, field)
      fits = is_real(value) and 0 <= value < math.inf
      must_fit(fits, field, f"must be a number and not negative, not {value!r}")
    fits = isinstance(self.max_post_steps, Integral) and not isinstance(self.max_post_steps, bool)
    must_fit(fits and 0 <= self.max_post_steps <= _MOST_TOKENS, "max_post_steps",
             f"must be an integer and not negative, not {self.max_post_steps!r}")
    must_fit(isinstance(self.early_stop, bool), "early_stop", f"must be True or False, not {self.early_stop!r}")
    if self.is_own:
      must_fit(self.slots is None, "slots", f"must be None with {self.kind}, which is handed all prompts at once")
      function = own_code.load(self.kind, "sampler.kind")
      must_fit(callable(function), "kind", f"{self.kind} must be a function, not {function!r:.80}")
      own_code.require_settings(function, "sampler.kind", self.kind, dict(self.own), len(PASSED))
    else:
      must_fit(not self.own, "own", f"{self.kind} has no settings of its own")
      check_together(self)

  def require_same_attention(self, model: DenoiserConfig, field: str = "sampler.kind") -> None:
    """Raises ValueError, one line, unless the sampler is for models that attend as this one does; or one's own."""
    if self.kind == "block":
      require(model.block_length is not None, "sampler.kind", "'block' is for models that attend from block to block;"
              f" of the family {model.family} all tokens see each other: choose one of {', '.join(KINDS)}")
      must_fit(model.block_length == self.block_length, "block_length",
               f"{self.block_length} is not the model's block length; give {model.block_length}")
    elif not self.is_own:
      require(model.block_length is None, field, f"{self.kind}'s sampler knows models whose tokens all see each other;"
              f" those of the family {model.family} attend from block to block: give sampler.kind=block and"
              f" sampler.block_length={model.block_length}")

  @property
  def settings(self) -> dict[str, Any]:
    """All fields with their values, as recipes have them."""
    settings = dataclasses.asdict(self)
    return settings | dict(settings.pop("own"))

  @property
  def is_own(self) -> bool:
    """Whether it is a function of the user's."""
    return own_code.is_own(self.kind)

  @property
  def is_parallel(self) -> bool:
    """Whether the confidence alone says how many tokens a step commits."""
    return self.threshold is not None or self.factor is not None

  @property
  def is_filtered(self) -> bool:
    """Whether some tokens are not sampled because others are more probable."""
    return self.top_p is not None or self.top_k is not None

  @property
  def edits(self) -> bool:
    """Whether set tokens may be replaced."""
    return self.editing_threshold is not None

  @property
  def counts_steps(self) -> bool:
    """Whether `steps` says something."""
    return not (self.is_parallel and self.kind != "block" or self.edits)

  @property
  def has_fixed_steps(self) -> bool:
    """Whether every completion takes `steps`: the block sampler's first and last blocks may need fewer."""
    return not self.is_parallel and self.kind != "block"

  @property
  def is_fast(self) -> bool:
    """Whether any of Fast-dLLM's options is on."""
    return self.cache != "none" or self.is_parallel

  @property
  def predicts_all(self) -> bool:
    """Whether each step can tell a prediction of every masked token: ours compute all of them, one step like another.

    With a cache a step sees a part of the completion; the other options of Fast-dLLM leave steps out.
    """
    return not (self.is_own or self.is_fast or self.early_stop or self.kind == "block" or self.slots)

  @property
  def is_blockwise(self) -> bool:
    """Whether completions are divided into blocks, as far as is known here. With llada one may be all of it."""
    if self.is_own:
      return False
    return self.kind != "dream" or self.is_fast or self.block_length not in (None, self.completion_length)

  @property
  def num_blocks(self) -> int:
    """Blocks of a completion, one where it is not divided."""
    return self.completion_length // self.block_width

  @property
  def block_width(self) -> int:
    """Tokens of a block, all of a completion where it is not divided."""
    return self.block_length if self.is_blockwise else self.completion_length

  @property
  def block_steps(self) -> int:
    """Denoising steps of a block; where confidence says what a step commits, at most so many.

    Each commits a token at least, but for dream's "origin" and the steps that only edit.
    """
    length, steps = self.block_width, self.steps // self.num_blocks
    if not self.counts_steps:
      return length + (self.max_post_steps if self.edits else 0)
    if self.kind == "dream":
      return steps if self.alg == "origin" else len(commits(length, steps, self.eps))
    return min(steps, length)

  @property
  def most_steps(self) -> int:
    """Denoising steps of a completion at most; a block's begin at a multiple of `block_steps`.

    With the block sampler there is one block more: the first may be in part the prompt's, and so may be the last.
    """
    return (self.num_blocks + (self.kind == "block")) * self.block_steps

  @property
  def view_steps(self) -> int:
    """Steps that a rollout's views tell apart: a completion's, or a block's where each view has a state of every block.
    """
    return self.block_steps if self.kind == "block" else self.most_steps

  @property
  def forward_process(self) -> dict[str, int | str | None]:
    """`block_length` and `remasking` of the forward process (`consistent_masks`) whose masks this sampler visits.

    With Dream's `alg_temp` above 0 they are only like those, since the sampler then draws positions by confidence.
    """
    if self.kind != "dream":
      return dict(block_length=self.block_length, remasking=self.remasking)
    block_length = self.block_length if self.is_blockwise else None
    return dict(block_length=block_length, remasking="random" if self.alg == "origin" else "low_confidence")
