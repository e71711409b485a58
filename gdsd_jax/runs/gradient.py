"""The gradient of the loss, by what is trained, as a sum over single samples.

  ∇ loss = Σ_s ⟨cotangent_s, ∂ scores_s⟩

The loss is a function of the scores, whose values are known beforehand (`ScoredRollouts.student`). Its derivatives
by them, the cotangents, are computed once. Then the gradient is that of a surrogate, Σ_s ⟨cotangent_s, scores_s⟩ with
constant cotangents. Its terms are vector-Jacobian products of single samples, one mask sample of one microbatch each,
and are summed one after the other: only the activations of one sample are in memory.

In the only update on its rollouts the student is old, and where an objective takes its views one by one (`Objective`),
cotangent_s needs no other scores than scores_s. Then no scores are known beforehand: the pass that gives a sample's
gradient gives its scores, too, and takes a pass over all samples less (`Objective.scored_in_step`).

A trained LM head's part is added to the sum in place, chunk by chunk of the vocabulary (`LMHead.gradient`): it is the
largest weight, and a second array of its size for each sample would cost memory and time. So are those of the layers,
one after the other (`with_sums`).
"""

from collections.abc import Callable
import dataclasses
import functools

from flax import struct
import jax
import jax.numpy as jnp

from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.models.gradient_sums import added, with_sums
from gdsd_jax.objectives.objective import Objective, ScoredRollouts
from gdsd_jax.objectives.scores import masked_hidden, Scores, scores_of_hidden
from gdsd_jax.objectives.token_scores import Scoring
from gdsd_jax.objectives.views import Views
from gdsd_jax.parallel.mesh import param_shardings
from gdsd_jax.parallel.slices import count_slices, sum_over_slices, within_slices
from gdsd_jax.runs.state import TrainState


@struct.dataclass
class ScoringBatch:
  """What scoring needs of N rollouts; that of a single sample has views without the axis V (`single_samples`)."""

  tokens: jax.Array  # int32[N, P+L], prompts (left-padded) and completions
  attention_mask: jax.Array  # bool[N, P+L], False where nothing attends to
  views: Views  # their `inputs`
  kept: jax.Array | None = None  # int32[N, L, K], see `kept_scores`


@struct.dataclass
class DistillationBatch:
  """N rollouts with everything that one update needs; scores that are known are made by `score_rollouts`."""

  rollouts: ScoringBatch
  # The student's scores are as it is now. The loss takes its values from these and only its gradient from the step's
  # own forward pass: two compilations of one pass round differently, and in bf16 that would drown the log-ratio.
  # Without them, the step makes them itself, and they are the old ones, too.
  scored: ScoredRollouts


def loss_and_gradient(denoiser: Denoiser, objective: Objective, state: TrainState, batch: DistillationBatch,
                      accumulation: int, dropout_key=None):
  """((loss, metrics), gradient, scored): a scalar, a dict of scalars, a tree like `state.params`, and what is scored.

  The arguments are those of `distillation_step`; without a random key, the adapter's dropout drops nothing. Where the
  batch knows no scores of the student, those that were made for the gradient are in `scored`, with their entropy.
  """
  scored, scoring = batch.scored, objective.scoring
  if scored.student is not None:
    loss_of = lambda student: objective.loss(scored.replace(student=student))
    current = scored.student.replace(entropy=None)  # which no loss depends on
    loss_and_metrics, cotangents = jax.value_and_grad(loss_of, has_aux=True)(current)
    gradient = _gradient_by(cotangents, denoiser, scoring, state, batch.rollouts, accumulation, dropout_key)
    return loss_and_metrics, gradient, scored

  def with_scores(student: Scores) -> ScoredRollouts:
    old = jax.lax.stop_gradient(student) if objective.needs_old else None
    return scored.replace(student=student, old=old)

  def of_sample(number, scores: Scores) -> Scores:
    """The cotangent of a sample, those of others being 0, since it depends on none of them."""
    beside_others = lambda x: join(jnp.zeros((count, *x.shape), x.dtype).at[number].set(x), accumulation)
    everything = lambda scores: with_scores(jax.tree.map(beside_others, scores))
    loss = lambda scores: objective.loss(everything(scores))[0]
    return jax.grad(loss)(scores.replace(entropy=None))

  scoring, count = dataclasses.replace(scoring, with_entropy=True), accumulation * batch.rollouts.views.masks.shape[1]
  gradient, scores = _gradient(denoiser, scoring, state, batch.rollouts, accumulation, dropout_key, of_sample)
  scored = with_scores(join(scores, accumulation))
  return objective.loss(scored), gradient, scored


