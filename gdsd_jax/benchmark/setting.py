"""What a benchmark measures: a model, the shapes of its batches, and what it is compared with."""

import dataclasses
import importlib.util
import math
import re
from typing import Any

from gdsd_jax.benchmark.flops import masked_tokens
from gdsd_jax.checks import require, require_at_least, require_int32, require_one_of
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.huggingface.published import architecture, HUB_NAMES
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.models.denoiser import Denoiser, DTYPES
from gdsd_jax.models.lora import LoraConfig
from gdsd_jax.models.quantised import QuantizeConfig
from gdsd_jax.models.remat import REMAT
from gdsd_jax.objectives.objective import Objective
from gdsd_jax.objectives.own import make_objective
from gdsd_jax.parallel.mesh import rounds_finely

MEASUREMENTS = ("sampling", "training", "memory", "views")
# The reference's final norm over the student's, without an adapter. With equal models the KL would have no gradient.
REFERENCE_NORM = 0.99
_100M = DenoiserConfig(  # LLaDA's layout, vocabulary and special tokens on a small body
  vocab_size=126464, hidden_size=320, num_layers=14, num_heads=5, num_kv_heads=5, head_dim=64, mlp_size=960,
  rope_theta=500000.0, norm_epsilon=1e-5, max_positions=4096, mask_token_id=126336, eos_token_id=126081,
  pad_token_id=126081,
)
# The same body, head and vocabulary, attending from block to block, in SDAR's layout.
_100M_BLOCK = dataclasses.replace(_100M, family="sdar", block_length=32, positions_skip_padding=True, qk_norm=True)
_8B = dict(batch=16, prompt_length=400, completion_length=256, block_length=32, steps=256, dtype="bfloat16",
           lora_rank=128)
_HUB_NAMES = {"8b": HUB_NAMES["llada_8b"], "8b_dream": HUB_NAMES["dream_7b"], "8b_sdar": "JetLM/SDAR-8B-Chat"}
_TINY = {  # models of the suite's small one, as the embedded model but for these fields
  "tiny_dream": dict(family="dream", shifted_output=True, positions_skip_padding=True),
  "tiny_sdar": dict(family="sdar", block_length=4, qk_norm=True, positions_skip_padding=True),
}
_DEFAULTS = {  # for each model that a command may name
  "tiny": dict(batch=16, prompt_length=64, completion_length=64, block_length=16, steps=64),
  "100m": dict(batch=8, prompt_length=128, completion_length=128, block_length=32, steps=128),
  "100m_block": dict(batch=8, prompt_length=128, completion_length=256, block_length=32, steps=256, cache="exact",
                     only=("sampling",)),
  "8b": _8B,
  "8b_dream": _8B | {"block_length": None},
}


