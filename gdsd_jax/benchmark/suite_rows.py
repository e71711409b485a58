"""What the suite measures on one accelerator, in order of worth: its rows, each with a side, a setting and a limit.

Denoising steps of an exact sampler are all alike. Where a whole completion would take long, fewer steps are measured,
which commit more tokens each; the table says so, and counts as many steps as the setting has.
"""

import dataclasses
from typing import Any, NamedTuple

from gdsd_jax.benchmark.setting import Setting
from gdsd_jax.diffusion.config import SamplerConfig

SIDES = ("ours", "torch")


class Row(NamedTuple):
  """One measurement. It has a process with all rows next to it whose `place` is the same."""

  name: str
  side: str  # one of SIDES
  measure: str  # the method of `suite_ours.Ours` or `suite_torch.Torch` that makes it
  setting: Setting
  limit: float  # seconds, what is compiled included
  options: dict[str, Any] = {}
  flags: str = ""  # XLA's, besides those of the suite

  @property
  def key(self) -> str:
    return f"{self.name}.{self.side}"

  @property
  def place(self) -> tuple[str | None, ...]:
    """What rows have in common that follow one another in one process: the weights are made once for all."""
    return self.side, self.setting.model, self.setting.quantize, self.flags


@dataclasses.dataclass(frozen=True)
class Sizes:
  """How large the models and batches of a suite are."""

  models: tuple[str, str, str]  # LLaDA's, Dream's and SDAR's, by the names of `Setting`
  prompt: int
  lengths: tuple[int, int]  # of completions, one token a denoising step
  block: int
  dtype: str
  rank: int  # of the adapter that is trained
  rollouts: int  # of one RL step
  microbatches: int  # of an update on these
  updates: int  # of one RL step
  batch: int
  some: int  # denoising steps in the place of a whole completion
  few: int  # the same where a step takes longer yet


SUITES = {
  "gpu": Sizes(("8b", "8b_dream", "8b_sdar"), 400, (256, 512), 32, "bfloat16", 128, rollouts=12, microbatches=3,
               updates=12, batch=16, some=64, few=16),
  # Everything that the other does, within two minutes of a CPU: to try it.
  "tiny": Sizes(("tiny", "tiny_dream", "tiny_sdar"), 16, (16, 32), 8, "float32", 4, rollouts=4, microbatches=2,
                updates=2, batch=4, some=8, few=4),
}


def rows_of(suite: str) -> list[Row]:
  """All rows of a suite, the most telling first."""
  sizes = SUITES[suite]
  llada, dream, sdar = sizes.models
  short, long = sizes.lengths
  base = dict(batch=1, prompt_length=sizes.prompt, block_length=sizes.block, dtype=sizes.dtype, objective="gdsd")
  of = lambda model=llada, length=short, **fields: Setting(
    model, **{**base, "completion_length": length, "steps": length, **fields})
  fast = dict(cache="dual", threshold=0.9)
  adapted = dict(batch=sizes.rollouts, lora_rank=sizes.rank)
  update = of(**adapted, accumulation=sizes.microbatches)
  some, few = {"steps": sizes.some}, {"steps": sizes.few}
  both = lambda name, measure, setting, limits, options=({}, {}): [
    Row(name, side, measure, setting, limit, chosen) for side, limit, chosen in zip(SIDES, limits, options)]
  pairs = [
    both("product", "product", of(), (60, 40)),
    both("sample_short", "sampling", of(), (150, 60), ({}, some)),
    both("sample_long", "sampling", of(length=long), (120, 60), ({}, some)),
    both("update", "update", update, (200, 90)),
    both("rollouts", "sampling", of(**adapted), (120, 90), (few, few)),
    both("batch", "sampling", of(batch=sizes.batch), (120, 90), (few, few)),
  ]
  ours, torch = ([pair[i] for pair in pairs] for i in range(2))
  mine = lambda name, measure, setting, limit, options={}, flags="": Row(
    name, "ours", measure, setting, limit, options, flags)
  return [
    *ours[:2],
    mine("fast_short", "sampling", of(**fast), 100),
    *ours[2:5],
    *torch[:5],
    mine("defaults_short", "sampling", of(), 120, some, _DEFAULTS),
    mine("defaults_fast", "sampling", of(**fast), 120, {}, _DEFAULTS),
    mine("attention", "attention", of(batch=sizes.batch), 100),
    ours[5],
    mine("fast_long", "sampling", of(length=long, **fast), 100),
    mine("sdar_exact_cache", "sampling", of(sdar, block_length=4, cache="exact"), 150),
    mine("sdar_no_cache", "sampling", of(sdar, block_length=4), 150, some),
    *(row for kind in ("int8", "nf4") for row in (
      mine(f"sample_short_{kind}", "sampling", of(quantize=kind), 120, few),
      mine(f"fast_short_{kind}", "sampling", of(quantize=kind, **fast), 120),
      mine(f"rollouts_{kind}", "sampling", of(quantize=kind, **adapted), 120, few),
      mine(f"update_{kind}", "update", dataclasses.replace(update, quantize=kind), 200),
    )),
    mine("dream", "sampling", of(dream, block_length=None), 150, some),
    torch[5],
    mine("views", "views", update, 200),
  ]


# The suite's flags undone: XLA as it is without any.
_DEFAULTS = "--xla_gpu_enable_triton_gemm=true --xla_gpu_dot_merger_threshold_mb=32"


def in_steps(setting: Setting, steps: int | None) -> SamplerConfig:
  """The sampler of a setting, in so many denoising steps where that is given."""
  config = setting.fast_sampler or setting.sampler
  return config if steps is None else dataclasses.replace(config, steps=steps)


def per_step(setting: Setting, seconds: float, steps: int) -> dict[str, float]:
  """What a batch of completions takes, which was measured in some of its denoising steps, all alike."""
  whole = seconds / steps * setting.steps
  return {"seconds_per_step": seconds / steps,
          "tokens_per_second": setting.batch * setting.completion_length / whole}
