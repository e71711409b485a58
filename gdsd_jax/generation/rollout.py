"""Rollouts of a task: examples to prompts, prompts to completions, completions to rewards."""

from collections.abc import Mapping, Sequence
import copy
import dataclasses
import functools
import logging
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gdsd_jax.diffusion.config import Rollout, SamplerConfig
from gdsd_jax.diffusion.sampling import sample
from gdsd_jax.huggingface.tokenizer import (
  chat_prompt,
  completion_lengths,
  decode_completions,
  encode_prompts,
  prompt_lengths,
  stop_token_ids,
)
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.parallel.mesh import batch_sharding
from gdsd_jax.parallel.processes import gather_json, RemoteError, share_work
from gdsd_jax.parallel.rows import fetch_rows, local_rows, own_rows, spread
from gdsd_jax.tasks import Task

_log = logging.getLogger(__name__)


class RewardError(RuntimeError):
  """A reward function raised; the message names the task and the cause."""


@dataclasses.dataclass(frozen=True)
class SampledRollouts:
  """B rollouts on the device, which may still be at work on them.

  Attributes:
    examples: what each of them answers.
    prompt, prompt_mask: int32[B, P] and bool[B, P], left-padded.
    rollout: tokens and confidence.
    parts: what was sampled at a time, in that order: (rows, int[b] of the B; their tokens, int32[b, L]).
    started: when sampling began, by time.monotonic.
  """

  examples: Sequence[Mapping[str, Any]]
  prompt: jax.Array
  prompt_mask: jax.Array
  rollout: Rollout
  parts: Sequence[tuple[np.ndarray, jax.Array]]
  started: float


@dataclasses.dataclass(frozen=True)
class ScoredRollouts:
  """B rollouts with their text and rewards.

  Attributes:
    prompt, prompt_mask: int32[B, P] and bool[B, P], left-padded.
    rollout: tokens and confidence, on the device.
    sampling_seconds: from the beginning of sampling until the last token was seen on the host.
    completions: text of each completion, up to its end.
    lengths: int[B] tokens of each completion, up to its end.
    rewards: named rewards, float32[B] each.
  """

  prompt: jax.Array
  prompt_mask: jax.Array
  rollout: Rollout
  sampling_seconds: float
  completions: list[str]
  lengths: np.ndarray
  rewards: dict[str, np.ndarray]

  @functools.cached_property
  def total_reward(self) -> np.ndarray:
    """float32[B], the sum of the named rewards."""
    return np.sum(list(self.rewards.values()), axis=0, dtype=np.float32)


