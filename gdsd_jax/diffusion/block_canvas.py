"""Where the blocks of a block-causal model lie: rows of unlike prompts, shifted so that their blocks begin together."""

import jax
import jax.numpy as jnp

from gdsd_jax.diffusion.config import Beyond, Rollout, SamplerConfig
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.models.transformer import KeysAndValues


class Canvas:
  """Prompts [B, P] and what follows them, [B, length]: the block that the prompt ends in, then a completion's blocks.

  Blocks are counted from the first real token. Each row is shifted to the right by the tokens of its prompt that share
  a block with the first new ones, so that the prompt's whole blocks lie in the first P columns.
  """

  def __init__(self, prompt, prompt_mask, config: SamplerConfig):
    self.width, self.completion_length = config.block_length, config.completion_length
    self.prompt = prompt.astype(jnp.int32)
    self._real = jnp.ones(prompt.shape, bool) if prompt_mask is None else prompt_mask.astype(bool)
    self.prompt_length = prompt.shape[1]
    self.length = self.completion_length + self.width
    self.partial = jnp.sum(self._real, axis=1) % self.width  # the prompt's tokens in the first block to be denoised
    columns = jnp.arange(self.length)[None]
    self.is_new = columns >= self.partial[:, None]  # bool[B, length], no token of the prompt
    self.is_wanted = self.is_new & (columns < (self.partial + self.completion_length)[:, None])

  @property
  def batch(self) -> int:
    return len(self.prompt)

  @property
  def attention_mask(self):
    """bool[B, P + length], False at padding."""
    source = jnp.arange(self.prompt_length + self.length)[None] - self.partial[:, None]
    return self.aligned(self._real, jnp.ones((self.batch, self.length), bool)) & (source >= 0)

  def aligned(self, prompt, after):
    """[B, P + length] of what belongs to the prompt's tokens, [B, P], and to those behind them, [B, length]."""
    x = jnp.concatenate([prompt, after], axis=1)
    source = jnp.arange(x.shape[1])[None] - self.partial[:, None]
    return jnp.take_along_axis(x, jnp.maximum(source, 0), axis=1)

  def filled(self, completion, beyond):
    """[B, P + length] of numbers that belong to a completion's tokens and those beyond it; -1 at the prompt's."""
    return self.aligned(jnp.full_like(self.prompt, -1), jnp.concatenate([completion, beyond], axis=1))

  def begun(self, masked: Rollout) -> tuple[jax.Array, Rollout]:
    """(int32[B, P], which no step changes, the rollout [B, length]): what a rollout begins with that is all masks."""
    aligned = self.aligned(self.prompt, masked.tokens)
    return aligned[:, :self.prompt_length], masked.replace(tokens=aligned[:, self.prompt_length:])

  def ended(self, rollout: Rollout) -> Rollout:
    """What is given of a rollout [B, length, ...]: each row's completion, and apart from it what lies behind."""
    passes, rollout = rollout.passes, rollout.replace(passes=None)
    return self.completions(rollout).replace(passes=passes, beyond=self.beyond(rollout))

  def completions(self, rollout: Rollout) -> Rollout:
    """Each row's completion alone, [B, L, ...], of a rollout [B, length, ...]."""
    return self._taken(rollout, self.partial, self.completion_length)

  def beyond(self, rollout: Rollout) -> Beyond:
    """What lies behind each row's completion, of a rollout [B, length, ...]."""
    first = self.partial + self.completion_length
    return Beyond(*self._taken((rollout.tokens, rollout.steps), first, self.width))

  def _taken(self, tree, first, count: int):
    places = jnp.minimum(first[:, None] + jnp.arange(count), self.length - 1)
    take = lambda x: jnp.take_along_axis(x, places.reshape(*places.shape, *[1] * (x.ndim - 2)), axis=1)
    return jax.tree.map(take, tree)

  def prefilled(self, denoiser: Denoiser, params, tokens, count: int) -> KeysAndValues:
    """The cache of tokens [B, P + length], which knows the first `count` columns' keys and values."""
    return prefilled(denoiser, params, tokens, self.attention_mask, count)


def prefilled(denoiser: Denoiser, params, tokens, mask, count: int) -> KeysAndValues:
  """The cache of tokens [B, T], of which the mask bool[B, T] says what is real; it knows the first `count` columns."""
  if count == 0:
    one = jax.eval_shape(denoiser.hidden_and_cache, params, jnp.zeros((len(tokens), 1), jnp.int32))[1]
    return jax.tree.map(lambda x: jnp.zeros((*x.shape[:2], tokens.shape[1], *x.shape[3:]), x.dtype), one)
  _, cache = denoiser.hidden_and_cache(params, tokens[:, :count], mask[:, :count])
  rest = tokens.shape[1] - count
  return jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (0, 0), (0, rest), (0, 0), (0, 0)]), cache)
