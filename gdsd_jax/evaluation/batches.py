"""Batches of prompts that are evaluated together: few shapes, so that few are compiled."""

from collections.abc import Sequence
import dataclasses
import json

import numpy as np

from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.generation.generator import Generator
from gdsd_jax.huggingface.tokenizer import prompt_lengths


@dataclasses.dataclass(frozen=True)
class Batch:
  """Prompts that are sampled together: the tokens that each is padded to, and their places among all prompts."""

  width: int
  indices: tuple[int, ...]


def plan_batches(tokenizer, prompts: Sequence[str], widths: Sequence[int], batch_size: int, field: str) -> list[Batch]:
  """Batches of all prompts, narrow ones first. They depend on nothing but the arguments.

  Args:
    tokenizer: counts their tokens.
    prompts: N texts.
    widths: allowed widths, ascending; each that is needed is compiled once for every sampler.
    batch_size: the most prompts of a batch.
    field: what the widths are called, for the message.

  Raises:
    ValueError: a prompt exceeds the last width.
  """
  by_width = {}
  for index, length in enumerate(prompt_lengths(tokenizer, prompts).tolist()):
    width = next((width for width in widths if width >= length), None)
    if width is None:
      raise ValueError(
        f"{field}: a prompt has {length} tokens, at most {widths[-1]} are allowed: {json.dumps(prompts[index][:200])}"
      )
    by_width.setdefault(width, []).append(index)
  return [
    Batch(width, tuple(indices[start:start + batch_size]))
    for width, indices in sorted(by_width.items())
    for start in range(0, len(indices), batch_size)
  ]


def generate(
  generator: Generator, params, prompts: Sequence[str], width: int, config: SamplerConfig, key, batch_size: int
) -> tuple[list[str], np.ndarray]:
  """Completions of a batch, which is filled up to `batch_size` with its own prompts. Collective.

  Returns:
    Texts up to their end, and their tokens up to there, int[B].
  """
  filled = np.arange(batch_size) % len(prompts)
  [(prompt, mask)] = generator.encode(prompts, [filled], (width,))
  tokens = generator.sample(params, prompt, mask, key, config).tokens
  texts, lengths, _ = generator.decode([(np.arange(len(prompts)), tokens)])
  return texts, lengths
