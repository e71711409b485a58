"""Early stop: blocks behind the end of every completion are filled instead of denoised."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def unless_ended(denoise_block: Callable, block_length: int, eos_token_id: int) -> Callable:
  """`denoise_block`, but once every completion has an end of text, a block is filled with it, at confidence 1.

  Args:
    denoise_block: ((tokens, confidence), (start, key)) -> ((tokens, confidence), None), as `jax.lax.scan` calls it;
      tokens int32[B, L] that are masked from start on, confidence float32[B, L].
    block_length: K.
    eos_token_id: of the end of text.

  Returns:
    A function like `denoise_block`.
  """

  def fill(state, start):
    block = lambda value, like: jnp.full((like.shape[0], block_length), value, like.dtype)
    put = lambda x, value: jax.lax.dynamic_update_slice_in_dim(x, block(value, x), start, axis=1)
    tokens, confidence = state
    return put(tokens, eos_token_id), put(confidence, 1)

  def denoise_or_fill(state, block):
    ended = jnp.all(jnp.any(state[0] == eos_token_id, axis=1))
    # `block` is closed over: its start may have to stay a plain number.
    return jax.lax.cond(ended, lambda state: fill(state, block[0]), lambda state: denoise_block(state, block)[0],
                        state), None

  return denoise_or_fill
