"""The distillation step: one optimizer update of the student towards the teacher."""

import functools
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.objectives.objective import Objective
from gdsd_jax.objectives.scores import masked_hidden, Scores
from gdsd_jax.runs.state import TrainState


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


def _single_samples(rollouts: Rollouts, of_scores: Scores, accumulation: int):
  """(tokens, prompt_mask, mask, of_scores) of microbatches with one mask sample each: S = accumulation · M of them.

  int[S, n, P+L], bool[S, n, P], bool[S, n, L] and Scores of [S, n], n = N / accumulation.
  """
  parts, of_parts = _microbatches((rollouts, of_scores), accumulation)
  single = lambda x: jnp.swapaxes(x, 1, 2).reshape(-1, x.shape[1], *x.shape[3:])  # [accumulation, n, M, …]
  same = lambda x: jnp.repeat(x, parts.masks.shape[2], axis=0)
  return same(parts.tokens), same(parts.prompt_mask), single(parts.masks), jax.tree.map(single, of_parts)


def _score(denoiser: Denoiser, objective: Objective, params, rollouts: Rollouts) -> Scores:
  masks = rollouts.masks.transpose(1, 0, 2)
  return objective.scores(denoiser, params, rollouts.tokens, masks, rollouts.prompt_mask)


@functools.partial(jax.jit, static_argnames=("denoiser", "objective", "accumulation"))
def score_rollouts(params, rollouts: Rollouts, *, denoiser: Denoiser, objective: Objective, accumulation: int = 1):
  """Scores of N rollouts, float32[N, M], `accumulation` microbatches one after the other.

  Student, old and reference scores all come from this one compiled function.
  """
  score = functools.partial(_score, denoiser, objective, denoiser.cast(params))
  scores = jax.lax.map(score, _microbatches(rollouts, accumulation))
  return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), scores)


def _gradient(denoiser: Denoiser, objective: Objective, state: TrainState, singles, dropout_keys):
  """Gradient by what is trained, of the sum of all scores times what the loss asks of each.

  It goes through one mask sample of one microbatch after the other, so that only the activations of one are in memory.
  The LM head's comes at the end, from the hidden states of all: of the largest weight there is no second copy.

  Args:
    singles: see `_single_samples`.
    dropout_keys: of each single, or None.
  """
  head_name = "embedding" if denoiser.config.tied_head else "head"
  trains_head = head_name in state.params
  head = denoiser.head(state.student_params)

  def share_of_loss(head, hidden, completion, masks, of_scores):
    scores = objective.scores_of_hidden(head, hidden, completion, masks)
    return sum(map(jnp.vdot, jax.tree.leaves(of_scores), jax.tree.leaves(scores)))

  def through_body(body, tokens, prompt_mask, mask, of_scores: Scores, dropout_key):
    prompt_length = prompt_mask.shape[1]
    params = {**state.student_params, **body}
    hidden = masked_hidden(denoiser, params, tokens, mask, prompt_length, prompt_mask, dropout_key)
    share = share_of_loss(head, hidden, tokens[:, prompt_length:], mask, of_scores)
    return share, hidden if trains_head else None

  body = state.params
  if trains_head and not denoiser.config.tied_head:
    body = {name: leaf for name, leaf in body.items() if name != head_name}

  def accumulate(total, scanned):
    gradient, hidden = jax.grad(through_body, has_aux=True)(body, *scanned)
    return jax.tree.map(jnp.add, total, gradient), hidden

  gradient, hidden = jax.lax.scan(accumulate, jax.tree.map(jnp.zeros_like, body), (*singles, dropout_keys))
  if not trains_head:
    return gradient
  tokens, prompt_mask, masks, of_scores = singles
  rows = hidden, tokens[:, :, prompt_mask.shape[2]:], masks, of_scores
  rows = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), rows)  # [S, n, …] -> [n, S, …]: each chip keeps its own
  of_head = jax.grad(lambda weight: share_of_loss(head.replace(weight=weight), *rows))(head.weight)
  return {**gradient, head_name: gradient[head_name] + of_head if denoiser.config.tied_head else of_head}


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
    accumulation: microbatches whose gradients are summed; the update is the same, up to rounding.

  Returns:
    (state, metrics): the state after the update, and float32 scalars. If the gradient is not finite, the parameters
    stay as they are and metrics["skipped"] is 1.
  """
  completion_length = batch.rollouts.masks.shape[-1]
  dropout_keys = None
  if denoiser.lora is not None and denoiser.lora.dropout > 0:
    key, dropout_key = jax.random.split(state.key)
    state = state.replace(key=key)
    dropout_keys = jax.random.split(dropout_key, accumulation * batch.rollouts.masks.shape[1])

  def loss_fn(scores):
    return objective.loss(scores, batch.old, batch.ref, batch.advantages, completion_length)

  # The scores' values are known beforehand, and so is what the loss asks of each of them.
  (loss, metrics), of_scores = jax.value_and_grad(loss_fn, has_aux=True)(batch.current)
  singles = _single_samples(batch.rollouts, of_scores, accumulation)
  gradient = _gradient(denoiser, objective, state, singles, dropout_keys)
  metrics = {"loss": loss, **metrics}
  metrics["grad_norm"] = optax.global_norm(gradient)
  updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
  metrics["skipped"] = 1.0 - opt_state.last_finite
  state = state.replace(params=optax.apply_updates(state.params, updates), opt_state=opt_state)
  return state, metrics
