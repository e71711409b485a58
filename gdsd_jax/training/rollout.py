"""Rollouts of a task: examples to prompts, prompts to completions, completions to rewards."""

from collections.abc import Mapping, Sequence
import copy
import dataclasses
import functools
import logging
from typing import Any

import jax
import numpy as np

from gdsd_jax import parallel
from gdsd_jax.diffusion.config import Rollout, SamplerConfig
from gdsd_jax.diffusion.sampling import sample
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.models.tokenizer import (
  chat_prompt,
  completion_lengths,
  decode_completions,
  encode_prompts,
  prompt_lengths,
  stop_token_ids,
)
from gdsd_jax.tasks import Task

_log = logging.getLogger(__name__)


class RewardError(RuntimeError):
  """A reward function raised; the message names the task and the cause."""


@dataclasses.dataclass(frozen=True)
class ScoredRollouts:
  """B rollouts with their text and rewards.

  Attributes:
    prompt, prompt_mask: int32[B, P] and bool[B, P], left-padded.
    rollout: tokens and confidence, on the device.
    completions: text of each completion, up to its end.
    lengths: int[B] tokens of each completion, up to its end.
    rewards: named rewards, float32[B] each.
  """

  prompt: jax.Array
  prompt_mask: jax.Array
  rollout: Rollout
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

  def sample(self, params, examples: Sequence[Mapping[str, Any]], key) -> tuple[jax.Array, jax.Array, Rollout]:
    """One completion for each example, on the device: (prompt, prompt_mask, rollout). Returns before it is computed."""
    rows = parallel.local_rows(self.mesh, len(examples))
    prompt, mask = self.encode([examples[row] for row in rows])
    width = max(parallel.gather_json(prompt.shape[1]))
    padding = [(0, 0), (width - prompt.shape[1], 0)]
    prompt = np.pad(prompt, padding, constant_values=self.denoiser.config.pad_token_id)
    prompt, mask = (parallel.spread(self.mesh, len(examples), x) for x in (prompt, np.pad(mask, padding)))
    if (self.config, prompt.shape) not in self._compiled:
      self._compiled.add((self.config, prompt.shape))
      greedy = "greedy " if self.config.temperature == 0 else ""
      _log.info("compiling the %ssampler for %d prompts of up to %d tokens", greedy, *prompt.shape)
    return prompt, mask, sample(self.denoiser, params, prompt, mask, key, self.config)

  def score(self, examples: Sequence[Mapping[str, Any]], prompt, prompt_mask, rollout: Rollout) -> ScoredRollouts:
    """Rewards of rollouts, each process scoring its own. Raises RewardError when a reward function raises."""

    def work(rows):
      tokens = parallel.fetch_rows(rollout.tokens, np.array(rows))
      completions = decode_completions(self.tokenizer, tokens, self.stop_ids)
      lengths = completion_lengths(tokens, self.stop_ids).tolist()
      try:
        scored = self.task.score_batch(completions, [examples[row] for row in rows])
      except Exception as error:  # user code: whatever it raises, the run must be able to go on
        raise RewardError(f"reward of task {self.task.name} raised {type(error).__name__}: {error}") from error
      scored = [{name: float(value) for name, value in rewards.items()} for rewards in scored]
      return list(zip(completions, lengths, scored))

    try:
      shared = parallel.share_work(len(examples), work, parallel.own_rows(self.mesh, len(examples)))
    except parallel.RemoteError as error:
      raise RewardError(str(error)) from error
    completions, lengths, scored = zip(*shared)
    rewards = {name: np.array([s[name] for s in scored], np.float32) for name in scored[0]}
    return ScoredRollouts(prompt, prompt_mask, rollout, list(completions), np.array(lengths), rewards)

  def __call__(self, params, examples, key) -> ScoredRollouts:
    return self.score(examples, *self.sample(params, examples, key))
