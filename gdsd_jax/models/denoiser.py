"""The pure-functional denoiser: `apply(params, tokens) -> logits`, parameters as a plain nested dict of arrays."""

import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.models.lm_head import LMHead
from gdsd_jax.models.lora import LoraConfig
from gdsd_jax.models.transformer import KeysAndValues, Transformer

DTYPES = ("float32", "bfloat16")
REMAT_SAVES = ("nothing", "products")


@functools.cache
def _abstract_model(config: DenoiserConfig, dtype: str, lora: LoraConfig | None):
  """Graph definition and abstract state: structure, shapes and logical axes without any memory."""
  model = nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0), jnp.dtype(dtype), lora))
  return nnx.split(model)


@dataclasses.dataclass(frozen=True)
class Denoiser:
  """A denoiser without its weights: pure functions of `params`, hashable, so it can be a static argument of `jax.jit`.

  Attributes:
    config: the architecture (`DenoiserConfig`).
    dtype: of the parameters and matrix products ("float32" or "bfloat16"); norms, rotary positions, softmax and logits
      are float32 always. Parameters in training may be float32 all the same: weights are cast where they are used.
    remat: recompute each block's activations in the backward pass, so that memory holds one block's at a time.
    remat_saves: what is kept of the activations all the same: "nothing", or "products" with weights, so that only
      attention, norms and the like are computed again.
    lora: shape of the adapter, the entry "lora" of the parameters; None when there is none. Parameters without that
      entry give the base model.
    mesh: the mesh that the parameters lie on, for the layout of activations; None leaves them to the compiler.
  """

  config: DenoiserConfig
  dtype: str = "float32"
  remat: bool = False
  lora: LoraConfig | None = None
  mesh: Mesh | None = None
  remat_saves: str = "nothing"

  def __post_init__(self):
    if self.dtype not in DTYPES:
      raise ValueError(f"model.dtype: {self.dtype!r} is not one of {', '.join(DTYPES)}")
    if self.remat_saves not in REMAT_SAVES:
      raise ValueError(f"model.remat_saves: {self.remat_saves!r} is not one of {', '.join(REMAT_SAVES)}")

  def init(self, key):
    """Freshly initialised parameters from a random key."""
    return nnx.to_pure_dict(nnx.state(Transformer(self.config, nnx.Rngs(key), jnp.dtype(self.dtype), self.lora)))

  def abstract_params(self):
    """The parameters' tree with a `jax.ShapeDtypeStruct` at each leaf."""
    return nnx.to_pure_dict(_abstract_model(self.config, self.dtype, self.lora)[1])

  def logical_axes(self):
    """The parameters' tree with a tuple of logical axis names at each leaf (see `parallel/mesh.py`)."""
    _, state = _abstract_model(self.config, self.dtype, self.lora)
    is_variable = lambda leaf: isinstance(leaf, nnx.Variable)
    axes = jax.tree.map(lambda variable: variable.get_metadata("logical_axes"), state, is_leaf=is_variable)
    return nnx.to_pure_dict(axes)

  def cast(self, params):
    """Parameters in the dtype that products take them in, as `hidden` and `logits` would cast them at every call: the
    same results, once. Norms stay as they are."""

    def cast(path, leaf):
      is_norm = path[-1].key.endswith("norm")
      return leaf if is_norm else leaf.astype(self.dtype)

    return jax.tree_util.tree_map_with_path(cast, params)

  def _model(self, params) -> Transformer:
    lora = self.lora if "lora" in params else None
    return nnx.merge(_abstract_model(self.config, self.dtype, lora)[0], params)

  def hidden(self, params, tokens, attention_mask=None, dropout_key=None):
    """Hidden states, aligned: position i's predicts token i.

    Args:
      params: parameters of this denoiser.
      tokens: int[B, T].
      attention_mask: bool or int[B, T], zero at padding; None when there is none.
      dropout_key: random key of the adapter's dropout, for training; None drops nothing.

    Returns:
      [B, T, D] in the denoiser's dtype. At padding positions the values mean nothing.
    """
    remat = self.remat_saves if self.remat else None
    return self._model(params).hidden(tokens, attention_mask, remat, dropout_key, self.mesh)

  def hidden_and_cache(self, params, tokens, attention_mask=None):
    """As `hidden`, without dropout: ([B, T, D], KeysAndValues of all tokens), for `window` to go on from."""
    return self._model(params).hidden_and_cache(tokens, attention_mask, self.mesh)

  def window(self, params, tokens, start, width: int, cache: KeysAndValues, attention_mask=None):
    """Hidden states of a part of the sequence, at the cost of that part; exact if nothing else changed since `cache`.

    Args:
      params: parameters of this denoiser.
      tokens: int[B, T]; only those from `start` on, and the one before of a shifted output, are read.
      start: first position of the window, int or int[]; at least 1 where the output is shifted.
      width: of the window; start + width is at most T.
      cache: of a pass over the whole sequence; what it has of the window's own tokens is not used.
      attention_mask: bool or int[B, T], zero at padding; None when there is none.

    Returns:
      [B, width, D], aligned.
    """
    return self._model(params).window(tokens, start, width, cache, attention_mask, self.mesh)

  def logits(self, params, hidden):
    """LM head: float32[..., V] logits of hidden states [..., D]."""
    head, hidden = self.head(params).whole(hidden)
    return head.logits(hidden)

  def head(self, params) -> LMHead:
    """The LM head, for what can do with a chunk of the vocabulary at a time."""
    tied = self.config.tied_head
    return LMHead(params["embedding" if tied else "head"], tied, self.mesh)

  def apply(self, params, tokens, attention_mask=None):
    """Logits of every position, aligned: logits[b, i] predicts token i.

    Args:
      params: parameters of this denoiser.
      tokens: int[B, T], masked positions holding `config.mask_token_id`.
      attention_mask: bool or int[B, T], zero at padding; None when there is none.

    Returns:
      float32[B, T, V].
    """
    return self.logits(params, self.hidden(params, tokens, attention_mask))