class RolloutSampler:
  """Samples and scores completions of a task's examples with one denoiser and sampler."""

  def __init__(self, denoiser: Denoiser, tokenizer, task: Task, config: SamplerConfig, prompt_buckets: Sequence[int],
               mesh=None):
    self.denoiser, self.tokenizer, self.task, self.config, self.mesh = denoiser, tokenizer, task, config, mesh
    self.prompt_buckets = tuple(prompt_buckets)
    self.stop_ids = stop_token_ids(tokenizer, denoiser.config)
    self._compiled = set()
    split = None if mesh is None else batch_sharding(mesh)
    self._join = jax.jit(functools.partial(_join, denoiser.config.pad_token_id), out_shardings=split)

  def with_config(self, **changes) -> "RolloutSampler":
    """The same sampler with other settings (greedy, say)."""
    other = copy.copy(self)  # shares the record of what is compiled
    other.config = dataclasses.replace(self.config, **changes)
    return other

  def prompt_lengths(self, examples: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Tokens of each example's prompt. Returns int[N]."""
    return prompt_lengths(self.tokenizer, [chat_prompt(self.tokenizer, self.task.messages(e)) for e in examples])

  def encode(self, examples: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as left-padded (tokens, mask). Raises ValueError when one exceeds the largest bucket."""
    prompts = [chat_prompt(self.tokenizer, self.task.messages(example)) for example in examples]
    return encode_prompts(self.tokenizer, prompts, self.prompt_buckets, self.denoiser.config.pad_token_id)

  def sample(self, params, examples: Sequence[Mapping[str, Any]], key, microbatches: int = 1) -> SampledRollouts:
    """One completion for each example, on the device. Returns before it is computed.

    Args:
      params: of the denoiser.
      examples: B of them.
      key: random key.
      microbatches: equal parts, sampled one after the other, each with a key of its own. Each holds prompts of like
        length, and is padded to the bucket that its own longest one needs.
    """
    started = time.monotonic()
    parts = self._parts(examples, microbatches)
    keys = [key] if microbatches == 1 else jax.random.split(key, microbatches)
    sampled = []
    for (prompt, mask), part_key in zip(self._prompts(examples, parts), keys):
      if (self.config, prompt.shape) not in self._compiled:
        self._compiled.add((self.config, prompt.shape))
        greedy = "greedy " if self.config.temperature == 0 else ""
        _log.info("compiling the %ssampler for %d prompts of up to %d tokens", greedy, *prompt.shape)
      sampled.append((prompt, mask, sample(self.denoiser, params, prompt, mask, part_key, self.config)))
    # Joined right after them, not when it is needed: the device may be at the next rollouts by then.
    whole = sampled[0] if microbatches == 1 else self._join(sampled, np.argsort(np.concatenate(parts)))
    tokens = [rollout.tokens for _, _, rollout in sampled]
    return SampledRollouts(examples, *whole, tuple(zip(parts, tokens)), started)

  def restore(self, examples: Sequence[Mapping[str, Any]], rollout: Rollout) -> SampledRollouts:
    """What `sample` returned for these examples, of which a checkpoint keeps the rollout alone."""
    rows = np.arange(len(examples))
    [(prompt, mask)] = self._prompts(examples, [rows])
    return SampledRollouts(examples, prompt, mask, rollout, ((rows, rollout.tokens),), time.monotonic())

  def _parts(self, examples, microbatches: int) -> list[np.ndarray]:
    """Rows of each part, ascending; the part of the shortest prompts first. Rollouts of one prompt stay neighbours."""
    if microbatches == 1:
      return [np.arange(len(examples))]
    by_length = np.argsort(self.prompt_lengths(examples), kind="stable")
    return [np.sort(rows) for rows in np.split(by_length, microbatches)]

  def _prompts(self, examples, parts: Sequence[np.ndarray]) -> list[tuple[jax.Array, jax.Array]]:
    """(prompt, prompt_mask) of each part, over the mesh."""
    local = [rows[local_rows(self.mesh, len(rows))] for rows in parts]
    encoded = [self.encode([examples[row] for row in rows]) for rows in local]
    # Asked for all parts at once, before any is sampled: between several processes this is a program of their devices,
    # and would wait for what these are at.
    widths = np.max(gather_json([prompt.shape[1] for prompt, _ in encoded]), axis=0).tolist()
    pad, laid_out = self.denoiser.config.pad_token_id, []
    for rows, width, (prompt, mask) in zip(parts, widths, encoded):
      padding = [(0, 0), (width - prompt.shape[1], 0)]
      prompt, mask = np.pad(prompt, padding, constant_values=pad), np.pad(mask, padding)
      laid_out.append((spread(self.mesh, len(rows), prompt), spread(self.mesh, len(rows), mask)))
    return laid_out

  def score(self, sampled: SampledRollouts) -> ScoredRollouts:
    """Rewards of rollouts, each process scoring its own. Raises RewardError when a reward function raises.

    The rewards of a part are computed on the host while the device samples the next one. Processes tell each other of
    all parts at once, after the last: that is a program of their devices, which would wait for these.
    """
    shares = [own_rows(self.mesh, len(rows)) for rows, _ in sampled.parts]
    own = np.concatenate([rows[share] for (rows, _), share in zip(sampled.parts, shares)])
    seen = [time.monotonic()]  # when each part was

    def work(_):
      values = []
      for (rows, tokens), share in zip(sampled.parts, shares):
        tokens = fetch_rows(tokens, share)
        seen.append(time.monotonic())
        values += self._rewards(tokens, [sampled.examples[row] for row in rows[share]])
      return values

    try:
      shared = share_work(len(sampled.examples), work, own)
    except RemoteError as error:
      raise RewardError(str(error)) from error
    completions, lengths, scored = zip(*shared)
    rewards = {name: np.array([s[name] for s in scored], np.float32) for name in scored[0]}
    return ScoredRollouts(
      prompt=sampled.prompt,
      prompt_mask=sampled.prompt_mask,
      rollout=sampled.rollout,
      sampling_seconds=seen[-1] - sampled.started,
      completions=list(completions),
      lengths=np.array(lengths),
      rewards=rewards,
    )

  def _rewards(self, tokens: np.ndarray, examples) -> list[tuple[str, int, dict[str, float]]]:
    """(text, tokens up to its end, rewards) of each completion."""
    completions = decode_completions(self.tokenizer, tokens, self.stop_ids)
    lengths = completion_lengths(tokens, self.stop_ids).tolist()
    try:
      scored = self.task.score_batch(completions, examples)
    except Exception as error:  # user code: whatever it raises, the run must be able to go on
      raise RewardError(f"reward of task {self.task.name} raised {type(error).__name__}: {error}") from error
    scored = [{name: float(value) for name, value in rewards.items()} for rewards in scored]
    return list(zip(completions, lengths, scored))

  def __call__(self, params, examples, key) -> ScoredRollouts:
    return self.score(self.sample(params, examples, key))


def _join(pad_token_id: int, parts, order) -> tuple[jax.Array, jax.Array, Rollout]:
  """Parts of (prompt, prompt_mask, rollout) as one, all prompts as wide as the widest. order: int[B], which rows."""
  width = max(prompt.shape[1] for prompt, _, _ in parts)

  def widen(array, value):
    return jnp.pad(array, [(0, 0), (width - array.shape[1], 0)], constant_values=value)

  parts = [(widen(prompt, pad_token_id), widen(mask, False), rollout) for prompt, mask, rollout in parts]
  return jax.tree.map(lambda *arrays: jnp.concatenate(arrays)[order], *parts)
