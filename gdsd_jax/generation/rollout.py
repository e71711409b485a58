"""Rollouts of a task: examples to prompts, prompts to completions on the device, completions to rewards."""

from collections.abc import Mapping, Sequence
import copy
import dataclasses
import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gdsd_jax.diffusion.config import Rollout, SamplerConfig
from gdsd_jax.generation.generator import Generator
from gdsd_jax.huggingface.tokenizer import chat_prompt, completion_ids, prompt_lengths, texts_of
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.parallel.mesh import batch_sharding
from gdsd_jax.parallel.processes import RemoteError
from gdsd_jax.tasks import Task
from gdsd_jax.tasks.base import Completion, total_of


class RewardError(RuntimeError):
  """A task's grader raised; the message names the task and the cause."""


@dataclasses.dataclass(frozen=True)
class PendingCompletions:
  """B completions that nobody has read: the device may still be at work on them."""

  examples: Sequence[Mapping[str, Any]]  # what each of them answers
  prompt: jax.Array  # int32[B, P], left-padded
  prompt_mask: jax.Array  # bool[B, P], False at padding
  rollout: Rollout  # tokens and confidence, on the device
  parts: Sequence[tuple[np.ndarray, Rollout]]  # sampled one after the other: rows int[b], and their rollouts
  started: float  # when sampling began, by time.monotonic


@dataclasses.dataclass(frozen=True)
class GradedCompletions:
  """B completions with their text, rewards and accuracy."""

  sampled: PendingCompletions
  sampling_seconds: float  # from the beginning of sampling until the last text was read on the host
  completions: list[str]  # text of each, up to its end
  ids: list[list[int]]  # token ids of each up to there
  rewards: dict[str, np.ndarray]  # by name, float32[B] each, not-a-number where it does not apply
  accuracy: np.ndarray  # float64[B], what each adds to the published accuracy; not-a-number where there is none
  accuracy_lenient: np.ndarray  # float64[B], what each adds to a lenient reader's; not-a-number where there is none
  metrics: dict[str, float]  # what else the reward functions told
  predicted_rewards: np.ndarray | None = None  # float32[B, S], of what each step predicted, where rollouts remember it

  @functools.cached_property
  def lengths(self) -> np.ndarray:
    """int[B], tokens of each up to its end."""
    return np.array([len(tokens) for tokens in self.ids])

  @functools.cached_property
  def total_reward(self) -> np.ndarray:
    """float32[B], the sum of the named rewards that apply; not-a-number where none does."""
    named = np.array(list(self.rewards.values()))
    return np.where(np.isnan(named).all(axis=0), np.float32(np.nan), np.nansum(named, axis=0, dtype=np.float32))

  def spreads(self, group_size: int) -> np.ndarray:
    """float32[B / group_size], by how much the rewards of a group differ at most; 0 where none applies."""
    groups = self.total_reward.reshape(-1, group_size)
    applies = ~np.isnan(groups)
    most, least = (find(groups, axis=1, where=applies, initial=worst)
                   for find, worst in ((np.max, -np.inf), (np.min, np.inf)))
    return np.maximum(most - least, 0)


def mean_that_applies(values: np.ndarray) -> float:
  """The mean of the values that are numbers; not-a-number where none is."""
  values = values[~np.isnan(values)]
  return float(values.mean()) if len(values) else math.nan


