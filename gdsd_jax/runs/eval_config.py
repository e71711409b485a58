"""How a run is evaluated, while training and by launch/evaluate.py; section `eval` of a recipe."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from gdsd_jax.checks import require, require_at_least, require_buckets, require_one_of, require_whole
from gdsd_jax.diffusion.config import SamplerConfig

PROMPTS = ("evaluation", "training")
_SAMPLERS_OWN = ("temperature", "top_p", "top_k", "alg_temp", "remasking", "cfg_scale")  # by the same names there
_FAST = ("cache", "threshold", "factor")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Evaluations while training, and as in the paper by launch/evaluate.py; section `eval`.

  Validation while training asks as training does, for as many tokens in as many steps: it says what has been learnt of
  that, and which checkpoint is best. The prompts and lengths below belong to the test problems, which only
  launch/evaluate.py sees.
  """

  every: int = 100  # iterations; also before the first and after the last
  num_examples: int = 256  # problems of the validation split that are evaluated while training
  batch_size: int = 64  # completions that are sampled together
  # These are for all evaluations. At temperature 0, greedy; above it completions are drawn, with keys made of the run's
  # seed. The published number of Dream-Instruct on GSM8K, MATH and code is at 0.1 and 0.9; at 0 its GSM8K falls from
  # 81.8 to 35.0 (github.com/DreamLM/Dream, issue 56). All others are greedy.
  temperature: float = 0.0
  top_p: float | None = None  # dream's or block's, where it samples; None is off
  top_k: int | None = None  # likewise
  # The others are for launch/evaluate.py alone, which takes the whole test split. What is not here, the sampler's kind,
  # noise, eps and editing, is that of the section `sampler`, whose own choices of tokens and positions are those of
  # rollouts.
  alg: str | None = None  # dream's confidence; None: "entropy", or with a threshold or factor sampler.alg
  alg_temp: float = 0.0  # as sampler.alg_temp
  remasking: str = "low_confidence"  # llada's, as sampler.remasking
  cfg_scale: float = 0.0  # as sampler.cfg_scale
  eos_penalty: float | None = None  # None: sampler.eos_penalty
  # Fast-dLLM's options. None of the three: those of the section `sampler`; cache="none" is the exact sampler.
  cache: str | None = None
  threshold: float | None = None  # as sampler.threshold
  factor: float | None = None  # as sampler.factor
  # So many of the test problems, drawn by numpy's seed 42 as the official evaluation draws 256 of Sudoku's 500; None is
  # all, in their order.
  test_size: int | None = None
  lengths: tuple[int, ...] = (128, 256, 512)  # completion lengths; the accuracy is the best of them
  steps_per_token: float = 0.5  # denoising steps, as a share of the completion length
  # As sampler.block_length. None: 32 with llada; others have the blocks of the section `sampler`, dream if it has any.
  block_length: int | None = None
  prompt_buckets: tuple[int, ...] = (128, 256, 512, 1024)  # only those that some prompt needs are compiled
  prefill: str = ""  # text that every completion begins with
  # How problems are asked: as the official "evaluation" asks them (`Task.evaluation_messages`), or as "training" does.
  prompt: str = "evaluation"

  def __post_init__(self):
    require_at_least(self, "eval.", every=1, num_examples=1, batch_size=1)
    require_whole("eval.lengths", self.lengths)
    different = len(self.lengths) > 0 and len(set(self.lengths)) == len(self.lengths)
    require(different, "eval.lengths", f"must be different lengths, at least one, not {tuple(self.lengths)}")
    share = self.steps_per_token
    require(0 < share <= 1, "eval.steps_per_token", f"must lie in (0, 1], not {share}")
    require_buckets("eval.prompt_buckets", self.prompt_buckets)
    require_one_of("eval.prompt", self.prompt, PROMPTS)
    size = self.test_size
    require(size is None or size >= 1, "eval.test_size", f"must be at least 1, or None for all, not {size}")
    for field in ("top_p", "top_k"):
      require(getattr(self, field) is None or self.temperature > 0, f"eval.{field}",
              "needs eval.temperature above 0, or to be None: greedy completions have no use for it")

  def validation(self, sampler: SamplerConfig) -> dict[str, Any]:
    """What is other in validation than in the rollouts of `sampler`. Raises ValueError where that is no sampler."""
    drawn = {"top_p": self.top_p, "top_k": self.top_k} if self.temperature else {}
    changes = {"temperature": self.temperature, **drawn}
    try:
      dataclasses.replace(sampler, **changes)
    except ValueError as error:
      raise ValueError(_renamed(error, changes) or str(error)) from None
    return changes

  def samplers(self, sampler: SamplerConfig) -> dict[int, SamplerConfig]:
    """Completion length -> the sampler of launch/evaluate.py, for a run whose rollouts are by `sampler`.

    It stops early where it goes block by block: only texts up to their end count here. Raises ValueError, naming the
    field of the section.
    """
    given, samplers, block_length = self._given(sampler), {}, self.block_length
    if block_length is None and sampler.kind in ("dream", "block") and sampler.is_blockwise:
      block_length = sampler.block_length
    for length in self.lengths:
      try:
        made = SamplerConfig(kind=sampler.kind, completion_length=length, steps=round(length * self.steps_per_token),
                             block_length=block_length, noise=sampler.noise, eps=sampler.eps, own=sampler.own,
                             editing_threshold=sampler.editing_threshold, max_post_steps=sampler.max_post_steps,
                             slots=sampler.slots, **given)
        samplers[length] = dataclasses.replace(made, early_stop=made.is_blockwise)
      except ValueError as error:
        said = (f"eval.lengths: {length} at eval.steps_per_token={self.steps_per_token} and"
                f" eval.block_length={block_length} is no sampler: {error}")
        raise ValueError(_renamed(error, given) or said) from None
    return samplers

  def _given(self, sampler: SamplerConfig) -> dict[str, Any]:
    """What the sampler of evaluations has of this section, and of Fast-dLLM's options."""
    given = {name: getattr(self, name) for name in _SAMPLERS_OWN}
    theirs = sampler if (self.cache, self.threshold, self.factor) == (None, None, None) else self
    given |= {name: getattr(theirs, name) for name in _FAST}
    given["cache"] = "none" if theirs.cache is None else theirs.cache
    given["eos_penalty"] = sampler.eos_penalty if self.eos_penalty is None else self.eos_penalty
    by_probability = given["threshold"] is not None or given["factor"] is not None  # which entropy is not
    otherwise = sampler.alg if by_probability else "entropy"
    return given | {"alg": otherwise if self.alg is None else self.alg}


def _renamed(error: ValueError, given: Mapping[str, Any]) -> str | None:
  """The message about a sampler with this section's name of the field; None where the field is none of the `given`."""
  field, _, said = str(error).partition(": ")
  return f"eval.{field.removeprefix('sampler.')}: {said}" if field.removeprefix("sampler.") in given else None
