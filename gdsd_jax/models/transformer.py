"""The denoiser's network: one bidirectional transformer, read from top to bottom.

Dimensions: B sequences, T tokens, D hidden_size, N heads, K key/value heads, H head_dim, F mlp_size, V vocabulary.
Every weight is declared once, with its shape, logical axes and initialiser side by side; `parallel/mesh.py` maps the
logical axes to mesh axes. The blocks' weights are stacked along a leading `layers` axis and scanned over, so that
compile time does not grow with depth.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gdsd_jax.models.attention import attend
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.models.lora import LoraConfig, LowRank, TARGETS
from gdsd_jax.parallel.mesh import AXIS_RULES, constrain


class _Weights:
  """Declares the weights of a module: `weights(shape, logical_axes, initializer)`."""

  def __init__(self, rngs: nnx.Rngs, dtype):
    self.rngs, self.dtype = rngs, dtype

  def __call__(self, shape: tuple[int, ...], logical_axes: tuple[str | None, ...], initializer: Callable) -> nnx.Param:
    return nnx.Param(initializer(self.rngs.params(), shape, self.dtype), logical_axes=logical_axes)


def _normal(fan_in: int) -> Callable:
  return nnx.initializers.truncated_normal(stddev=1 / math.sqrt(fan_in))


_ones, _zeros = nnx.initializers.ones, nnx.initializers.zeros


def rms_norm(x, scale, epsilon: float):
  """Root-mean-square norm in float32. x: [..., D], scale: [D]; returns x's shape and dtype."""
  x32 = x.astype(jnp.float32)
  x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + epsilon)
  return (x32 * scale.astype(jnp.float32)).astype(x.dtype)


def rotate(x, positions, theta: float):
  """Rotary positions in float32 (half-split layout). x: [B, T, heads, H], positions: int[B, T]."""
  half = x.shape[-1] // 2
  frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angles = positions[..., None, None].astype(jnp.float32) * frequencies  # [B, T, 1, H/2]
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def project(x, kernel, inputs: int = 1):
  """x [..., *I] @ kernel [*I, *O] -> [..., *O] in x's dtype, over the first `inputs` dimensions of the kernel.

  Tokens are flattened into rows: from three dimensions, XLA's CPU backend takes the weight's gradient through strided
  transposes and is half as fast.
  """
  leading = x.shape[:x.ndim - inputs]
  rows = x.reshape(math.prod(leading), -1)
  columns = kernel.reshape(rows.shape[1], -1).astype(x.dtype)
  return (rows @ columns).reshape(*leading, *kernel.shape[inputs:])


class KeysAndValues(NamedTuple):
  """Of every token, as a pass over the whole sequence computed them: [layers, B, T, K, H] each, the keys rotated."""

  key: jax.Array
  value: jax.Array


class Blocks(nnx.Module):
  """All transformer blocks, their weights stacked along `layers`; called on one layer's slice at a time."""

  def __init__(self, config: DenoiserConfig, weights: _Weights):
    self.config = config
    L, D, F = config.num_layers, config.hidden_size, config.mlp_size
    N, K, H = config.num_heads, config.num_kv_heads, config.head_dim
    # Residual outputs start small, so that a deep stack starts near the identity.
    depth = 2 * L
    self.attention_norm = weights((L, D), ("layers", "embed"), _ones)
    self.query = weights((L, D, N, H), ("layers", "embed", "heads", "head_dim"), _normal(D))
    self.key = weights((L, D, K, H), ("layers", "embed", "kv_heads", "head_dim"), _normal(D))
    self.value = weights((L, D, K, H), ("layers", "embed", "kv_heads", "head_dim"), _normal(D))
    if config.qkv_bias:
      self.query_bias = weights((L, N, H), ("layers", "heads", "head_dim"), _zeros)
      self.key_bias = weights((L, K, H), ("layers", "kv_heads", "head_dim"), _zeros)
      self.value_bias = weights((L, K, H), ("layers", "kv_heads", "head_dim"), _zeros)
    self.output = weights((L, N, H, D), ("layers", "heads", "head_dim", "embed"), _normal(N * H * depth))
    self.mlp_norm = weights((L, D), ("layers", "embed"), _ones)
    self.gate = weights((L, D, F), ("layers", "embed", "mlp"), _normal(D))
    self.up = weights((L, D, F), ("layers", "embed", "mlp"), _normal(D))
    self.down = weights((L, F, D), ("layers", "mlp", "embed"), _normal(F * depth))

  def attention(self, x, positions, mask, adapter, cached=None, start=None):
    """Attention of the tokens x to themselves, and to the `cached` rest of their sequence where there is one.

    Args:
      x: [B, T, D].
      positions: int[B, T].
      mask: bool[B, S] of the tokens of the sequence that may be attended to, or None.
      adapter: of the layer.
      cached: the layer's KeysAndValues of a sequence of S tokens; x takes the place of T of them, from `start` on.
      start: int, or int[].

    Returns:
      ([B, T, D], KeysAndValues of the sequence).
    """
    config = self.config
    query, key, value = (
      adapter.constrain(adapter.project(self, name, x), heads)
      for name, heads in (("query", "heads"), ("key", "kv_heads"), ("value", "kv_heads"))
    )
    if config.qkv_bias:
      biases = (bias[...].astype(x.dtype) for bias in (self.query_bias, self.key_bias, self.value_bias))
      query, key, value = (projected + bias for projected, bias in zip((query, key, value), biases))
    query, key = rotate(query, positions, config.rope_theta), rotate(key, positions, config.rope_theta)
    if cached is not None:
      key, value = (
        adapter.constrain(jax.lax.dynamic_update_slice_in_dim(old, new, start, axis=1), "kv_heads")
        for old, new in zip(cached, (key, value))
      )
    attended = attend(query, key, value, mask, adapter.mesh)
    output = adapter.project(self, "output", adapter.constrain(attended, "heads"), inputs=2)
    return adapter.constrain(output), KeysAndValues(key, value)

  def mlp(self, x, adapter):
    gate, up = (adapter.constrain(adapter.project(self, name, x), "mlp") for name in ("gate", "up"))
    return adapter.constrain(adapter.project(self, "down", jax.nn.silu(gate) * up))

  def __call__(self, x, positions, mask, adapter, cached=None, start=None):
    """See `attention`. Returns (x, KeysAndValues)."""
    epsilon = self.config.norm_epsilon
    normed = rms_norm(x, self.attention_norm[...], epsilon)
    attended, keys_and_values = self.attention(normed, positions, mask, adapter, cached, start)
    x = x + attended
    return x + self.mlp(rms_norm(x, self.mlp_norm[...], epsilon), adapter), keys_and_values


