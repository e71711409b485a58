"""Sampling beside the host's work: the iteration that has begun, and rollouts that are one iteration ahead."""

from collections.abc import Collection

import jax
import jax.numpy as jnp

from gdsd_jax.diffusion.config import Predictions, Rollout
from gdsd_jax.generation.rollout import PendingCompletions, RolloutSampler
from gdsd_jax.parallel.mesh import batch_sharding
from gdsd_jax.runs.config import RunConfig
from gdsd_jax.runs.data import ExampleStream
from gdsd_jax.runs.state import TrainState


class Overlap:
  """Samples the rollouts of a run's iterations, as early as their parameters are known.

  With `config.async_rollouts` an iteration trains on rollouts that the one before it sampled, from the parameters that
  that one began with.

  Attributes:
    stream: where the problems come from.
    position: examples of the stream that the iterations so far have trained on.
  """

  def __init__(self, sampler: RolloutSampler, stream: ExampleStream, config: RunConfig):
    self.sampler, self.stream, self.config, self.position = sampler, stream, config, 0
    self._begun: tuple | None = None  # what `take` returns next, but for async_rollouts
    self._ahead: PendingCompletions | None = None  # with async_rollouts, what the next iteration trains on

  def begin(self, state: TrainState) -> None:
    """Begins the next iteration, unless it has begun: the device starts to sample, and the host is free.

    Nothing of the run has changed by then: a checkpoint saved now is the one that would have been saved before.
    """
    if self._begun is not None:
      return
    next_key, sample_key, mask_key = jax.random.split(state.key, 3)
    position = self.position
    if self.config.async_rollouts:
      if self._ahead is None:  # the first iteration
        first_key, sample_key = jax.random.split(sample_key)
        self._ahead = self._sample(state, position, first_key)
      position += self.config.prompts_per_step
    self._begun = next_key, mask_key, self._sample(state, position, sample_key)

  def take(self, state: TrainState) -> tuple[jax.Array, jax.Array, PendingCompletions]:
    """Begins the next iteration, if need be, and hands it over.

    Returns:
      (key, mask_key, sampled): the state's random key from then on, that of the iteration's updates, and the rollouts
      to train on, which the device may still be sampling.
    """
    self.begin(state)
    (key, mask_key, sampled), self._begun = self._begun, None
    if self.config.async_rollouts:
      sampled, self._ahead = self._ahead, sampled
    self.position += self.config.prompts_per_step
    return key, mask_key, sampled

  def more(self, state: TrainState, key) -> PendingCompletions:
    """Rollouts of the problems that come next, for an iteration that needs more than it was handed over."""
    sampled = self._sample(state, self.position, key)
    self.position += self.config.prompts_per_step
    return sampled

  def saved(self) -> Rollout | None:
    """With async_rollouts, what the next iteration trains on, or before the first its shapes alone; None without."""
    if not self.config.async_rollouts:
      return None
    return self.laid_out(self.sampler.needs) if self._ahead is None else self._ahead.rollout

  def laid_out(self, remembered: Collection[str]) -> Rollout:
    """Shapes of an iteration's rollouts that remember this."""
    shape = (self.config.rollouts_per_step, self.config.sampler.completion_length)
    split = batch_sharding(self.sampler.generator.mesh)
    of = lambda dtype, *more: jax.ShapeDtypeStruct((*shape, *more), dtype, sharding=split)
    sampler, (rows, length) = self.config.sampler, shape
    kept = of(jnp.int32, sampler.top_k or 1)
    of_steps = lambda dtype: jax.ShapeDtypeStruct((rows, sampler.most_steps, length), dtype, sharding=split)
    rollout = Rollout(of(jnp.int32), of(jnp.float32), of(jnp.int32), of(jnp.float32), of(jnp.float32), kept,
                      Predictions(of_steps(jnp.int32), of_steps(jnp.float32)),
                      passes=jax.ShapeDtypeStruct((rows, 2), jnp.int32, sharding=split))
    return rollout.only(remembered)

  def restore(self, position: int, ahead: Rollout | None) -> None:
    """Goes on from a checkpoint: the position, and what `saved` gave."""
    self.position = position
    if ahead is not None:
      self._ahead = self.sampler.restore(self._examples(position), ahead.only(self.sampler.needs))

  def _sample(self, state: TrainState, position: int, key) -> PendingCompletions:
    examples = self._examples(position)
    return self.sampler.sample(state.student_params, examples, key, self.config.rollouts.microbatches)

  def _examples(self, position: int) -> list:
    """What each rollout of the iteration that begins at this position of the stream answers."""
    self.stream.position = position
    return [e for e in self.stream.take(self.config.prompts_per_step) for _ in range(self.config.group_size)]
