"""The gradient of the loss, by what is trained, as a sum over single samples.

  ∇ loss = Σ_s ⟨cotangent_s, ∂ scores_s⟩

The loss is a function of the scores, whose values are known beforehand (`DistillationBatch.current`). Its derivatives
by them, the cotangents, are computed once. Then the gradient is that of a surrogate, Σ_s ⟨cotangent_s, scores_s⟩ with
constant cotangents. Its terms are vector-Jacobian products of single samples, one mask sample of one microbatch each,
and are summed one after the other: only the activations of one sample are in memory.

The LM head's own term comes at the end, from the hidden states of all samples. It is the largest weight, and there is
never a second copy of its gradient.
"""

from flax import struct
import jax
import jax.numpy as jnp

from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.objectives.objective import Objective, ScoredRollouts
from gdsd_jax.objectives.scores import masked_hidden, scores_of_hidden
from gdsd_jax.objectives.token_scores import Scoring
from gdsd_jax.objectives.views import Views
from gdsd_jax.runs.state import TrainState


@struct.dataclass
class ScoringBatch:
  """What scoring needs of N rollouts; cut into single samples, its views have no axis V (`single_samples`)."""

  tokens: jax.Array  # int32[N, P+L], prompts (left-padded) and completions
  attention_mask: jax.Array  # bool[N, P+L], False where nothing attends to
  views: Views  # their `inputs`
  kept: jax.Array | None = None  # int32[N, L, K], see `kept_scores`

  @property
  def targets(self):
    """Tokens that are scored, int32[..., L]."""
    return self.tokens[..., -self.views.masks.shape[-1]:] if self.views.targets is None else self.views.targets


@struct.dataclass
class DistillationBatch:
  """N rollouts with everything that one update needs; all scores are made by `score_rollouts`."""

  rollouts: ScoringBatch
  # The student's scores are as it is now. The loss takes its values from these and only its gradient from the step's
  # own forward pass: two compilations of one pass round differently, and in bf16 that would drown the log-ratio.
  scored: ScoredRollouts


def loss_and_gradient(denoiser: Denoiser, objective: Objective, state: TrainState, batch: DistillationBatch,
                      accumulation: int, dropout_key=None):
  """((loss, metrics), gradient): a scalar, a dict of scalars, and a tree like `state.params`.

  The arguments are those of `distillation_step`; without a random key, the adapter's dropout drops nothing.
  """
  loss_fn = lambda student: objective.loss(batch.scored.replace(student=student))
  current = batch.scored.student.replace(entropy=None)  # which no loss depends on
  loss_and_metrics, cotangents = jax.value_and_grad(loss_fn, has_aux=True)(current)
  samples, cotangents = single_samples(batch.rollouts, accumulation), cut(cotangents, accumulation)
  dropout_keys = None if dropout_key is None else jax.random.split(dropout_key, len(samples.tokens))
  return loss_and_metrics, _gradient(denoiser, objective.scoring, state, samples, cotangents, dropout_keys)


def _gradient(denoiser: Denoiser, scoring: Scoring, state: TrainState, samples: ScoringBatch, cotangents, dropout_keys):
  """Σ_s ⟨cotangent_s, ∂ scores_s⟩ for samples and cotangents with a leading axis S."""
  head = denoiser.head(state.student_params)
  head_name = "embedding" if head.tied else "head"
  trains_head = head_name in state.params
  # What the hidden states depend on: all but the head, whose weight is only among them as the embedding.
  body = {name: leaf for name, leaf in state.params.items() if head.tied or name != head_name}

  def add_sample(total, scanned):
    sample, cotangent, dropout_key = scanned

    def scores(body):
      params = {**state.student_params, **body}
      hidden = masked_hidden(denoiser, params, sample.tokens, sample.views, sample.attention_mask, dropout_key)
      return scores_of_hidden(head, hidden, sample.targets, scoring, sample.kept), hidden if trains_head else None

    _, product, hidden = jax.vjp(scores, body, has_aux=True)
    return jax.tree.map(jnp.add, total, *product(cotangent)), hidden

  zeros = jax.tree.map(jnp.zeros_like, body)
  gradient, hidden = jax.lax.scan(add_sample, zeros, (samples, cotangents, dropout_keys))
  if not trains_head:
    return gradient
  by_rollout = lambda tree: jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)  # [n, S, …]: each chip keeps its own
  hidden, samples = by_rollout(hidden), by_rollout(samples)
  of_head = lambda head: scores_of_hidden(head, hidden, samples.targets, scoring, samples.kept)
  _, product = jax.vjp(of_head, head)
  [of_head] = product(by_rollout(cotangents))
  return {**gradient, head_name: gradient[head_name] + of_head.weight if head.tied else of_head.weight}


def single_samples(batch: ScoringBatch, accumulation: int) -> ScoringBatch:
  """The batch as S = accumulation · V samples of n = N / accumulation rollouts: tokens int[S, n, P+L] and so on."""
  count = batch.views.masks.shape[1]
  each = lambda x: None if x is None else jnp.repeat(x[:, None], count, axis=1)
  return cut(ScoringBatch(each(batch.tokens), each(batch.attention_mask), batch.views, each(batch.kept)), accumulation)


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
