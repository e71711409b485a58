"""Scores of rollouts: how well a denoiser explains a completion from its partly masked states.

For each Monte Carlo sample a coupled pair of masks, one the complement of the other, predicts every completion token
exactly once: S(x0) = ½ Σ_i w_i s_i, with s_i the token's log-probability (plain) or centred logit (TLC).
"""

from flax import struct
import jax
import jax.numpy as jnp

from gdsd_jax.checks import require
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.models.copies import block_bounds, completion_blocks, side_by_side
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.models.lm_head import LMHead
from gdsd_jax.objectives.kept_scores import kept_scores
from gdsd_jax.objectives.surrogates import kl_metrics
from gdsd_jax.objectives.token_scores import Scoring, token_scores
from gdsd_jax.objectives.views import Views


@struct.dataclass
class Scores:
  """Scores of B rollouts under one denoiser: of tokens, float32[B, V, L] in V views, or of M coupled pairs [B, M]."""

  plain: jax.Array | None  # from log-probabilities; None if nothing needs them
  centered: jax.Array | None = None  # from centred logits (TLC); None when no centre was asked for
  entropy: jax.Array | None = None  # of the tokens' distributions in nats; None if not asked for

  @property
  def policy(self):
    """The scores that the policy is trained on: centred ones where they are there (TLC), plain ones otherwise."""
    return self.plain if self.centered is None else self.centered


def token_weights(masks, blocks=None):
  """w_i of a coupled pair [..., L]: (L+1)/n for the n tokens of the mask, (L+1)/(L−n) for those of its complement.

  With blocks, int[B, L] (`completion_blocks`), of pairs [B, M, L], n and L are those of a token's own block: each is
  denoised by itself, after clean ones, and a completion's score is the sum of its blocks'.
  """
  length = masks.shape[-1]
  if blocks is None:
    masked = jnp.sum(masks, axis=-1, keepdims=True)
  else:
    first, end = (bound[:, None] for bound in block_bounds(blocks))
    before = jnp.cumsum(jnp.pad(masks, [(0, 0), (0, 0), (1, 0)]), axis=-1)
    masked = jnp.take_along_axis(before, end, axis=-1) - jnp.take_along_axis(before, first, axis=-1)
    length = end - first
  # Each count is only used where it is at least one.
  return (length + 1) / jnp.maximum(jnp.where(masks, masked, length - masked), 1).astype(jnp.float32)


def pair_scores(scores: Scores | None, masks, weighted: bool = True, coupled: bool = True,
                blocks=None) -> Scores | None:
  """Scores of coupled pairs, float32[B, M], from those of their tokens [B, M, L]: ½ Σ w_i s_i, or with w = 1.

  Of a mask alone, not `coupled`, Σ w_i s_i of the tokens that it masks: that of a pair is the mean of its two masks'.
  `blocks` are as in `token_weights`.
  """
  if scores is None:
    return None
  weights = token_weights(masks, blocks) if weighted else 1.0
  if not coupled:
    weights = 2 * weights * masks
  total = lambda of_tokens: None if of_tokens is None else 0.5 * jnp.sum(weights * of_tokens, axis=-1)
  return Scores(total(scores.plain), total(scores.centered))


def masked_hidden(denoiser: Denoiser, params, tokens, view: Views, attention_mask=None, dropout_key=None):
  """Hidden state [B, L, D] of each completion token in one view; of a coupled pair from that pass that masks it.

  So L positions of a pair go through the LM head, not 2 L. The view's arrays are [B, L] and [B, P]; the attention mask
  is bool[B, P+L], or None. Without a random key, an adapter's dropout drops nothing.

  A block-causal model sees the masks of a token's own block alone, all earlier ones being clean.
  """
  require_scorable(denoiser.config, view)
  batch, length = view.masks.shape
  prompt = tokens[:, :-length]
  if view.prompt_masks is not None:
    prompt = jnp.where(view.prompt_masks, denoiser.config.mask_token_id, prompt)
  passes = jnp.stack([view.masks, ~view.masks], axis=1) if view.coupled else view.masks[:, None]
  count = passes.shape[1]
  each = lambda x: jnp.broadcast_to(x[:, None], (batch, count, *x.shape[1:]))
  noised = jnp.where(passes, denoiser.config.mask_token_id, each(tokens[:, -length:]))
  if denoiser.config.block_length is not None:
    copies = side_by_side(tokens, noised, attention_mask, denoiser.config.block_length, denoiser.token_parts)
    hidden = denoiser.hidden_of_copies(params, copies, dropout_key)
  else:
    # The two passes of a rollout are neighbours, on the chip that the rollout lies on.
    flat = lambda x: x.reshape(count * batch, -1)
    noised = flat(jnp.concatenate([each(prompt), noised], axis=2))
    attention_mask = None if attention_mask is None else flat(each(attention_mask))
    hidden = denoiser.hidden(params, noised, attention_mask, dropout_key)[:, -length:]
    hidden = hidden.reshape(batch, count, *hidden.shape[1:])
  return jnp.where(view.masks[..., None], hidden[:, 0], hidden[:, 1]) if view.coupled else hidden[:, 0]