class RolloutSampler:
  """Samples and grades completions of a task's examples by one denoiser and one sampler."""

  def __init__(self, denoiser: Denoiser, tokenizer, task: Task, config: SamplerConfig, prompt_buckets: Sequence[int],
               mesh=None, needs: frozenset[str] = frozenset()):
    self.generator, self.task, self.config = Generator(denoiser, tokenizer, mesh), task, config
    self.prompt_buckets, self.needs = tuple(prompt_buckets), needs  # what rollouts remember
    split = None if mesh is None else batch_sharding(mesh)
    self._join = jax.jit(functools.partial(_join, denoiser.config.pad_token_id), out_shardings=split)

  def with_config(self, **changes) -> "RolloutSampler":
    """The same sampler with other settings (greedy, say), and the same record of what is compiled."""
    other = copy.copy(self)
    other.config = dataclasses.replace(self.config, **changes)
    return other

  def prompts(self, examples: Sequence[Mapping[str, Any]]) -> list[str]:
    """The prompt of each example. Raises ValueError for one whose text forges the chat format."""
    return [chat_prompt(self.generator.tokenizer, self.task.messages(example)) for example in examples]

  def prompt_lengths(self, prompts: Sequence[str]) -> np.ndarray:
    """Tokens of each prompt. Returns int[N]."""
    return prompt_lengths(self.generator.tokenizer, prompts)

  def sample(self, params, examples: Sequence[Mapping[str, Any]], key, microbatches: int = 1) -> PendingCompletions:
    """One completion for each example, on the device. Returns before it is computed.

    The microbatches are equal parts of the examples, sampled one after the other, each with a key of its own. Each
    holds prompts of like length, and is padded to the bucket that its own longest one needs. Raises ValueError for a
    prompt that exceeds the largest bucket.
    """
    started, prompts = time.monotonic(), self.prompts(examples)
    parts = self._parts(prompts, microbatches)
    keys = [key] if microbatches == 1 else jax.random.split(key, microbatches)
    sampled = [
      (prompt, mask, self._rollout(params, prompt, mask, part_key))
      for (prompt, mask), part_key in zip(self.generator.encode(prompts, parts, self.prompt_buckets), keys)
    ]
    # Joined right after them, not when it is needed: the device may be at the next rollouts by then.
    whole = sampled[0] if microbatches == 1 else self._join(sampled, np.argsort(np.concatenate(parts)))
    return PendingCompletions(examples, *whole, tuple(zip(parts, [rollout for *_, rollout in sampled])), started)

  def _rollout(self, params, prompt, mask, key) -> Rollout:
    record = self.needs - {"steps"}
    return self.generator.sample(params, prompt, mask, key, self.config, record).only(self.needs)

  def restore(self, examples: Sequence[Mapping[str, Any]], rollout: Rollout) -> PendingCompletions:
    """What `sample` returned for these examples, of which a checkpoint keeps the rollout alone."""
    rows = np.arange(len(examples))
    [(prompt, mask)] = self.generator.encode(self.prompts(examples), [rows], self.prompt_buckets)
    return PendingCompletions(examples, prompt, mask, rollout, ((rows, rollout),), time.monotonic())

  def join(self, drawn: Sequence[PendingCompletions], rows: np.ndarray) -> PendingCompletions:
    """Completions that were sampled apart as one batch: int[B], which rows of all of them, one after the other."""
    examples = [example for pending in drawn for example in pending.examples]
    parts = [(pending.prompt, pending.prompt_mask, pending.rollout) for pending in drawn]
    prompt, mask, rollout = self._join(parts, rows)
    chosen, parts = [examples[row] for row in rows], ((np.arange(len(rows)), rollout),)
    return PendingCompletions(chosen, prompt, mask, rollout, parts, drawn[0].started)

  def _parts(self, prompts: Sequence[str], microbatches: int) -> list[np.ndarray]:
    """Rows of each part, ascending; the part of the shortest prompts first. Rollouts of one prompt stay neighbours."""
    if microbatches == 1:
      return [np.arange(len(prompts))]
    by_length = np.argsort(self.prompt_lengths(prompts), kind="stable")
    return [np.sort(rows) for rows in np.split(by_length, microbatches)]

  def grade(self, pending: PendingCompletions) -> GradedCompletions:
    """Reads and grades completions, each process its own. Raises RewardError if the grader did in any of them."""
    predicts = pending.rollout.predictions is not None
    seen, known = [time.monotonic()], {}  # when each part was; totals of the rewards by what they are for

    def look(rows, texts, ids):
      seen.append(time.monotonic())
      asked = texts, [pending.examples[row] for row in rows], ids
      grades = self._grade(*asked)
      if predicts:
        known.update(self._totals(grades, *asked))
      return grades

    try:
      parts = [(rows, part.tokens) for rows, part in pending.parts]
      completions, ids, grades = self.generator.decode(parts, self.config, look)
      metrics = self.task.metrics() if self.task.takes_ids else {}
      predicted = self._predicted_rewards(pending, known) if predicts else None
    except RemoteError as error:
      raise RewardError(str(error)) from error
    rewards, *accuracies = zip(*grades)
    # None, which is not-a-number here: a reward that does not apply, a task without a notion of right and wrong.
    rewards = {name: np.array([each[name] for each in rewards], np.float32) for name in rewards[0]}
    accuracies = [np.array(accuracy, np.float64) for accuracy in accuracies]
    seconds = seen[-1] - pending.started
    return GradedCompletions(pending, seconds, completions, ids, rewards, *accuracies, metrics, predicted)

  def _predicted_rewards(self, pending: PendingCompletions, known: dict) -> np.ndarray:
    """float32[B, S], the total reward of what each step predicted, not-a-number where none applies.

    Equal ones of a problem are graded once.
    """

    def read(rows, tokens):  # int32[b, S, L]
      steps = tokens.shape[1]
      ids = completion_ids(tokens.reshape(-1, tokens.shape[2]), self.generator.stop_ids)
      texts = texts_of(self.generator.tokenizer, ids)
      examples = [pending.examples[row] for row in rows for _ in range(steps)]
      keys = [self._key(*each) for each in zip(texts, examples, ids)]
      new = {key: place for place, key in enumerate(keys) if key not in known}.values()
      if new:
        asked = [[values[place] for place in new] for values in (texts, examples, ids)]
        known.update(self._totals(self._grade(*asked), *asked))
      return np.reshape([known[key] for key in keys], (-1, steps)).tolist()

    parts = [(rows, part.predictions.tokens) for rows, part in pending.parts]
    rewards = np.array(self.generator.of_rows(parts, read), np.float32)
    if self.task.takes_ids:
      self.task.metrics()  # of predictions, which are no completions: nobody hears of them
    return rewards

  def _key(self, completion: str, example: Mapping[str, Any], ids: list[int]) -> tuple:
    """Equal where a grade must be."""
    return id(example), completion, len(ids) < self.config.completion_length, tuple(ids) if self.task.takes_ids else ()

  def _totals(self, grades: list[tuple], *asked) -> dict[tuple, float | None]:
    """The total reward of each by its key, from what `_grade` was asked and answered; None where none applies."""
    return {self._key(*each): total_of(rewards) for (rewards, *_), *each in zip(grades, *asked)}

  def _grade(self, texts: list[str], examples: list[Mapping[str, Any]], ids: list[list[int]]) -> list[tuple]:
    """(rewards, accuracy, accuracy_lenient) of each text."""
    texts = [Completion(text, len(tokens) < self.config.completion_length) for text, tokens in zip(texts, ids)]
    try:
      grades = self.task.grade(texts, examples, ids) if self.task.takes_ids else self.task.grade(texts, examples)
      return [dataclasses.astuple(grade) for grade in grades]
    except Exception as error:  # whatever it raises, the run must be able to go on
      message = str(error) if self.task.is_own else f"{type(error).__name__}: {error}"
      raise RewardError(f"reward of task {self.task.name}: {message}") from error

  def __call__(self, params, examples: Sequence[Mapping[str, Any]], key) -> GradedCompletions:
    return self.grade(self.sample(params, examples, key))


def _join(pad_token_id: int, parts, order) -> tuple[jax.Array, jax.Array, Rollout]:
  """Parts of (prompt, prompt_mask, rollout) as one, all prompts as wide as the widest. order: int[B], which rows.

  Passes over slots are counted on from part to part.
  """
  width = max(prompt.shape[1] for prompt, _, _ in parts)
  widen = lambda x, value: jnp.pad(x, [(0, 0), (width - x.shape[1], 0)], constant_values=value)
  parts, passed = [(widen(prompt, pad_token_id), widen(mask, False), rollout) for prompt, mask, rollout in parts], 0
  for place, (prompt, mask, rollout) in enumerate(parts):
    if rollout.passes is not None:
      parts[place] = prompt, mask, rollout.replace(passes=rollout.passes + passed)
      passed += jnp.max(rollout.passes)
  return jax.tree.map(lambda *arrays: jnp.concatenate(arrays)[order], *parts)
