"""Text to completions over a mesh: prompts are encoded, sampled and decoded here for training and evaluation alike."""

from collections.abc import Callable, Iterable, Sequence
import contextlib
from typing import Any

import jax
import numpy as np

from gdsd_jax.compiling import compiling
from gdsd_jax.diffusion.blockwise import sample
from gdsd_jax.diffusion.config import Rollout, SamplerConfig
from gdsd_jax.diffusion.own import check_tokens
from gdsd_jax.huggingface import tokenizer as text
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.parallel.processes import gather_json, share_work
from gdsd_jax.parallel.rows import fetch_rows, local_rows, own_rows, spread


class Generator:
  """Samples completions of texts, which hold their special tokens already, by one denoiser over one mesh.

  Attributes:
    compiled: (SamplerConfig, shape of the prompts) sampled so far.
  """

  def __init__(self, denoiser: Denoiser, tokenizer, mesh=None):
    self.denoiser, self.tokenizer, self.mesh = denoiser, tokenizer, mesh
    self.stop_ids = text.stop_token_ids(tokenizer, denoiser.config)
    self.compiled = set()

  def encode(self, prompts: Sequence[str], parts: Sequence[np.ndarray], buckets: Sequence[int]):
    """Prompts over the mesh: for each part, left-padded tokens int32[b, P] and mask bool[b, P], False at padding.

    A part is rows of the prompts, int[b], and as wide as its own longest one needs; buckets are the allowed widths,
    ascending. Collective. Raises ValueError if a prompt exceeds the largest.
    """
    pad_token_id, laid_out = self.denoiser.config.pad_token_id, []
    local = [rows[local_rows(self.mesh, len(rows))] for rows in parts]
    encoded = [text.encode_prompts(self.tokenizer, [prompts[i] for i in rows], buckets, pad_token_id) for rows in local]
    # Asked for all parts at once, before any is sampled: between several processes this is a program of their devices,
    # and would wait for what these are at.
    widths = np.max(gather_json([tokens.shape[1] for tokens, _ in encoded]), axis=0).tolist()
    for rows, width, (tokens, mask) in zip(parts, widths, encoded):
      padding = [(0, 0), (width - tokens.shape[1], 0)]
      tokens, mask = np.pad(tokens, padding, constant_values=pad_token_id), np.pad(mask, padding)
      laid_out.append((spread(self.mesh, len(rows), tokens), spread(self.mesh, len(rows), mask)))
    return laid_out

  def sample(self, params, prompt: jax.Array, prompt_mask: jax.Array, key, config: SamplerConfig,
             record: frozenset[str] = frozenset()) -> Rollout:
    """One completion for each encoded prompt, on the device. Returns before it is computed."""
    told = contextlib.nullcontext()
    if (config, prompt.shape) not in self.compiled:
      self.compiled.add((config, prompt.shape))
      greedy, (count, width) = "greedy " if config.temperature == 0 else "", prompt.shape
      steps = f"{config.steps} steps" if config.has_fixed_steps else "as many steps as it takes"
      told = compiling(f"the {greedy}sampler ({count} prompts of up to {width} tokens, completions of"
                       f" {config.completion_length} in {steps})")
    with told:
      return sample(self.denoiser, params, prompt, prompt_mask, key, config, record)

  def complete(
    self, params, prompts: Sequence[str], buckets: Sequence[int], config: SamplerConfig, key, batch_size: int
  ) -> tuple[list[str], np.ndarray]:
    """Texts of a batch's completions up to their end, and their tokens up to there, int[B]. Collective.

    The batch is filled up to `batch_size` with its own prompts.
    """
    filled = np.arange(batch_size) % len(prompts)
    [(prompt, mask)] = self.encode(prompts, [filled], buckets)
    tokens = self.sample(params, prompt, mask, key, config).tokens
    texts, ids, _ = self.decode([(np.arange(len(prompts)), tokens)], config)
    return texts, np.array([len(tokens) for tokens in ids])

  def decode(
    self, parts: Sequence[tuple[np.ndarray, jax.Array]], config: SamplerConfig, look: Callable[..., list] | None = None
  ) -> tuple[list[str], list[list[int]], list[Any]]:
    """Texts of sampled completions, each process reading its own; a part is read while the next is sampled. Collective.

    Args:
      parts: what was sampled at a time, in that order: rows, int[b] of the B completions, and tokens, int32[b, L]. Of
        more tokens than rows the last ones are left unread.
      config: of the sampler that they come from.
      look: gives a JSON value for each completion of a part, from their rows, texts and token ids up to the end of
        each; without it they are None.

    Returns:
      Texts up to their end, token ids up to there, and the values of `look`, known to every process.
      Where `look` raises, so does this, and in the other processes RemoteError; and where `own.check_tokens` does.
    """

    def read(rows, tokens):
      check_tokens(tokens, config, self.denoiser.config)
      ids = text.completion_ids(tokens, self.stop_ids)
      texts = text.texts_of(self.tokenizer, ids)
      return zip(texts, ids, look(rows, texts, ids) if look else [None] * len(texts))

    texts, ids, values = zip(*self.of_rows(parts, read))
    return list(texts), list(ids), list(values)

  def of_rows(self, parts: Sequence[tuple[np.ndarray, jax.Array]], read: Callable[..., Iterable]) -> list[Any]:
    """read(rows, tokens) of each part as in `decode`, which gives a JSON value for each row, known to every process.

    A process reads its own rows. Collective. Raises as `decode`.
    """
    shares = [own_rows(self.mesh, len(tokens)) for _, tokens in parts]
    shares = [share[share < len(rows)] for share, (rows, _) in zip(shares, parts)]

    def work(_):
      return [value for (rows, tokens), share in zip(parts, shares)
              for value in read(rows[share], fetch_rows(tokens, share))]

    # Processes tell each other of all parts at once, after the last: that is a program of their devices, too.
    own = np.concatenate([rows[share] for (rows, _), share in zip(parts, shares)])
    return share_work(sum(len(rows) for rows, _ in parts), work, own)