def require_scorable(model: DenoiserConfig, views: Views) -> None:
  """Raises ValueError, one line, where views mean something to models alone whose tokens all see each other."""
  require(model.block_length is None or views.prompt_masks is None, "objective.name",
          f"its views mask tokens of the prompt, but models of the family {model.family}, which attend from block to"
          " block, are given what is before a block clean; set objective.prompt_masking to 0 if it has that")


def scores_of_hidden(head: LMHead, hidden, targets, scoring: Scoring, kept=None) -> Scores:
  """Scores [B, ..., L] of tokens int[B, ..., L] from hidden states [B, ..., L, D]; `kept` is as in `kept_scores`."""
  if scoring.kept:
    return Scores(kept_scores(head, hidden / scoring.temperature, targets, kept))
  plain, centered, _, entropy = token_scores(head, hidden, targets, scoring)
  return Scores(plain, centered, entropy)


def view_scores(denoiser: Denoiser, params, tokens, view: Views, attention_mask, scoring: Scoring,
                kept=None) -> Scores:
  """Scores [B, L] of the tokens in one view; the arguments are those of `masked_hidden` and `scores_of_hidden`."""
  hidden = masked_hidden(denoiser, params, tokens, view, attention_mask)
  return scores_of_hidden(denoiser.head(params), hidden, view.goals(tokens), scoring, kept)


def sequence_scores(denoiser: Denoiser, params, tokens, masks, prompt_length: int, prompt_mask=None,
                    weighted: bool = True, center_top_k: int | None = None, center_gradient: bool = False) -> Scores:
  """Scores S(x0) of rollouts, one for each Monte Carlo mask sample (GDSD, arXiv 2605.29398).

  Args:
    denoiser, params: the denoiser whose scores these are, and its parameters.
    tokens: int[B, P+L], prompts (left-padded) and completions.
    masks: bool[M, B, L], the first mask of each coupled pair (`consistent_masks`); the prompt is never masked.
    prompt_length: P.
    prompt_mask: bool[B, P], False at padding; None when no prompt is padded.
    weighted: whether tokens have the weights of the forward process (`token_weights`); False weighs all alike, as the
      official code's first release does.
    center_top_k, center_gradient: as in `Scoring`.

  Returns:
    Scores of float32[B, M] each; `centered` is None without `center_top_k`.

  Raises:
    ValueError: center_top_k is less than 1, or tokens, masks and prompt_length do not agree.
  """
  scoring = Scoring(center_top_k, center_gradient)
  if prompt_length + masks.shape[2] != tokens.shape[1]:
    raise ValueError(f"prompt_length: {prompt_length} and the masks' {masks.shape[2]} must add up to the"
                     f" {tokens.shape[1]} positions of tokens")
  attention_mask, lengths = None, jnp.full(len(tokens), prompt_length)
  if prompt_mask is not None:
    lengths = jnp.sum(prompt_mask.astype(bool), axis=1)
    attention_mask = jnp.concatenate([prompt_mask.astype(bool), jnp.ones(masks.shape[1:], bool)], axis=1)
  blocks = completion_blocks(denoiser.config, lengths, masks.shape[2])

  def score(mask):
    view = Views(mask, coupled=True)
    return view_scores(denoiser, params, tokens, view, attention_mask, scoring)

  of_tokens = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (jax.lax.map(score, masks), masks))
  return pair_scores(*of_tokens, weighted, blocks=blocks)


def with_kl(loss, metrics, scores: Scores, ref: Scores | None, completion_length: int, beta: float):
  """(loss + β KL, metrics with "kl"), where KL is the mean of ½ (S_θ − S_ref)² / L; none without ref.

  The scores are always the plain ones: under TLC the vocabulary mean of two different models does not cancel, and
  squared and multiplied by L it would explode. Raises ValueError if beta is not 0, and there is no ref.
  """
  if ref is None:
    if beta:
      raise ValueError(f"ref: scores of the reference are needed when beta is {beta}")
    return loss, metrics
  kl = 0.5 * jnp.square(scores.plain - ref.plain)
  mean = jnp.mean(kl) / completion_length
  return loss + beta * mean, {**metrics, **kl_metrics(mean, kl / completion_length)}
