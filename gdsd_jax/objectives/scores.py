"""Scores of rollouts: how well a denoiser explains a completion from its partly masked states.

For each Monte Carlo sample a coupled pair of masks, one the complement of the other, predicts every completion token
exactly once: S(x0) = ½ Σ_i w_i s_i, with s_i the token's log-probability (plain) or centred logit (TLC).
"""

from flax import struct
import jax
import jax.numpy as jnp

from gdsd_jax import parallel
from gdsd_jax.models.denoiser import Denoiser


@struct.dataclass
class Scores:
  """Scores of B rollouts under one denoiser, one for each of M mask samples.

  Attributes:
    plain: float32[B, M], from log-probabilities.
    centered: float32[B, M] from centred logits (TLC), or None when no centre was asked for.
  """

  plain: jax.Array
  centered: jax.Array | None = None


def token_scores(logits, targets, center_top_k: int | None = None, center_gradient: bool = False, mesh=None):
  """Scores s_i of single tokens.

  Args:
    logits: float[..., V] (z).
    targets: int[...] (y).
    center_top_k: k of the token-level logit centre, the mean of the k largest logits; V or more is the mean of all
      (GDSD's Eq. 8). None: no centred score.
    center_gradient: whether the gradient flows through the centre. If not, the centred score is
      log p_y − sg[mean_{v in top-k} log p_v]: the same value, but the gradient of the log-probability.
    mesh: that the vocabulary is split over, or None.

  Returns:
    (plain, centered): float[...] each, z_y − logsumexp(z) and z_y − mean_{v in top-k} z_v; centered may be None.
  """
  target = parallel.pick(logits, targets)
  normalizer = jax.nn.logsumexp(logits, axis=-1)
  plain = target - normalizer
  if center_top_k is None:
    return plain, None
  if center_top_k >= logits.shape[-1]:
    center = jnp.mean(logits, axis=-1)
  else:
    center = jnp.mean(parallel.top_k(logits, center_top_k, mesh), axis=-1)
  if center_gradient:
    return plain, target - center
  return plain, plain - jax.lax.stop_gradient(center - normalizer)


def token_weights(mask):
  """w_i for a coupled pair: (L+1)/n for the n tokens of the mask, (L+1)/(L−n) for those of its complement. [..., L]."""
  length = mask.shape[-1]
  masked = jnp.sum(mask, axis=-1, keepdims=True)
  # Each count is only used where it is at least one.
  return (length + 1) / jnp.maximum(jnp.where(mask, masked, length - masked), 1).astype(jnp.float32)


def _pairs(first, second):
  """[B, ...] twice -> [2 B, ...], the two of a rollout neighbours: they lie on the chip that the rollout lies on."""
  return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])


def sequence_scores(denoiser: Denoiser, params, tokens, masks, prompt_length: int, prompt_mask=None,
                    weighted: bool = True, center_top_k: int | None = None, center_gradient: bool = False,
                    dropout_key=None) -> Scores:
  """Scores S(x0) of rollouts, one for each Monte Carlo mask sample.

  Args:
    denoiser, params: the denoiser whose scores these are.
    tokens: int[B, P+L], prompts (left-padded) and completions.
    masks: bool[M, B, L], the first mask of each coupled pair (`consistent_masks`); the prompt is never masked.
    prompt_length: P.
    prompt_mask: bool[B, P], False at padding; None when no prompt is padded.
    weighted: weights w_i of the forward process; False sets them to one (the official code's first release).
    center_top_k, center_gradient: see `token_scores`.
    dropout_key: random key of an adapter's dropout; None drops nothing.

  Returns:
    Scores of float32[B, M] each.
  """
  if center_top_k is not None and center_top_k < 1:
    raise ValueError(f"center_top_k: must be None or at least 1, not {center_top_k}")
  batch, length = tokens.shape[0], tokens.shape[1] - prompt_length
  prompt, completion = tokens[:, :prompt_length], tokens[:, prompt_length:]
  attention_mask = None
  if prompt_mask is not None:
    attention_mask = jnp.concatenate([prompt_mask.astype(bool), jnp.ones((batch, length), bool)], axis=1)
    attention_mask = _pairs(attention_mask, attention_mask)

  def score_hidden(hidden):
    return token_scores(denoiser.logits(params, hidden), completion, center_top_k, center_gradient, denoiser.mesh)

  if denoiser.remat:
    # Otherwise the float32 logits of every sample would wait for the backward pass.
    score_hidden = jax.checkpoint(score_hidden, prevent_cse=False)

  def one_sample(sample):
    mask, key = sample
    noised = [
      jnp.concatenate([prompt, jnp.where(masked, denoiser.config.mask_token_id, completion)], axis=1)
      for masked in (mask, ~mask)
    ]
    hidden = denoiser.hidden(params, _pairs(*noised), attention_mask, key)[:, prompt_length:]
    hidden = hidden.reshape(batch, 2, *hidden.shape[1:])
    # Each token is predicted in one pass of the pair, so L positions go through the LM head, not 2 L.
    hidden = jnp.where(mask[..., None], hidden[:, 0], hidden[:, 1])
    plain, centered = score_hidden(hidden)
    weights = token_weights(mask) if weighted else jnp.ones((batch, length))
    return Scores(*(None if s is None else 0.5 * jnp.sum(weights * s, axis=-1) for s in (plain, centered)))

  keys = None if dropout_key is None else jax.random.split(dropout_key, len(masks))
  return jax.tree.map(jnp.transpose, jax.lax.map(one_sample, (masks, keys)))
