"""Rollouts of a recipe in slots beside those in whole batches: the same problems, in one process, in turn."""

import dataclasses
import functools
import statistics
from typing import Any

import jax
import numpy as np

from gdsd_jax.benchmark.meter import measured, process_memory
from gdsd_jax.checks import require
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.generation.rollout import RolloutSampler
from gdsd_jax.generation.slot_use import slot_use
from gdsd_jax.huggingface.tokenizer import load_tokenizer
from gdsd_jax.parallel.mesh import make_mesh
from gdsd_jax.runs.config import require_prompts, RunConfig
from gdsd_jax.runs.weights import load_model
from gdsd_jax.tasks import get_task


def compare(config: RunConfig, slots: int, prompts: int, repeats: int) -> dict[str, Any]:
  """What it takes to sample completions of the first `prompts` problems of a recipe, as JSON values.

  In batches of as many as a step of the recipe samples together, and all of them in slots; after a first round of each,
  which compiles. Returns for either side the medians of `seconds` and `cpu_seconds`, of `sampler_passes`, and
  `text_tokens`, up to the end of the texts; the rest of `slot_use` of the slots, and `worked`, their passes that did
  work; `ratio` and `cpu_ratio` of text tokens in a second; and `at_most`, what the ratio would be with slots that never
  wait, passes that cost the same by the sequence, and texts equally long on both sides.
  Raises ValueError, one line naming the flag.
  """
  size = config.rollouts_per_step // config.rollouts.microbatches
  require(prompts >= 1 and prompts % size == 0, "--batch", f"{prompts} must be a multiple of the {size} rollouts that a"
          " step samples together, the batch that slots are compared with")
  require(repeats >= 1, "--repeats", f"must be at least 1, not {repeats}")
  require_prompts(dataclasses.replace(config.sampler, slots=slots), "--batch", prompts)
  mesh = make_mesh(**vars(config.mesh))
  denoiser, params = load_model(config.model, config.seed, mesh)
  task = get_task(config.task.name, **config.task.options)
  problems = task.examples("train")
  examples = [problems[row % len(problems)] for row in range(prompts)]
  batched = RolloutSampler(denoiser, load_tokenizer(config.model.folder, denoiser.config), task, config.sampler,
                           config.rollouts.prompt_buckets, mesh)
  slotted = batched.with_config(slots=slots)
  batched.needs, slotted.needs = frozenset({"steps"}), frozenset({"passes"})

  def sampled(sampler, count, key):
    parts = [sampler.sample(params, examples[first:first + count], jax.random.fold_in(key, first))
             for first in range(0, prompts, count)]
    jax.block_until_ready([part.rollout.tokens for part in parts])
    return parts

  sides, found = {"batches": (batched, size), "slots": (slotted, prompts)}, {"batches": [], "slots": []}
  for number in range(repeats + 1):
    for side, (sampler, count) in sides.items():
      parts, numbers = measured(functools.partial(sampled, sampler, count, jax.random.key(number)), process_memory())
      numbers["text_tokens"] = int(sum(np.sum(sampler.grade(part).lengths) for part in parts))
      if side == "slots":
        numbers |= slot_use(parts[0].rollout.passes, slots)
        numbers["worked"] = slots * numbers["sampler_passes"] * numbers["slot_occupancy"]
      else:
        numbers["sampler_passes"] = sum(_passes(np.asarray(part.rollout.steps), config.sampler) for part in parts)
      if number:
        found[side].append(numbers)
  result = {side: {name: statistics.median(one[name] for one in numbers) for name in numbers[0]}
            for side, numbers in found.items()}
  speed = lambda side, name: result[side]["text_tokens"] / result[side][name]
  parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
  return {"parameters": parameters, "prompts": prompts, "batch": size, "slot_count": slots, **result,
          "at_most": size * result["batches"]["sampler_passes"] / result["slots"]["worked"],
          **{name: speed("slots", of) / speed("batches", of) for name, of in (("ratio", "seconds"),
                                                                              ("cpu_ratio", "cpu_seconds"))}}


def _passes(steps, sampler: SamplerConfig) -> int:
  """How many passes a batch took, of when its tokens were unmasked, int[B, L], some in each pass."""
  return len(np.unique(steps[steps < sampler.most_steps]))  # what an early stop fills was unmasked in none


def line(result: dict[str, Any]) -> str:
  """A result of `compare` as a sentence."""
  one, other = result["batches"], result["slots"]
  return (f"{result['prompts']} completions: {one['seconds']:.2f} s ({one['cpu_seconds']:.2f} s of CPU) in batches of"
          f" {result['batch']}, {other['seconds']:.2f} s ({other['cpu_seconds']:.2f}) in {result['slot_count']} slots,"
          f" {result['ratio']:.2f} ({result['cpu_ratio']:.2f}) times as many tokens of text a second, at most"
          f" {result['at_most']:.2f}; occupancy {other['slot_occupancy']:.3f},"
          f" {other['slot_occupancy_queued']:.3f} while prompts waited")
