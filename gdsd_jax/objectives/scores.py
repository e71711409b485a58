"""Scores of rollouts: how well a denoiser explains a completion from its partly masked states.

For each Monte Carlo sample a coupled pair of masks, one the complement of the other, predicts every completion token
exactly once: S(x0) = ½ Σ_i w_i s_i, with s_i the token's log-probability (plain) or centred logit (TLC).
"""

from flax import struct
import jax
import jax.numpy as jnp

from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.models.lm_head import LMHead
from gdsd_jax.objectives.token_scores import token_scores


@struct.dataclass
class Scores:
  """Scores of B rollouts under one denoiser, one for each of M mask samples.

  Attributes:
    plain: float32[B, M], from log-probabilities; None if nothing needs them.
    centered: float32[B, M] from centred logits (TLC), or None when no centre was asked for.
  """

  plain: jax.Array | None
  centered: jax.Array | None = None


def token_weights(mask):
  """w_i for a coupled pair: (L+1)/n for the n tokens of the mask, (L+1)/(L−n) for those of its complement. [..., L]."""
  length = mask.shape[-1]
  masked = jnp.sum(mask, axis=-1, keepdims=True)
  # Each count is only used where it is at least one.
  return (length + 1) / jnp.maximum(jnp.where(mask, masked, length - masked), 1).astype(jnp.float32)


def _pairs(first, second):
  """[B, ...] twice -> [2 B, ...], the two of a rollout neighbours: they lie on the chip that the rollout lies on."""
  return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])


def masked_hidden(denoiser: Denoiser, params, tokens, mask, prompt_length: int, prompt_mask=None, dropout_key=None):
  """Hidden state of each completion token, from that pass of a coupled pair in which it is masked. [B, L, D].

  Each token is predicted in one of the two, so that L positions go through the LM head, not 2 L.

  Args:
    mask: bool[B, L], the first mask of the pair.
    dropout_key: random key of an adapter's dropout; None drops nothing. The others as of `sequence_scores`.
  """
  batch, length = mask.shape
  prompt, completion = tokens[:, :prompt_length], tokens[:, prompt_length:]
  attention_mask = None
  if prompt_mask is not None:
    attention_mask = jnp.concatenate([prompt_mask.astype(bool), jnp.ones((batch, length), bool)], axis=1)
    attention_mask = _pairs(attention_mask, attention_mask)
  noised = [
    jnp.concatenate([prompt, jnp.where(masked, denoiser.config.mask_token_id, completion)], axis=1)
    for masked in (mask, ~mask)
  ]
  hidden = denoiser.hidden(params, _pairs(*noised), attention_mask, dropout_key)[:, prompt_length:]
  hidden = hidden.reshape(batch, 2, *hidden.shape[1:])
  return jnp.where(mask[..., None], hidden[:, 0], hidden[:, 1])


def scores_of_hidden(head: LMHead, hidden, completion, masks, weighted: bool = True, center_top_k: int | None = None,
                     center_gradient: bool = False, with_plain: bool = True, mean_column=None) -> Scores:
  """Scores, [B, ...] each, from hidden states [B, ..., L, D], completions int[B, ..., L] and masks bool[B, ..., L].

  The other arguments are those of `sequence_scores` and `token_scores`.
  """
  plain, centered, _ = token_scores(head, hidden, completion, center_top_k, center_gradient, mean_column, with_plain)
  weights = token_weights(masks) if weighted else jnp.ones(masks.shape)
  return Scores(*(None if s is None else 0.5 * jnp.sum(weights * s, axis=-1) for s in (plain, centered)))


def sequence_scores(denoiser: Denoiser, params, tokens, masks, prompt_length: int, prompt_mask=None,
                    weighted: bool = True, center_top_k: int | None = None, center_gradient: bool = False,
                    with_plain: bool = True) -> Scores:
  """Scores S(x0) of rollouts, one for each Monte Carlo mask sample.

  Args:
    denoiser, params: the denoiser whose scores these are.
    tokens: int[B, P+L], prompts (left-padded) and completions.
    masks: bool[M, B, L], the first mask of each coupled pair (`consistent_masks`); the prompt is never masked.
    prompt_length: P.
    prompt_mask: bool[B, P], False at padding; None when no prompt is padded.
    weighted: weights w_i of the forward process; False sets them to one (the official code's first release).
    center_top_k, center_gradient: see `token_scores`.
    with_plain: False leaves the plain scores out (None) where the centred ones need no logits, see `token_scores`.

  Returns:
    Scores of float32[B, M] each.
  """
  if center_top_k is not None and center_top_k < 1:
    raise ValueError(f"center_top_k: must be None or at least 1, not {center_top_k}")
  head, mean_column = denoiser.head(params), None
  if center_gradient and center_top_k is not None and center_top_k >= head.vocab_size:
    mean_column = head.mean_column()  # of all samples

  def one_sample(mask):
    hidden = masked_hidden(denoiser, params, tokens, mask, prompt_length, prompt_mask)
    return scores_of_hidden(head, hidden, tokens[:, prompt_length:], mask, weighted, center_top_k, center_gradient,
                            with_plain, mean_column)

  return jax.tree.map(jnp.transpose, jax.lax.map(one_sample, masks))


def score_noise(student):
  """Standard deviation of a rollout's score across its M mask samples, averaged over rollouts; 0 when M is 1."""
  return jnp.mean(jnp.std(student, axis=1))
