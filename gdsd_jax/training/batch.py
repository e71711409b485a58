"""What an update learns from, and how it is cut into single samples: one mask sample of one microbatch each."""

from flax import struct
import jax
import jax.numpy as jnp

from gdsd_jax.objectives.scores import Scores


@struct.dataclass
class ScoringBatch:
  """What scoring needs of N rollouts; cut into single samples, its arrays have no axis M (`single_samples`).

  Attributes:
    tokens: int32[N, P+L], prompts (left-padded) and completions.
    prompt_mask: bool[N, P], False at padding.
    masks: bool[N, M, L], the first mask of each coupled pair.
  """

  tokens: jax.Array
  prompt_mask: jax.Array
  masks: jax.Array

  @property
  def completion(self):
    return self.tokens[..., self.prompt_mask.shape[-1]:]


@struct.dataclass
class DistillationBatch:
  """N rollouts with everything that one update needs.

  Attributes:
    rollouts: tokens and masks, see `ScoringBatch`.
    advantages: float32[N].
    old: scores under the student before the first of the updates on these rollouts.
    ref: scores under the reference, or None.
    current: scores under the student as it is now, made by `score_rollouts` as old and ref are. The loss takes its
      values from these and only its gradient from the step's own forward pass: two compilations of one forward pass
      round differently, and in bf16 that noise would drown the log-ratio.
  """

  rollouts: ScoringBatch
  advantages: jax.Array
  old: Scores
  ref: Scores | None
  current: Scores


def single_samples(batch: ScoringBatch, accumulation: int) -> ScoringBatch:
  """The batch as S = accumulation · M samples of n = N / accumulation rollouts: tokens int[S, n, P+L] and so on."""
  num_samples = batch.masks.shape[1]
  each = lambda x: jnp.repeat(x[:, None], num_samples, axis=1)
  return cut(batch.replace(tokens=each(batch.tokens), prompt_mask=each(batch.prompt_mask)), accumulation)


def cut(tree, accumulation: int):
  """Arrays [N, M, …] as [S, n, …]. A microbatch is every accumulation-th rollout: each chip has its share of it."""

  def leaf(x):
    x = x.reshape(-1, accumulation, *x.shape[1:])  # [n, accumulation, M, …]
    return jnp.moveaxis(x, 0, 2).reshape(-1, x.shape[0], *x.shape[3:])

  return jax.tree.map(leaf, tree)


def join(tree, accumulation: int):
  """Arrays [S, n] as [N, M]: the inverse of `cut`."""

  def leaf(x):
    x = x.reshape(accumulation, -1, x.shape[1])  # [accumulation, M, n]
    return jnp.moveaxis(x, 2, 0).reshape(-1, x.shape[1])

  return jax.tree.map(leaf, tree)