def _gradient_by(cotangents: Scores, denoiser: Denoiser, scoring: Scoring, state: TrainState, rollouts: ScoringBatch,
                 accumulation: int, dropout_key):
  """Σ_s ⟨cotangent_s, ∂ scores_s⟩ by the cotangents of all scores; each TPU slice adds up its own rollouts' part."""

  def of_slice(denoiser: Denoiser, explained, dropout_key):
    rollouts, cotangents = explained
    cotangents = cut(cotangents, accumulation)
    of_sample = lambda number, _: jax.tree.map(lambda x: x[number], cotangents)
    return _gradient(denoiser, scoring, state, rollouts, accumulation, dropout_key, of_sample)[0]

  mesh = denoiser.mesh
  # JAX's grouped products of experts cannot be mapped over slices: each sample's gradient crosses them.
  if count_slices(mesh) == 1 or denoiser.config.experts is not None:
    return of_slice(denoiser, (rollouts, cotangents), dropout_key)
  shardings = {name: param_shardings(mesh, denoiser)[name] for name in state.params}
  by_itself = functools.partial(of_slice, dataclasses.replace(denoiser, mesh=within_slices(mesh)))
  return sum_over_slices(by_itself, (rollouts, cotangents), shardings, mesh, dropout_key)


def _gradient(denoiser: Denoiser, scoring: Scoring, state: TrainState, rollouts: ScoringBatch, accumulation: int,
              dropout_key, cotangent_of: Callable):
  """(Σ_s ⟨cotangent_s, ∂ scores_s⟩, scores [S, …]): a sample's cotangent is made of its number and its scores."""
  places, sample_at = single_samples(rollouts, accumulation)
  numbers = jnp.arange(len(places[0]))
  dropout_keys = None if dropout_key is None else jax.random.split(dropout_key, len(numbers))
  head = denoiser.head(state.student_params)
  name = "embedding" if head.tied else "head"
  adds = scoring.adds_in_place(head.vocab_size)

  def add_sample(total, scanned):
    place, number, dropout_key = scanned
    sample = sample_at(place)

    def hidden_of(trained):
      params = {**state.student_params, **with_sums(trained, total)}
      return masked_hidden(denoiser, params, sample.tokens, sample.views, sample.attention_mask, dropout_key)

    def scores_of(hidden, weight=head.weight):
      of_sample = head.replace(weight=weight, gradient=total.get(name) if adds else None)
      return scores_of_hidden(of_sample, hidden, sample.views.goals(sample.tokens), scoring, sample.kept)

    hidden, by_body = jax.vjp(hidden_of, state.params)
    scores, by_head = jax.vjp(scores_of, hidden, *([head.weight] if name in total else []))
    cotangent = cotangent_of(number, scores)
    if scores.entropy is not None:
      cotangent = cotangent.replace(entropy=jnp.zeros_like(scores.entropy))
    of_hidden, *of_head = by_head(cotangent)
    for gradient in of_head:
      total = {**total, name: gradient if adds else total[name] + gradient}
    return added(total, *by_body(of_hidden)), scores

  zeros = jax.tree.map(jnp.zeros_like, state.params)
  return jax.lax.scan(add_sample, zeros, (places, numbers, dropout_keys))


def single_samples(batch: ScoringBatch, accumulation: int):
  """(places, sample_at): S = accumulation · V places, arrays with that leading axis, and what is scored at one of them.

  That is a batch of n = N / accumulation rollouts in one view. Their tokens are in memory once, not for each view.
  """
  count = batch.views.masks.shape[1]
  parts = cut(jax.tree.map(lambda x: x[:, None], batch.replace(views=None)), accumulation)
  sample_at = lambda place: jax.tree.map(lambda x: x[place[0] // count], parts).replace(views=place[1])
  return (jnp.arange(accumulation * count), cut(batch.views, accumulation)), sample_at


def cut(tree, accumulation: int):
  """Arrays [N, M, …] as [S, n, …]. A microbatch is every accumulation-th rollout: each chip has its share of it."""

  def leaf(x):
    x = x.reshape(-1, accumulation, *x.shape[1:])  # [n, accumulation, M, …]
    return jnp.moveaxis(x, 0, 2).reshape(-1, x.shape[0], *x.shape[3:])

  return jax.tree.map(leaf, tree)


def join(tree, accumulation: int):
  """Arrays [S, n, …] as [N, M, …]: the inverse of `cut`."""

  def leaf(x):
    x = x.reshape(accumulation, -1, *x.shape[1:])  # [accumulation, M, n, …]
    return jnp.moveaxis(x, 2, 0).reshape(-1, x.shape[1], *x.shape[3:])

  return jax.tree.map(leaf, tree)
