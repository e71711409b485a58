"""Scores of single tokens from hidden states, without logits in memory: forward and backward in one pass of the head.

Let y be the target, z the logits, and o the logsumexp of all logits but z_y. Then log p_y = log sigmoid(z_y − o), and
its gradient by the hidden state is (1 − p_y) (W_y − E[W_v]), with the mean over v ≠ y by their probabilities. That mean
is a sum over the vocabulary like o itself, so one pass gives both, and the backward pass has no logits to make again.
Neither formula subtracts numbers that are almost equal: what a policy is most sure of stays exact, in bfloat16 too.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gdsd_jax.checks import require
from gdsd_jax.models.largest import largest_of, largest_so_far
from gdsd_jax.models.lm_head import accumulator, LMHead, multiply, over_vocabulary, Share
from gdsd_jax.objectives.head_gradient import mean_of_columns, weight_gradient


@dataclasses.dataclass(frozen=True)
class Scoring:
  """Which scores are made, and how. Hashable, so it can be a static argument of `jax.jit`."""

  # k of the token-level logit centre (TLC), the mean of the k largest logits. The vocabulary's size or more is the mean
  # of all logits (GDSD's Eq. 8); None makes no centred scores.
  center_top_k: int | None = None
  # Whether the gradient flows through the centre. If not, the centred score is log p_y − sg[mean_{v in top-k} log p_v]:
  # the same value, but the gradient of the log-probability.
  center_gradient: bool = False
  with_plain: bool = True  # False leaves plain scores out where centred ones need no logits
  with_entropy: bool = False  # whether the policy's entropy is told, too, wherever the scores need logits
  temperature: float = 1.0  # T of the distribution that is scored, softmax(z / T)
  kept: bool = False  # whether that is over the tokens which the sampler's filters left, not all (`kept_scores`)

  def __post_init__(self):
    require(self.center_top_k is None or self.center_top_k >= 1, "center_top_k",
            f"must be None or at least 1, not {self.center_top_k}")
    require(self.temperature > 0, "temperature", f"must be positive, not {self.temperature}")

  def adds_in_place(self, vocab_size: int) -> bool:
    """Whether the gradient by the head is made by the fold over the vocabulary, which can go on from one before it."""
    without_logits = self.center_gradient and not self.with_plain and (self.center_top_k or 0) >= vocab_size
    return not (self.kept or without_logits)


PLAIN = Scoring()


class TokenScores(NamedTuple):
  """Scores of tokens, float32[B, ...] each."""

  plain: jax.Array | None  # z_y − logsumexp(z); None, like lead, if it was left out
  centered: jax.Array | None  # z_y − mean_{v in top-k} z_v; None when no centre was asked for
  lead: jax.Array | None  # z_y − max_{v ≠ y} z_v, positive where the target is the prediction; it has no gradient
  # −Σ_v p_v log p_v in nats, whatever the target; it has no gradient. None where it was not asked for or no logits are.
  entropy: jax.Array | None = None


def token_scores(head: LMHead, hidden, targets, scoring: Scoring = PLAIN) -> TokenScores:
  """Scores of the tokens targets, int[B, ...], from hidden states [B, ..., D] that are aligned with them.

  With all of the vocabulary in the centre, the centred score is h · (W_y − mean_v W_v), linear in the hidden state h.
  It needs no logits: with the centre's gradient and without the plain score there are none.
  """
  if scoring.temperature != 1.0:
    hidden = (hidden / scoring.temperature).astype(hidden.dtype)  # whose logits are z / T
  if scoring.center_top_k is None or scoring.center_top_k < head.vocab_size:
    return _scores(scoring, head, hidden, targets)
  centered = jnp.sum(hidden * (head.columns(targets) - head.mean_column()), axis=-1)
  if scoring.center_gradient and not scoring.with_plain:
    return TokenScores(None, centered, None)
  plain, _, lead, entropy = _scores(Scoring(with_entropy=scoring.with_entropy), head, hidden, targets)
  if not scoring.center_gradient:
    centered = plain + jax.lax.stop_gradient(centered - plain)
  return TokenScores(plain, centered, lead, entropy)


class _Pass(NamedTuple):
  """What a pass over the vocabulary gives for each row; "the others" are all tokens but the target."""

  lead: jax.Array  # z_y − the largest logit of the others
  others: jax.Array  # the others' logsumexp
  centered: jax.Array | None  # z_y − the mean of the k largest logits; None without a centre
  top_tokens: jax.Array | None  # int[..., k], the tokens of these; None without a centre
  surplus: jax.Array  # z_y − the others' logsumexp
  mean_column: jax.Array | None  # [..., D], E[W_v] over the others; None if it was not asked for
  target_column: jax.Array | None  # [..., D], W_y; None where mean_column is
  others_entropy: jax.Array | None  # of the distribution over the others alone, in nats; None if it was not asked for

  @property
  def scores(self) -> TokenScores:
    return TokenScores(jax.nn.log_sigmoid(self.surplus), self.centered, self.lead, self.entropy)

  @property
  def entropy(self) -> jax.Array | None:
    """The entropy over all tokens: that of whether it is the target, and with 1 − p_y that of which other it is."""
    if self.others_entropy is None:
      return None
    log_target, log_other = jax.nn.log_sigmoid(self.surplus), jax.nn.log_sigmoid(-self.surplus)
    return jnp.exp(log_other) * (self.others_entropy - log_other) - jnp.exp(log_target) * log_target


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scores(scoring: Scoring, head: LMHead, hidden, targets) -> TokenScores:
  return _pass(head, hidden, targets, scoring).scores


def _forward(scoring: Scoring, head: LMHead, hidden, targets):
  """The scores, and their derivatives by the hidden states or what those by the head are made of, where needed."""
  trains_head = any(part.perturbed for part in jax.tree.leaves(head.weight))  # several of a quantised one
  moves_hidden = hidden.perturbed
  head, hidden, targets = jax.tree.map(lambda primal: primal.value, (head, hidden, targets))
  found = _pass(head, hidden, targets, scoring, with_mean=moves_hidden)
  top_tokens = found.top_tokens if scoring.center_gradient else None
  direction = center_direction = None
  if moves_hidden:
    direction = jax.nn.sigmoid(-found.surplus)[..., None] * (found.target_column - found.mean_column)
    if top_tokens is not None:
      center_direction = found.target_column - mean_of_columns(head, top_tokens, hidden)
  for_head = (head, hidden, found.surplus, found.others, top_tokens) if trains_head else None
  return found.scores, (direction, center_direction, for_head, targets, jnp.zeros((), hidden.dtype))


def _backward(scoring: Scoring, residuals, cotangents: TokenScores):
  direction, center_direction, for_head, targets, like = residuals
  is_zero = lambda x: x is None or isinstance(x, jax.custom_derivatives.SymbolicZero)
  plain, center, *_ = (jnp.zeros(targets.shape, jnp.float32) if is_zero(x) else x for x in cotangents)
  if not scoring.center_gradient:
    plain, center = plain + center, jnp.zeros(targets.shape, jnp.float32)
  of_hidden = of_head = None
  if direction is not None:
    of_hidden = plain[..., None] * direction
    if center_direction is not None:
      of_hidden = of_hidden + center[..., None] * center_direction
    of_hidden = of_hidden.astype(like.dtype)
  if for_head is not None:
    head, hidden, surplus, others, top_tokens = for_head
    missing = plain * jax.nn.sigmoid(-surplus)  # times 1 − p_y
    weight = weight_gradient(head, hidden, targets, others, top_tokens, missing, center)
    of_head = head.replace(weight=weight, gradient=None)
  return of_head, of_hidden, None


_scores.defvjp(_forward, _backward, symbolic_zeros=True)


def _pass(head: LMHead, hidden, targets, scoring: Scoring, with_mean: bool = False) -> _Pass:
  """One pass over the vocabulary for hidden states [B, ..., D]."""
  top_k = scoring.center_top_k

  def compute(share: Share, rows):
    hidden, targets = rows
    flat, goal = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1, 1) - share.first

    def step(carry, weight, start):
      highest, total, target, columns, best, spread = carry
      logits = multiply(flat, weight)
      is_target = start + jnp.arange(logits.shape[1]) == goal
      others = jnp.where(is_target, -jnp.inf, logits)
      new_highest = jnp.maximum(highest, jnp.max(others, axis=1))
      decay, shares = jnp.exp(highest - new_highest), jnp.exp(others - new_highest[:, None])
      if spread is not None:
        # Apart from the rest, which so rounds as it does without an entropy.
        apart, top = jax.lax.optimization_barrier((logits, new_highest))
        gap = jnp.where(is_target, 0, top[:, None] - apart)
        of_chunk = jnp.sum(jnp.exp(-gap) * gap, axis=1)
        spread = decay * (spread + total * (new_highest - highest)) + of_chunk
      total = total * decay + jnp.sum(shares, axis=1)
      target = target + jnp.sum(jnp.where(is_target, logits, 0), axis=1)
      if with_mean:
        mean, of_target = columns
        mean = mean * decay[:, None] + multiply(shares.astype(weight.dtype), weight.T)
        # Looked up here, since TPUs would copy the whole weight into another layout for a look-up in it.
        place = goal[:, 0] - start
        is_here = (place >= 0) & (place < weight.shape[1])
        found = jnp.take(weight, jnp.where(is_here, place, 0), axis=1).T
        columns = mean, jnp.where(is_here[:, None], found, of_target)
      if top_k is not None:
        best = largest_so_far(best, logits, share.first + start)
      return new_highest, total, target, columns, best, spread

    count, dtype = len(flat), accumulator(flat.dtype)
    zeros, least = jnp.zeros(count, dtype), jnp.full(count, jnp.finfo(dtype).min)
    columns = best = None
    if with_mean:  # the sum of the others' columns times exp(z − highest), and the target's column
      columns = jnp.zeros(flat.shape, dtype), jnp.zeros_like(flat)
    if top_k is not None:
      best = jnp.full((count, top_k), -jnp.inf, dtype), jnp.full((count, top_k), -1, jnp.int32)
    spread = zeros if scoring.with_entropy else None  # sum of highest − z of the others times exp(z − highest)
    found = _over_shares(share, *share.fold(flat.dtype, step, (least, zeros, zeros, columns, best, spread)))
    return jax.tree.map(lambda x: x.reshape(*targets.shape, *x.shape[1:]), found)

  return over_vocabulary(compute, head, (hidden, targets))


def _over_shares(share: Share, highest, total, target, columns, best, spread) -> _Pass:
  """The pass over the whole vocabulary, from what those over each chip's share ended with."""
  of_share, highest = highest, share.max(highest)
  scale = jnp.exp(of_share - highest)
  if spread is not None:
    spread = share.sum(scale * (spread + total * (highest - of_share)))
  total, target = share.sum(total * scale), share.sum(target)
  centered = top_tokens = others_entropy = None
  if best is not None:
    logits, top_tokens = largest_of(*map(share.gather, best), best[0].shape[1])
    centered = target - jnp.mean(logits, axis=1)
  mean = of_target = None
  if columns is not None:
    mean, of_target = share.sum(columns[0] * scale[:, None]) / total[:, None], share.sum(columns[1])
  lead, log_total = target - highest, jnp.log(total)
  if spread is not None:
    others_entropy = log_total + spread / total
  return _Pass(lead, highest + log_total, centered, top_tokens, lead - log_total, mean, of_target, others_entropy)
