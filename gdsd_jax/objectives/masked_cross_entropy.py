"""Masked-diffusion likelihood bound: cross-entropy of masked tokens, weighted by 1/t (LLaDA, arXiv 2502.09992).

Of a block-causal model, each block is predicted after clean earlier ones, at one rate t a sequence, all blocks in one
pass (BD3-LM, arXiv 2503.09573; SDAR, arXiv 2510.06303).
"""

import jax
import jax.numpy as jnp

from gdsd_jax.models.copies import side_by_side
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.objectives.token_scores import token_scores

_MIN_MASK_RATE = 1e-3  # bounds the weight 1/t


def masked_cross_entropy(denoiser: Denoiser, params, key, tokens, maskable, attention_mask=None, prompt_length: int = 0,
                         dropout_key=None, with_load: bool = False):
  """E_t [1/t Σ_{i masked} −log p(x_i | xt)] per maskable token; masks with probability t ~ U(0, 1), stratified over B.

  Args:
    denoiser, params: the model in training.
    key: random key of the rates and masks.
    tokens: int[B, T].
    maskable: bool[B, T], the tokens that diffuse (the completion); the rest is given.
    attention_mask: bool[B, T], False at padding; None when there is none.
    prompt_length: how many leading tokens are never maskable, and so need no logits. Of a block-causal model it holds
      all padding that is left of a sequence.
    dropout_key: random key of an adapter's dropout; None drops nothing.
    with_load: whether the metrics have the `Load` of the model's experts, as "load".

  Returns:
    (loss, metrics): a scalar in nats per token, and a dict of scalars.
  """
  rate_key, mask_key = jax.random.split(key)
  batch = tokens.shape[0]
  # One uniform offset and even spacing: every batch sees all mask rates, which lowers the variance.
  rate = (jax.random.uniform(rate_key, dtype=jnp.float32) + jnp.arange(batch, dtype=jnp.float32) / batch) % 1
  rate = (_MIN_MASK_RATE + (1 - _MIN_MASK_RATE) * rate)[:, None]
  masked = maskable & (jax.random.uniform(mask_key, tokens.shape, jnp.float32) < rate)
  return cross_entropy_of(denoiser, params, rate, masked, tokens, maskable, attention_mask, prompt_length, dropout_key,
                          with_load)


def cross_entropy_of(denoiser: Denoiser, params, rate, masked, tokens, maskable, attention_mask, prompt_length: int,
                     dropout_key=None, with_load: bool = False):
  """As `masked_cross_entropy`, of tokens that are masked, bool[B, T], at the rate float32[B, 1]."""
  hidden, load = _hidden(denoiser, params, tokens, masked, attention_mask, prompt_length, dropout_key, with_load)
  tokens, masked, maskable = (x[:, prompt_length:] for x in (tokens, masked, maskable))

  log_prob, _, lead, _ = token_scores(denoiser.head(params), hidden, tokens)
  loss = jnp.sum(jnp.where(masked, -log_prob / rate, 0)) / jnp.sum(maskable)
  correct = jnp.sum((lead > 0) & masked, dtype=jnp.float32)
  accuracy = correct / jnp.maximum(jnp.sum(masked, dtype=jnp.float32), 1)
  return loss, {"masked_accuracy": accuracy, **({"load": load} if with_load else {})}


def _hidden(denoiser: Denoiser, params, tokens, masked, attention_mask, prompt_length: int, dropout_key, with_load):
  """(hidden states behind the prompt [B, T − P, D], `Load` or None) of tokens that are masked, bool[B, T]."""
  noised = jnp.where(masked, denoiser.config.mask_token_id, tokens)
  if denoiser.config.block_length is None:
    arguments = params, noised, attention_mask, dropout_key
    hidden, load = denoiser.hidden_and_load(*arguments) if with_load else (denoiser.hidden(*arguments), None)
    return hidden[:, prompt_length:], load
  copies = side_by_side(
    tokens, noised[:, None, prompt_length:], attention_mask, denoiser.config.block_length, denoiser.token_parts)
  hidden, load = denoiser.hidden_of_copies(params, copies, dropout_key, with_load=True)
  return hidden[:, 0], load
