"""Scores of rollouts: how well a denoiser explains a completion from its partly masked states.

For each Monte Carlo sample a coupled pair of masks, one the complement of the other, predicts every completion token
exactly once: S(x0) = ½ Σ_i w_i s_i, with s_i the token's log-probability (plain) or centred logit (TLC).
"""

from flax import struct
import jax
import jax.numpy as jnp

from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.models.lm_head import LMHead
from gdsd_jax.objectives.token_scores import Scoring, token_scores


@struct.dataclass
class Scores:
  """Scores of B rollouts under one denoiser, one for each of M mask samples; with `Scoring.per_token` [B, M, L]."""

  plain: jax.Array | None  # float32[B, M] from log-probabilities; None if nothing needs them
  centered: jax.Array | None = None  # float32[B, M] from centred logits (TLC); None when no centre was asked for
  entropy: jax.Array | None = None  # float32[B, M], mean of the tokens' entropies in nats; None if not asked for

  @property
  def policy(self):
    """The scores that the policy is trained on: centred ones where they are there (TLC), plain ones otherwise."""
    return self.plain if self.centered is None else self.centered


def token_weights(mask):
  """w_i of a coupled pair [..., L]: (L+1)/n for the n tokens of the mask, (L+1)/(L−n) for those of its complement."""
  length = mask.shape[-1]
  masked = jnp.sum(mask, axis=-1, keepdims=True)
  # Each count is only used where it is at least one.
  return (length + 1) / jnp.maximum(jnp.where(mask, masked, length - masked), 1).astype(jnp.float32)


def masked_hidden(denoiser: Denoiser, params, tokens, mask, prompt_mask=None, dropout_key=None):
  """Hidden state [B, L, D] of each completion token, from that pass of a coupled pair in which it is masked.

  So L positions go through the LM head, not 2 L. The mask is bool[B, L], the first of the pair; without a random key,
  an adapter's dropout drops nothing; other arguments are those of `sequence_scores`.
  """
  batch, length = mask.shape
  both = lambda x: jnp.broadcast_to(x[:, None], (batch, 2, *x.shape[1:]))
  # The two passes of a rollout are neighbours, on the chip that the rollout lies on.
  flat = lambda prompt, completion: jnp.concatenate([both(prompt), completion], axis=2).reshape(2 * batch, -1)
  masked = jnp.stack([mask, ~mask], axis=1)
  noised = flat(tokens[:, :-length], jnp.where(masked, denoiser.config.mask_token_id, both(tokens[:, -length:])))
  attention_mask = None if prompt_mask is None else flat(prompt_mask.astype(bool), jnp.ones_like(masked))
  hidden = denoiser.hidden(params, noised, attention_mask, dropout_key)[:, -length:]
  hidden = hidden.reshape(batch, 2, *hidden.shape[1:])
  return jnp.where(mask[..., None], hidden[:, 0], hidden[:, 1])


def scores_of_hidden(head: LMHead, hidden, completion, mask, scoring: Scoring) -> Scores:
  """Scores [B, ...] from hidden states [B, ..., L, D], completions int[B, ..., L] and masks bool[B, ..., L]."""
  *scores, _, entropy = token_scores(head, hidden, completion, scoring)
  if not scoring.per_token:
    weights = token_weights(mask) if scoring.weighted else jnp.ones(mask.shape, jnp.float32)
    scores = (None if s is None else 0.5 * jnp.sum(weights * s, axis=-1) for s in scores)
  return Scores(*scores, None if entropy is None else jnp.mean(entropy, axis=-1))


def sample_scores(denoiser: Denoiser, params, tokens, mask, prompt_mask, scoring: Scoring) -> Scores:
  """Scores [B] of one mask sample; the arguments are those of `masked_hidden`."""
  hidden = masked_hidden(denoiser, params, tokens, mask, prompt_mask)
  return scores_of_hidden(denoiser.head(params), hidden, tokens[:, -mask.shape[1]:], mask, scoring)


def sequence_scores(denoiser: Denoiser, params, tokens, masks, prompt_length: int, prompt_mask=None,
                    weighted: bool = True, center_top_k: int | None = None, center_gradient: bool = False) -> Scores:
  """Scores S(x0) of rollouts, one for each Monte Carlo mask sample (GDSD, arXiv 2605.29398).

  Args:
    denoiser, params: the denoiser whose scores these are, and its parameters.
    tokens: int[B, P+L], prompts (left-padded) and completions.
    masks: bool[M, B, L], the first mask of each coupled pair (`consistent_masks`); the prompt is never masked.
    prompt_length: P.
    prompt_mask: bool[B, P], False at padding; None when no prompt is padded.
    weighted, center_top_k, center_gradient: as in `Scoring`.

  Returns:
    Scores of float32[B, M] each; `centered` is None without `center_top_k`.

  Raises:
    ValueError: center_top_k is less than 1, or tokens, masks and prompt_length do not agree.
  """
  scoring = Scoring(weighted, center_top_k, center_gradient)
  if prompt_length + masks.shape[2] != tokens.shape[1]:
    raise ValueError(f"prompt_length: {prompt_length} and the masks' {masks.shape[2]} must add up to the"
                     f" {tokens.shape[1]} positions of tokens")
  scores = jax.lax.map(lambda mask: sample_scores(denoiser, params, tokens, mask, prompt_mask, scoring), masks)
  return jax.tree.map(jnp.transpose, scores)


def with_kl(loss, metrics, scores: Scores, ref: Scores | None, completion_length: int, beta: float):
  """(loss + β KL, metrics with "kl"), where KL is the mean of ½ (S_θ − S_ref)² / L; none without ref.

  The scores are always the plain ones: under TLC the vocabulary mean of two different models does not cancel, and
  squared and multiplied by L it would explode. Raises ValueError if beta is not 0, and there is no ref.
  """
  if ref is None:
    if beta:
      raise ValueError(f"ref: scores of the reference are needed when beta is {beta}")
    return loss, metrics
  kl = jnp.mean(0.5 * jnp.square(scores.plain - ref.plain)) / completion_length
  return loss + beta * kl, {**metrics, "kl": kl}


def ratio_metrics(scores, log_ratio, clipped, completion_length: int) -> dict:
  """Means of what a loss on ratios sees: the student's scores [B, M] per token, S_θ − S_old, and where it was clipped.

  The noise is the standard deviation of a rollout's score across its M mask samples; 0 when M is 1.
  """
  return {
    "log_ratio": jnp.mean(log_ratio),
    "log_ratio_abs": jnp.mean(jnp.abs(log_ratio)),
    "clip_fraction": jnp.mean(clipped, dtype=jnp.float32),
    "score": jnp.mean(scores) / completion_length,
    "score_noise": jnp.mean(jnp.std(scores, axis=1)) / completion_length,
  }
