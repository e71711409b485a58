"""Completions of many prompts: prompts of similar length together, in batches of one size, over the mesh."""

from collections.abc import Sequence
import dataclasses
import json
import logging

import numpy as np

from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.diffusion.sampling import sample
from gdsd_jax.huggingface.tokenizer import completion_lengths, decode_completions, encode_prompts, stop_token_ids
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.parallel.processes import share_work
from gdsd_jax.parallel.rows import fetch_rows, local_rows, own_rows, spread

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Batch:
  """Prompts that are sampled together.

  Attributes:
    width: what their prompts are padded to.
    indices: of the prompts.
  """

  width: int
  indices: tuple[int, ...]


class Generator:
  """Samples completions of texts with one denoiser.

  Attributes:
    batch_size: prompts at a time; a batch with fewer is filled up, so that few shapes are compiled.
  """

  def __init__(self, denoiser: Denoiser, params, tokenizer, batch_size: int, mesh=None):
    self.denoiser, self.params, self.tokenizer, self.mesh = denoiser, params, tokenizer, mesh
    self.batch_size = batch_size
    self.stop_ids = stop_token_ids(tokenizer, denoiser.config)
    self.compiled = set()  # (config, width) sampled so far

  def plan(self, prompts: Sequence[str], widths: Sequence[int], field: str) -> list[Batch]:
    """Batches of all prompts, narrow ones first. They depend on nothing but the arguments and the batch size.

    Args:
      prompts: texts that hold their special tokens already.
      widths: allowed ones, ascending; each that is needed is compiled once for every sampler.
      field: what the widths are called, for the message.

    Raises:
      ValueError: a prompt exceeds the last width.
    """
    by_width = {}
    for index, prompt in enumerate(prompts):
      length = len(self.tokenizer.encode(prompt, add_special_tokens=False))
      width = next((width for width in widths if width >= length), None)
      if width is None:
        raise ValueError(
          f"{field}: a prompt has {length} tokens, at most {widths[-1]} are allowed: {json.dumps(prompt[:200])}"
        )
      by_width.setdefault(width, []).append(index)
    return [
      Batch(width, tuple(indices[start:start + self.batch_size]))
      for width, indices in sorted(by_width.items())
      for start in range(0, len(indices), self.batch_size)
    ]

  def generate(self, prompts: Sequence[str], width: int, config: SamplerConfig, key) -> tuple[list[str], np.ndarray]:
    """Completions of at most `batch_size` prompts: (texts up to their end, int[B] tokens up to their end)."""
    held = [prompts[i % len(prompts)] for i in local_rows(self.mesh, self.batch_size)]
    encoded = encode_prompts(self.tokenizer, held, (width,), self.denoiser.config.pad_token_id)
    tokens, mask = (spread(self.mesh, self.batch_size, x) for x in encoded)
    if (config, width) not in self.compiled:
      self.compiled.add((config, width))
      steps = "as many steps as it takes" if config.is_parallel else f"{config.steps} steps"
      _log.info("compiling the sampler for %d prompts of up to %d tokens, completions of %d tokens in %s",
                self.batch_size, width, config.completion_length, steps)
    sampled = sample(self.denoiser, self.params, tokens, mask, key, config).tokens

    def decode(rows):
      completions = fetch_rows(sampled, np.array(rows))
      texts = decode_completions(self.tokenizer, completions, self.stop_ids)
      return list(zip(texts, completion_lengths(completions, self.stop_ids).tolist()))

    shared = share_work(self.batch_size, decode, own_rows(self.mesh, self.batch_size))
    texts, counts = zip(*shared[:len(prompts)])
    return list(texts), np.array(counts)
