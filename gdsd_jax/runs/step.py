"""The distillation step: one optimizer update of the student towards the teacher."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.objectives.diagnostics import policy_entropy, score_metrics
from gdsd_jax.objectives.objective import Objective
from gdsd_jax.objectives.scores import Scores, view_scores
from gdsd_jax.runs.gradient import DistillationBatch, join, loss_and_gradient, ScoringBatch, single_samples
from gdsd_jax.runs.routers import moved
from gdsd_jax.runs.state import TrainState


@functools.partial(jax.jit, static_argnames=("denoiser", "objective", "accumulation", "with_entropy", "of_reference"))
def score_rollouts(
  params, rollouts: ScoringBatch, *, denoiser: Denoiser, objective: Objective, accumulation: int = 1,
  with_entropy: bool = False, of_reference: bool = False,
) -> Scores:
  """Scores of N rollouts as the objective asks for them; those that are compared come from this one function.

  They are made in `accumulation` microbatches, one after the other, as are their mask samples; it divides N. With
  entropy, the policy's is told from the same pass, unless the objective's scores need no logits. Those `of_reference`
  are what the objective takes of it alone: for a step that makes the student's itself (`Objective.scored_in_step`),
  since all others must have been rounded alike.
  """
  params = denoiser.cast(params)
  scoring = objective.reference_scoring if of_reference else objective.scoring
  scoring = dataclasses.replace(scoring, with_entropy=with_entropy and not of_reference)
  places, sample_at = single_samples(rollouts, accumulation)

  def score(place) -> Scores:
    sample = sample_at(place)
    return view_scores(denoiser, params, sample.tokens, sample.views, sample.attention_mask, scoring, sample.kept)

  return join(jax.lax.map(score, places), accumulation)


@functools.partial(
  jax.jit, static_argnames=("denoiser", "objective", "optimizer", "accumulation"), donate_argnames=("state",)
)
def distillation_step(
  state: TrainState, batch: DistillationBatch, *, denoiser: Denoiser, objective: Objective,
  optimizer: optax.GradientTransformation, accumulation: int = 1,
) -> tuple[TrainState, dict[str, Any]]:
  """One update of the student.

  Args:
    state: the run's state; its buffers are donated.
    batch: N rollouts, N divisible by `accumulation`.
    denoiser, objective, optimizer: what is trained, on what, and how.
    accumulation: number of microbatches whose gradients are summed; the update is the same, up to rounding.

  Returns:
    (state, metrics): the state after the update, and float32 scalars; among them the entropy of the policy where the
    step makes the student's scores. If loss or gradient is not finite, the parameters stay as they
    are and metrics["skipped"] is 1.
  """
  dropout_key = None
  if denoiser.lora is not None and denoiser.lora.dropout > 0:
    key, dropout_key = jax.random.split(state.key)
    state = state.replace(key=key)
  (loss, metrics), gradient, scored = loss_and_gradient(
    denoiser, objective, state, batch, accumulation, dropout_key)
  if batch.scored.student is None and (entropy := policy_entropy([scored.student], [scored.views])) is not None:
    metrics = {**metrics, "entropy": entropy}
  gradient = moved(gradient, denoiser)
  metrics = {"loss": loss, **score_metrics(scored), **metrics, "grad_norm": optax.global_norm(gradient)}
  gradient = _spoiled_unless(jnp.isfinite(loss), gradient)
  updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
  metrics["skipped"] = 1.0 - opt_state.last_finite.astype(jnp.float32)
  params = optax.apply_updates(state.params, moved(updates, denoiser))
  return state.replace(params=params, opt_state=opt_state), metrics


def _spoiled_unless(holds, gradient):
  """The gradient, with one leaf turned to not-a-number unless it `holds`: so the optimizer leaves the update out."""
  leaves, tree = jax.tree.flatten(gradient)
  smallest = min(range(len(leaves)), key=lambda i: leaves[i].size)
  leaves[smallest] = leaves[smallest] * jnp.where(holds, 1, jnp.nan).astype(leaves[smallest].dtype)
  return tree.unflatten(leaves)