class Lora(nnx.Module):
  """The low-rank factors of all adapted projections, by the name of the weight."""

  def __init__(self, blocks: Blocks, config: LoraConfig, rngs: nnx.Rngs):
    for target in config.targets:
      weight = getattr(blocks, TARGETS[target])
      inputs = 2 if target == "o" else 1
      setattr(self, TARGETS[target], LowRank(weight.shape, weight.logical_axes, inputs, config.rank, rngs))


@dataclasses.dataclass(frozen=True)
class _Adapter:
  """The projections of one layer: base weight, and the low-rank update where there is one.

  Attributes:
    lora: the layer's factors, or None for the base model.
    config: of the adapter, or None.
    dropout_key: random key of the layer in training; None where nothing is dropped.
    mesh: that activations are laid out over, or None.
  """

  lora: Lora | None = None
  config: LoraConfig | None = None
  dropout_key: jax.Array | None = None
  mesh: Mesh | None = None

  def constrain(self, x, axis: str | None = None):
    """x [B, T, ...] split over its batch and its third dimension's logical axis."""
    return constrain(x, self.mesh, "batch", None, axis, *[None] * (x.ndim - 3))

  def project(self, blocks: Blocks, name: str, x, inputs: int = 1):
    """x [..., *I] through the projection `name` of the layer: [..., *O]."""
    projected = project(x, getattr(blocks, name)[...], inputs)
    factors = getattr(self.lora, name, None)
    if factors is None:
      return projected
    if self.dropout_key is not None:
      key = jax.random.fold_in(self.dropout_key, list(TARGETS.values()).index(name))
      kept = jax.random.bernoulli(key, 1 - self.config.dropout, x.shape)
      # Random bits that XLA fuses into the products are slow, and take TPU compilers many minutes.
      kept, x = jax.lax.optimization_barrier((kept, x))
      x = jnp.where(kept, x / (1 - self.config.dropout), 0).astype(x.dtype)
    low = self.constrain(project(x, factors.a[...], inputs))  # [B, T, rank]
    return projected + self.config.scale * project(low, factors.b[...])


def _whole_over_fsdp(weights, x, mesh: Mesh | None):
  """(weights, x): the weights of one layer for its products with x, in x's dtype, gathered over fsdp, still split over
  tensor.

  Left to itself XLA overlaps the gather with the product, piece by piece, and the sum over the pieces goes to memory
  and back for each.
  """
  if mesh is None or mesh.size == 1:
    return weights, x
  # Tied to x: of frozen weights JAX would otherwise gather all layers' before the first, and keep them.
  weights, x = jax.lax.optimization_barrier((weights, x))

  def gather(weight: nnx.Variable) -> nnx.Variable:
    value = weight[...]
    if value.ndim < 2:  # norms and biases
      return weight
    axes = weight.get_metadata("logical_axes")[-value.ndim:]  # without that of the layers
    tensor_axes = (axis if AXIS_RULES[axis] == "tensor" else None for axis in axes)
    return weight.replace(constrain(value.astype(x.dtype), mesh, *tensor_axes))

  return jax.tree.map(gather, weights, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)), x