@dataclasses.dataclass(frozen=True)
class Setting:
  """One setting of `launch/benchmark.py`, checked."""

  model: str  # "tiny" is the embedded one; the others have random weights
  batch: int  # completions that are sampled, and rollouts of an update
  prompt_length: int
  completion_length: int
  block_length: int | None  # None as in `SamplerConfig`
  steps: int
  temperature: float = 0.0
  num_mc: int = 2  # mask samples of a rollout (M)
  objective: str = "gdsd_tlc"
  center_top_k: int | None = None
  dtype: str = "float32"  # in which matrices are multiplied
  lora_rank: int = 0  # adapter that is sampled with and trained; at 0 all weights are trained
  quantize: str | None = None  # how the frozen base is quantised, a kind of `QuantizeConfig`; None: it is not
  accumulation: int = 1
  remat: str = "full"  # what our backward pass computes again, see `Denoiser`
  # Fast-dLLM's, as `threshold`: for a sampler that is measured beside the exact one. Or a block-causal model's "exact".
  cache: str = "none"
  threshold: float | None = None
  repeats: int = 1  # times that each side is measured, one after the other in turn
  only: tuple[str, ...] = MEASUREMENTS
  reference: bool = False  # whether the PyTorch version is measured, too
  profile: str | None = None  # folder for traces of ours

  def __post_init__(self):
    require_at_least(self, "--", batch=1, prompt_length=1, num_mc=1, accumulation=1, repeats=1)
    for name in ("batch", "prompt_length", "num_mc", "repeats"):
      require_int32(f"--{name}", getattr(self, name))
    require(self.lora_rank >= 0, "--lora_rank", f"must not be negative, not {self.lora_rank}")
    require_one_of("--dtype", self.dtype, DTYPES)
    require_one_of("--remat", self.remat, REMAT)
    require(0 < len(self.only) and set(self.only) <= set(MEASUREMENTS), "--only",
            f"must name some of {', '.join(MEASUREMENTS)}, not {','.join(self.only)!r}")
    require(self.batch % self.accumulation == 0, "--accumulation",
            f"{self.accumulation} must divide the batch of {self.batch}")
    longest = self.architecture.max_positions
    require(self.prompt_length + self.completion_length <= longest, "--prompt_length, --completion_length",
            f"their sum exceeds the {longest} positions of the model")
    # These check their own fields.
    _ = self.sampler, self.fast_sampler, self.loss, Denoiser(self.architecture, lora=self.lora)
    if self.reference:
      require(importlib.util.find_spec("torch") is not None, "--reference",
              "PyTorch is not installed; pip install torch, or leave --reference out")
      require(self.architecture.family == "llada", "--reference",
              f"it is a version of LLaDA's loops; --model={self.model} is no LLaDA")
      require(self.loss.name != "espo" or "training" not in self.only, "--reference",
              "it knows the objectives gdsd and gdsd_tlc, not espo")

  @property
  def architecture(self) -> DenoiserConfig:
    ours = {"100m": _100M, "100m_block": _100M_BLOCK}
    if self.model in ours:
      return ours[self.model]
    if self.model in _TINY:
      return dataclasses.replace(architecture("tiny"), **_TINY[self.model])
    return architecture(_HUB_NAMES.get(self.model, self.model))

  @property
  def sampler(self) -> SamplerConfig:
    kind = self.architecture.family if self.architecture.block_length is None else "block"
    return SamplerConfig(kind=kind, completion_length=self.completion_length, steps=self.steps,
                         block_length=self.block_length, temperature=self.temperature)

  @property
  def fast_sampler(self) -> SamplerConfig | None:
    """The sampler with Fast-dLLM's options, where there are any."""
    fields = dict(cache=self.cache, threshold=self.threshold)
    if self.architecture.family == "dream" and self.threshold is not None:
      fields["alg"] = "maskgit_plus"  # a threshold needs a probability, and entropy is none
    fast = dataclasses.replace(self.sampler, **fields)
    return fast if fast.is_fast else None

  @property
  def faster(self) -> str:
    """What reports call the side that samples by `fast_sampler`."""
    return "exact_cache" if self.cache == "exact" else "fast_dllm"

  @property
  def loss(self) -> Objective:
    return make_objective(self.objective, {} if self.center_top_k is None else {"center_top_k": self.center_top_k})

  def scored_in_step(self, platform: str) -> bool:
    """Whether our update makes the student's scores itself there, as a run's would (`RunConfig.scored_in_step`)."""
    return self.loss.scored_in_step(1, rounds_finely(self.dtype, platform))

  @property
  def lora(self) -> LoraConfig | None:
    """Without dropout: both sides then compute the same."""
    return LoraConfig(self.lora_rank, alpha=64.0, dropout=0.0) if self.lora_rank else None

  @property
  def quantized(self) -> QuantizeConfig | None:
    """How the base is quantised: in blocks of 64, or the most below that which divide a small model's widths."""
    widths = self.architecture.hidden_size, self.architecture.mlp_size
    return QuantizeConfig(self.quantize, math.gcd(64, *widths)) if self.quantize else None

  @property
  def held_dtype(self) -> str:
    """The dtype of the weights in memory, chosen as in a run: trained ones are float32."""
    return self.dtype if self.lora_rank else "float32"

  @property
  def masked_tokens(self) -> list[int]:
    """For each denoising step, the tokens of a completion that it may commit."""
    return masked_tokens(self.sampler)


def setting(model: str, **fields: Any) -> Setting:
  """Setting of a model with its defaults where a field is None. Raises ValueError, one line naming the flag."""
  require_one_of("--model", model, tuple(_DEFAULTS))
  given = {name: value for name, value in fields.items() if value is not None}
  require(model != "100m_block" or set(given.get("only", ("sampling",))) == {"sampling"}, "--only",
          f"must be sampling with --model={model}, whose cache is what is measured")
  try:
    return Setting(model=model, **{**_DEFAULTS[model], **given})
  except ValueError as error:
    message = str(error).replace("model.lora.", "--lora_").replace("objective.name:", "--objective:")
    raise ValueError(re.sub(r"^(sampler\.|objective\.)", "--", message)) from None
