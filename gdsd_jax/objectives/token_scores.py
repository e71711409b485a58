"""Scores of single tokens from hidden states, without logits in memory: forward and backward in one pass of the head.

With y the target, z the logits and o the logsumexp of all others, log p_y = log sigmoid(z_y − o), and its gradient by
the hidden state is (1 − p_y) (W_y − E[W_v]), the mean over v ≠ y by their probabilities. That mean is a sum over the
vocabulary like o itself, so that one pass gives both and the backward pass has no logits to make again. Neither
subtracts numbers that are almost equal: what an RL policy is most sure of stays exact, in bfloat16 too.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gdsd_jax.models.lm_head import accumulator, largest, LMHead, multiply, over_vocabulary, Share


class TokenScores(NamedTuple):
  """Scores of tokens, float32[B, ...] each.

  Attributes:
    plain: z_y − logsumexp(z); None, as lead, if it was left out.
    centered: z_y − mean_{v in top-k} z_v, or None when no centre was asked for.
    lead: z_y − max_{v ≠ y} z_v; positive where the target is the prediction. It has no gradient.
  """

  plain: jax.Array | None
  centered: jax.Array | None
  lead: jax.Array | None


def token_scores(head: LMHead, hidden, targets, center_top_k: int | None = None, center_gradient: bool = False,
                 mean_column=None, with_plain: bool = True) -> TokenScores:
  """Scores s_i of single tokens.

  With all of the vocabulary in the centre and its gradient, the centred score is h · (W_y − mean_v W_v), linear in the
  hidden state h: it needs no logits, and without the plain score there are none.

  Args:
    head: the LM head.
    hidden: [B, ..., D] hidden states, aligned with the targets.
    targets: int[B, ...] (y).
    center_top_k: k of the token-level logit centre, the mean of the k largest logits; V or more is the mean of all
      (GDSD's Eq. 8). None: no centred score.
    center_gradient: whether the gradient flows through the centre. If not, the centred score is
      log p_y − sg[mean_{v in top-k} log p_v]: the same value, but the gradient of the log-probability.
    mean_column: `head.mean_column()`, for who asks for many scores under the same weights.
    with_plain: False leaves the plain score out where the centred one needs no logits.
  """
  if center_top_k is None or center_top_k < head.vocab_size or not center_gradient:
    return _scores((head.tied, head.mesh, center_top_k, center_gradient), head.weight, hidden, targets)
  mean_column = head.mean_column() if mean_column is None else mean_column
  centered = jnp.sum(hidden * (head.columns(targets) - mean_column), axis=-1)
  if not with_plain:
    return TokenScores(None, centered, None)
  plain, _, lead = _scores((head.tied, head.mesh, None, False), head.weight, hidden, targets)
  return TokenScores(plain, centered, lead)


class _Folded(NamedTuple):
  """What a pass over the vocabulary gives of each row: of all tokens but the target, and of the target."""

  lead: jax.Array  # z_y − the largest of the others
  others: jax.Array  # the others' logsumexp
  surplus: jax.Array  # z_y − that
  center: jax.Array | None  # z_y − mean of the top k
  mean_column: jax.Array | None  # E[W_v] over the others, [R, D]
  top_tokens: jax.Array | None  # int[R, k]


# settings: (tied, mesh, center_top_k, center_gradient). A tuple, since custom_vjp takes them by position.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scores(settings, weight, hidden, targets) -> TokenScores:
  tied, mesh, top_k, _ = settings
  return _of(_fold(LMHead(weight, tied, mesh), hidden, targets, top_k))


def _of(folded: _Folded) -> TokenScores:
  return TokenScores(jax.nn.log_sigmoid(folded.surplus), folded.center, folded.lead)


def _fold(head: LMHead, hidden, targets, top_k: int | None, with_mean=False, with_top_tokens=False) -> _Folded:
  """One pass of hidden [B, ..., D] over the vocabulary; of [B, S, ..., D] one for each of S. Arrays of [B, ...]."""
  if targets.ndim > 2:
    parts = jnp.moveaxis(hidden, 1, 0), jnp.moveaxis(targets, 1, 0)
    folded = jax.lax.map(lambda part: _fold(head, *part, top_k, with_mean, with_top_tokens), parts)
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), folded)
  whole_center = top_k is not None and top_k >= head.vocab_size

  def compute(share: Share, rows):
    hidden, targets = rows
    flat, goal = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1, 1) - share.first
    count = len(flat)

    def step(carry, logits, weight, start):
      top, total, target, mean, center = carry
      is_target = start + jnp.arange(logits.shape[1]) == goal
      others = jnp.where(is_target, -jnp.inf, logits)
      highest = jnp.maximum(top, jnp.max(others, axis=1))
      decay = jnp.exp(top - highest)
      shares = jnp.exp(others - highest[:, None])
      total = total * decay + jnp.sum(shares, axis=1)
      target = target + jnp.sum(jnp.where(is_target, logits, 0), axis=1)
      if with_mean:
        mean = mean * decay[:, None] + multiply(shares.astype(weight.dtype), weight.T)
      if whole_center:
        center = center + jnp.sum(logits, axis=1)
      elif with_top_tokens:
        center = _largest_tokens(center, logits, start + share.first)
      elif top_k is not None:
        center = largest(jnp.concatenate([center, largest(logits, min(top_k, logits.shape[1]))], axis=1), top_k)
      return highest, total, target, mean, center

    dtype = accumulator(flat.dtype)
    zeros, least = jnp.zeros(count, dtype), jnp.full(count, jnp.finfo(dtype).min)
    center = None
    if whole_center:
      center = zeros
    elif top_k is not None:
      center = jnp.full((count, top_k), -jnp.inf, dtype)
      center = (center, jnp.full(center.shape, -1, jnp.int32)) if with_top_tokens else center
    mean = jnp.zeros(flat.shape, dtype) if with_mean else None
    top, total, target, mean, center = share.fold(flat, step, (least, zeros, zeros, mean, center))

    highest = share.max(top)
    scale = jnp.exp(top - highest)
    total, target = share.sum(total * scale), share.sum(target)
    tokens = None
    if with_mean:
      mean = share.sum(mean * scale[:, None]) / total[:, None]
    if whole_center:
      center = target - share.sum(center) / head.vocab_size
    elif top_k is not None:
      logits, tokens = center if with_top_tokens else (center, None)
      logits, best = jax.lax.top_k(share.gather(logits), top_k)
      tokens = None if tokens is None else jnp.take_along_axis(share.gather(tokens), best, axis=1)
      center = target - jnp.mean(logits, axis=1)
    lead, log_total = target - highest, jnp.log(total)
    folded = _Folded(lead, highest + log_total, lead - log_total, center, mean, tokens)
    return jax.tree.map(lambda x: x.reshape(*targets.shape, *x.shape[1:]), folded)

  return over_vocabulary(compute, head, (hidden, targets))


def _largest_tokens(best, logits, first):
  """The largest logits so far and their tokens, ([R, k], int[R, k]), after a chunk whose first token is `first`."""
  values, tokens = best
  k = values.shape[1]
  columns = jnp.broadcast_to(first + jnp.arange(logits.shape[1]), logits.shape)
  values, places = jax.lax.top_k(jnp.concatenate([values, logits], axis=1), k)
  return values, jnp.take_along_axis(jnp.concatenate([tokens, columns], axis=1), places, axis=1)


def _forward(settings, weight, hidden, targets):
  tied, mesh, top_k, center_gradient = settings
  head, targets = LMHead(weight.value, tied, mesh), targets.value
  through_center = center_gradient and top_k is not None
  folded = _fold(head, hidden.value, targets, top_k, with_mean=hidden.perturbed, with_top_tokens=through_center)
  direction = center_direction = None
  if hidden.perturbed:
    target_columns = head.columns(targets)
    direction = jax.nn.sigmoid(-folded.surplus)[..., None] * (target_columns - folded.mean_column)
    if through_center:
      center_direction = target_columns - _mean_of_columns(head, folded.top_tokens, hidden.value.dtype)
  trained = None
  if weight.perturbed:
    trained = head.weight, hidden.value, targets, folded.surplus, folded.others, folded.top_tokens
  return _of(folded), (direction, center_direction, trained, jnp.zeros((), hidden.value.dtype))


def _backward(settings, residuals, gradients: TokenScores):
  tied, mesh, top_k, center_gradient = settings
  direction, center_direction, trained, like = residuals
  zero = 0.0 if direction is None else jnp.zeros(direction.shape[:-1])
  of_plain, of_center, _ = (zero if _is_zero(gradient) else gradient for gradient in gradients)
  if not center_gradient:
    of_plain, of_center = of_plain + of_center, zero
  for_hidden = None
  if direction is not None:
    for_hidden = of_plain[..., None] * direction
    if center_direction is not None:
      for_hidden = for_hidden + of_center[..., None] * center_direction
    for_hidden = for_hidden.astype(like.dtype)
  for_weight = None
  if trained is not None:
    weight, hidden, targets, surplus, others, top_tokens = trained
    of_plain, of_center = (jnp.broadcast_to(x, targets.shape) for x in (of_plain, of_center))
    rows = hidden, targets, surplus, others, top_tokens, of_plain, of_center
    for_weight = _weight_gradient(LMHead(weight, tied, mesh), rows)
  return for_weight, for_hidden, None


def _is_zero(gradient) -> bool:
  return gradient is None or isinstance(gradient, jax.custom_derivatives.SymbolicZero)


def _weight_gradient(head: LMHead, rows):
  """Gradient by the head's weight, of its shape: logits are made again, chunk by chunk.

  Of hidden states [B, S, ..., D] one of S at a time has its logits in memory.
  """

  def compute(share: Share, rows):
    hidden, targets, surplus, others, top_tokens, of_plain, of_center = rows
    parts = targets.shape[1] if targets.ndim > 2 else 1

    def by_part(x, *row):
      """[B, S, ...] as [S, rows, *row]."""
      x = x.reshape(x.shape[0], parts, -1, *row)
      return jnp.swapaxes(x, 0, 1).reshape(parts, -1, *row)

    flat, goal = by_part(hidden, hidden.shape[-1]), by_part(targets, 1) - share.first
    surplus, others, of_plain, of_center = (by_part(x, 1) for x in (surplus, others, of_plain, of_center))
    missing = of_plain * jax.nn.sigmoid(-surplus)  # times 1 − p_y
    tokens = None if top_tokens is None else by_part(top_tokens, top_tokens.shape[-1]) - share.first
    vocabulary_axis = 0 if head.tied else 1

    def step(gradient, weight, start):
      size = weight.shape[1]

      def add_part(columns, part):
        flat, goal, others, missing, of_center, tokens = part
        of_logits = -missing * jnp.exp(multiply(flat, weight) - others)
        of_logits = jnp.where(start + jnp.arange(size) == goal, missing + of_center, of_logits)
        if tokens is not None:
          of_logits = of_logits - of_center / tokens.shape[1] * _membership(tokens - start, size)
        return columns + multiply(flat.T, of_logits.astype(flat.dtype)), None

      zeros = jnp.zeros(weight.shape, accumulator(weight.dtype))
      columns, _ = jax.lax.scan(add_part, zeros, (flat, goal, others, missing, of_center, tokens))
      columns = share.sum_over_batch(columns).astype(gradient.dtype)
      columns = columns.T if head.tied else columns
      return jax.lax.dynamic_update_slice_in_dim(gradient, columns, start, vocabulary_axis)

    return share.fold_weight(flat.dtype, step, jnp.zeros_like(share.head.weight))

  return over_vocabulary(compute, head, rows, gives_weight=True)


def _mean_of_columns(head: LMHead, tokens, dtype):
  """Mean of each row's columns, float32[B, ..., D], of int[B, ..., k] tokens."""

  def compute(share: Share, tokens):
    flat = tokens.reshape(-1, tokens.shape[-1]) - share.first

    def step(total, weight, start):
      return total + multiply(_membership(flat - start, weight.shape[1]).astype(dtype), weight.T)

    zeros = jnp.zeros((len(flat), share.width), accumulator(dtype))
    total = share.fold_weight(dtype, step, zeros)
    return share.sum(total).reshape(*tokens.shape[:-1], -1) / tokens.shape[-1]

  return over_vocabulary(compute, head, tokens)


def _membership(tokens, size: int):
  """1 at each of a row's tokens that lie in 0 … size, else 0. int[R, k] -> float32[R, size]."""
  rows = len(tokens)
  places = jnp.where((tokens >= 0) & (tokens < size), tokens, size)  # a negative index would count from the end
  return jnp.zeros((rows, size)).at[jnp.arange(rows)[:, None], places].set(1, mode="drop")


_scores.defvjp(_forward, _backward, symbolic_zeros=True)
