"""The distillation step: one optimizer update of the student towards the teacher."""

import functools
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.objectives.objective import Objective
from gdsd_jax.objectives.scores import Scores
from gdsd_jax.training.state import TrainState


@struct.dataclass
class Rollouts:
  """What scoring needs of N rollouts; the leading dimension of every array is N.

  Attributes:
    tokens: int32[N, P+L], prompts (left-padded) and completions.
    prompt_mask: bool[N, P], False at padding.
    masks: bool[N, M, L], the first mask of each coupled pair.
  """

  tokens: jax.Array
  prompt_mask: jax.Array
  masks: jax.Array


@struct.dataclass
class DistillationBatch:
  """N rollouts with everything that one update needs.

  Attributes:
    rollouts: see `Rollouts`.
    advantages: float32[N].
    old, ref: scores under the student before the first of the updates on these rollouts, and under the reference (or
      None).
    current: scores under the student as it is now, from `score_rollouts` like old and ref. The loss takes its values
      from these and only its gradient from the step's own forward pass: two compilations of one forward pass round
      differently, and in bf16 that noise would drown the log-ratio.
  """

  rollouts: Rollouts
  advantages: jax.Array
  old: Scores
  ref: Scores | None
  current: Scores


def _microbatches(tree, count: int):
  """[N, ...] leaves as [count, N / count, ...]: every count-th, so that each chip has its share of every microbatch."""
  return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1), tree)


def _score(denoiser: Denoiser, objective: Objective, params, rollouts: Rollouts, dropout_key=None) -> Scores:
  masks = rollouts.masks.transpose(1, 0, 2)
  return objective.scores(denoiser, params, rollouts.tokens, masks, rollouts.prompt_mask, dropout_key)


@functools.partial(jax.jit, static_argnames=("denoiser", "objective", "accumulation"))
def score_rollouts(params, rollouts: Rollouts, *, denoiser: Denoiser, objective: Objective, accumulation: int = 1):
  """Scores of N rollouts, float32[N, M], `accumulation` microbatches one after the other.

  Student, old and reference scores all come from this one compiled function.
  """
  score = functools.partial(_score, denoiser, objective, denoiser.cast(params))
  scores = jax.lax.map(score, _microbatches(rollouts, accumulation))
  return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), scores)


@functools.partial(
  jax.jit, static_argnames=("denoiser", "objective", "optimizer", "accumulation"), donate_argnames=("state",)
)
def distillation_step(
  state: TrainState, batch: DistillationBatch, *, denoiser: Denoiser, objective: Objective,
  optimizer: optax.GradientTransformation, accumulation: int = 1,
) -> tuple[TrainState, dict[str, Any]]:
  """One update of the student.

  Args:
    state: donated.
    batch: N rollouts, N divisible by `accumulation`.
    denoiser, objective, optimizer: what is trained, on what, and how.
    accumulation: microbatches whose gradients are averaged.

  Returns:
    (state, metrics): the state after the update, and float32 scalars. If the gradient is not finite, the parameters
    stay as they are and metrics["skipped"] is 1.
  """
  completion_length = batch.rollouts.masks.shape[-1]
  dropout_keys = None
  if denoiser.lora is not None and denoiser.lora.dropout > 0:
    key, dropout_key = jax.random.split(state.key)
    state, dropout_keys = state.replace(key=key), jax.random.split(dropout_key, accumulation)

  def loss_fn(params, part: DistillationBatch, dropout_key):
    fresh = _score(denoiser, objective, {**state.frozen, **params}, part.rollouts, dropout_key)
    scores = jax.tree.map(lambda value, path: value + (path - jax.lax.stop_gradient(path)), part.current, fresh)
    return objective.loss(scores, part.old, part.ref, part.advantages, completion_length)

  def accumulate(total, scanned):
    (loss, metrics), gradient = jax.value_and_grad(loss_fn, has_aux=True)(state.params, *scanned)
    return jax.tree.map(jnp.add, total, gradient), {"loss": loss, **metrics}

  zeros = jax.tree.map(jnp.zeros_like, state.params)
  gradient, metrics = jax.lax.scan(accumulate, zeros, (_microbatches(batch, accumulation), dropout_keys))
  gradient = jax.tree.map(lambda g: g / accumulation, gradient)
  metrics = jax.tree.map(jnp.mean, metrics)
  metrics["grad_norm"] = optax.global_norm(gradient)
  updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
  metrics["skipped"] = 1.0 - opt_state.last_finite
  state = state.replace(params=optax.apply_updates(state.params, updates), opt_state=opt_state)
  return state, metrics