class Transformer(nnx.Module):
  """Embedding, blocks, final norm and the weight of the LM head, which `lm_head.py` multiplies by."""

  def __init__(self, config: DenoiserConfig, rngs: nnx.Rngs, dtype=jnp.float32, lora: LoraConfig | None = None):
    self.config, self.lora_config, self.dtype = config, lora, dtype
    weights = _Weights(rngs, dtype)
    V, D = config.vocab_size, config.hidden_size
    self.embedding = weights((V, D), ("vocab", "embed"), _normal(D))
    self.blocks = Blocks(config, weights)
    self.final_norm = weights((D,), ("embed",), _ones)
    if not config.tied_head:
      self.head = weights((D, V), ("embed", "vocab"), _normal(D))
    if lora is not None:
      self.lora = Lora(self.blocks, lora, rngs)

  def hidden(self, tokens, attention_mask=None, remat: str | None = None, dropout_key=None, mesh: Mesh | None = None):
    """Aligned hidden states [B, T, D] of int[B, T] tokens; padding (attention_mask 0) is attended to by nobody.

    remat: a block's activations that are kept for the backward pass (`Denoiser.remat_saves`); None for all.
    """
    positions = self._positions(tokens, attention_mask)
    x, _ = self._apply_blocks(tokens, positions, attention_mask, mesh, remat, dropout_key)
    return self._aligned(x)

  def hidden_and_cache(self, tokens, attention_mask=None, mesh: Mesh | None = None):
    """(`hidden`, KeysAndValues of all tokens)."""
    positions = self._positions(tokens, attention_mask)
    x, cache = self._apply_blocks(tokens, positions, attention_mask, mesh, keep=True)
    layout = lambda x: constrain(x, mesh, "layers", "batch", None, "kv_heads", "head_dim")
    return self._aligned(x), jax.tree.map(layout, cache)

  def window(self, tokens, start, width: int, cache: KeysAndValues, attention_mask=None, mesh: Mesh | None = None):
    """Aligned hidden states [B, width, D] of int[B, T] tokens from `start` on; the others are as `cache` has them."""
    # Where the token before predicts a token, it belongs to the window; the last one's output is not asked for.
    first, count = (start - 1, width + 1) if self.config.shifted_output else (start, width)
    within = lambda x: jax.lax.dynamic_slice_in_dim(x, first, count, axis=1)
    positions = self._positions(tokens, attention_mask)
    x, _ = self._apply_blocks(within(tokens), within(positions), attention_mask, mesh, cache=cache, start=first)
    return rms_norm(x[:, :width], self.final_norm[...], self.config.norm_epsilon)

  def _apply_blocks(self, tokens, positions, attention_mask, mesh, remat=None, dropout_key=None, keep=False,
                    cache=None, start=None):
    """(int[B, T] tokens through embedding and blocks: [B, T, D], their KeysAndValues if they are to be kept).

    cache, start: of the rest of the sequence, see `Blocks.attention`.
    """
    mask = None if attention_mask is None else attention_mask.astype(bool)
    graph, stacked = nnx.split((self.blocks, self.lora if self.lora_config else None))
    dropout_keys = None
    if dropout_key is not None and self.lora_config and self.lora_config.dropout > 0:
      dropout_keys = jax.random.split(dropout_key, self.config.num_layers)

    def apply_block(x, layer):
      weights, layer_key, cached = layer
      weights, x = _whole_over_fsdp(weights, x, mesh)
      blocks, lora = nnx.merge(graph, weights)
      adapter = _Adapter(lora, self.lora_config, layer_key, mesh)
      x, keys_and_values = blocks(x, positions, mask, adapter, cached, start)
      return x, keys_and_values if keep else None

    if remat is not None:
      policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "products" else None
      # A scan already keeps XLA from undoing it.
      apply_block = jax.checkpoint(apply_block, prevent_cse=False, policy=policy)
    embedded = self.embedding[...][tokens].astype(self.dtype)
    # Rows are looked up where their share of the embedding lies; then shares are exchanged for sequences.
    embedded = constrain(embedded, mesh, "batch_over_data", None, "embed")
    embedded = constrain(embedded, mesh, "batch", None, None)
    return jax.lax.scan(apply_block, embedded, (stacked, dropout_keys, cache))

  def _aligned(self, x):
    """The blocks' output x [B, T, D] as hidden states: position i's predicts token i."""
    x = rms_norm(x, self.final_norm[...], self.config.norm_epsilon)
    # Nothing comes before the first token; its prediction is that of the second, as in Dream's own sampler.
    return jnp.concatenate([x[:, :1], x[:, :-1]], axis=1) if self.config.shifted_output else x

  def _positions(self, tokens, attention_mask):
    """Rotary positions, int[B, T]."""
    if attention_mask is None or not self.config.positions_skip_padding:
      return jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return jnp.maximum(jnp.cumsum(attention_mask.astype(jnp.int32), axis=1) - 1, 0)
