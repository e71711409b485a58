"""One transformer block, read from top to bottom: pure functions of x and of what a layer is given.

What differs between families is an option of `DenoiserConfig`; a mixture of experts is in experts.py.

Dimensions: B sequences, T tokens, S tokens attended to, D hidden_size, N heads, K key/value heads, H head_dim,
F mlp_size, L layers.
"""

import math
from typing import NamedTuple

import jax
from jax.experimental.layout import Layout, with_layout_constraint
import jax.numpy as jnp
from jax.sharding import Mesh

from gdsd_jax.models.attention import attend, BlockCausal
from gdsd_jax.models.attention_kernels import Padding
from gdsd_jax.models.chunks import in_chunks
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.models.experts import Load, load_of, mixture
from gdsd_jax.models.lora import costs_less_added, LEAVES, LoraConfig, product_of
from gdsd_jax.models.quantised import product
from gdsd_jax.models.windows import with_window
from gdsd_jax.parallel.mesh import constrain, device_of, is_quantised, parts_of, rounds_finely


class KeysAndValues(NamedTuple):
  """What attention reads of every token of a sequence: [B, S, K, H] each, the keys rotated. A cache has all layers'."""

  key: jax.Array
  value: jax.Array


class Layer(NamedTuple):
  """What is one layer's own."""

  weights: dict[str, jax.Array]  # as `block_weights` names them
  factors: dict[str, dict[str, jax.Array]]  # "a" and "b" of the adapted ones; empty for the base model
  dropout_key: jax.Array | None  # None drops nothing
  cached: KeysAndValues | None  # the sequence that x is a part of; None where x is all of it


class Context(NamedTuple):
  """What all layers of a pass share."""

  config: DenoiserConfig
  lora: LoraConfig | None
  mesh: Mesh | None  # that activations are laid out over
  positions: jax.Array  # int[B, T], for the rotation
  mask: jax.Array | None  # bool[B, S], the tokens that may be attended to; None for all
  blocks: BlockCausal | None = None  # None: every token sees every other
  start: jax.Array | int | None = None  # where x begins in the cached sequence, or in each, int[B]
  padding: Padding | None = None  # of the mask, where that is made once for all layers
  with_load: bool = False  # whether layers tell how their routers spread the tokens of x that may be attended to
  axes: tuple[str, str | None] = ("batch", "tokens")  # logical ones of B and T; of tokens that are not split, None
  mlp_tokens: int | None = None  # of a chip that go through the MLP at a time; None for all

  def constrain(self, x, axis: str | None = None):
    """x [B, T, ...] split over its batch, its tokens and its third dimension's logical axis."""
    return constrain(x, self.mesh, *self.axes, axis, *[None] * (x.ndim - 3))

  def whole(self, x):
    """x [B, T, ...] with all tokens of a sequence on each chip that has a part of it."""
    return constrain(x, self.mesh, self.axes[0], *[None] * (x.ndim - 1))


def block(x, layer: Layer, context: Context):
  """x [B, T, D] through one transformer block. Returns ([B, T, D], KeysAndValues of the sequence, `Load` or None)."""
  attended, read = attention(attention_input(x, layer, context), layer, context)
  x = x + attended
  norm = lambda x: rms_norm(x, layer.weights["mlp_norm"], context.config.norm_epsilon)
  load = router_load(norm(x), layer, context) if context.with_load else None

  wide = layer if context.mlp_tokens is None else _wide(layer)

  def of_tokens(x, chunk):
    whole = layer.dropout_key is None or chunk is None
    own = wide if whole else wide._replace(dropout_key=jax.random.fold_in(layer.dropout_key, chunk))
    return feed_forward(norm(x), own, context)

  return x + in_chunks(of_tokens, x, context.mlp_tokens, context.mesh, context.axes), read, load


def _wide(layer: Layer) -> Layer:
  """The layer with what is trained in float32, in which so the gradients of chunks are summed; see `in_chunks`.

  Under an adapter that is the adapter alone.
  """
  widened = lambda x: x if is_quantised(x) else x.astype(jnp.float32)
  if layer.factors:
    return layer._replace(factors=jax.tree.map(widened, layer.factors))
  return layer._replace(weights=jax.tree.map(widened, layer.weights, is_leaf=is_quantised))


def attention_input(x, layer: Layer, context: Context):
  """What attention takes of x [B, T, D]."""
  return rms_norm(x, layer.weights["attention_norm"], context.config.norm_epsilon)


def attention(x, layer: Layer, context: Context):
  """Attention of the tokens x [B, T, D] to their sequence. Returns ([B, T, D], KeysAndValues of the sequence)."""
  query = _rotated_heads("query", "heads", x, layer, context)
  key, value = keys_and_values(x, layer, context)
  if layer.cached is not None:
    key, value = (with_window(old, new, context.start) for old, new in zip(layer.cached, (key, value)))
  key, value = (context.constrain(part, "kv_heads") for part in (key, value))
  mask = context.mask if context.padding is None else context.padding
  attended = attend(query, key, value, mask, context.mesh, context.blocks, context.axes)
  attended = context.constrain(attended, "heads")
  return context.constrain(project("output", attended, layer, context)), KeysAndValues(key, value)


def keys_and_values(x, layer: Layer, context: Context) -> KeysAndValues:
  """What attention reads of the tokens x [B, T, D]."""
  of_tokens = x, layer, context
  return KeysAndValues(_rotated_heads("key", "kv_heads", *of_tokens), _heads("value", "kv_heads", *of_tokens))


def _heads(name: str, axis: str, x, layer: Layer, context: Context):
  """x [B, T, D] through the projection of a name, [B, T, heads, H], with its bias."""
  projected = context.constrain(project(name, x, layer, context), axis)
  return projected + layer.weights[f"{name}_bias"].astype(x.dtype) if context.config.qkv_bias else projected


def _rotated_heads(name: str, axis: str, x, layer: Layer, context: Context):
  """As `_heads`, with its norm, where the model has one, and rotated."""
  config, heads = context.config, _heads(name, axis, x, layer, context)
  if config.qk_norm:
    heads = rms_norm(heads, layer.weights[f"{name}_norm"], config.norm_epsilon)
  return rotate_heads(heads, context.positions, config)


def feed_forward(x, layer: Layer, context: Context):
  """The MLP of x [B, T, D], or in its place a mixture of experts, with what all tokens go through."""
  config = context.config.experts
  if "router" not in layer.weights:
    return mlp(x, layer, context)
  mixed = mixture(x, layer.weights, layer.factors, config, context.lora, context.mesh, context.axes)
  return mixed + mlp(x, layer, context, "shared_") if config.shared_size else mixed


def router_load(x, layer: Layer, context: Context) -> Load | None:
  """How the layer's router spreads the tokens x [B, T, D]; None of a layer without one."""
  if "router" not in layer.weights:
    return None
  return load_of(x, layer.weights["router"], layer.weights.get("router_bias"), context.config.experts, context.mask)


def mlp(x, layer: Layer, context: Context, prefix: str = ""):
  """SwiGLU of x [B, T, D]; the names of its weights begin with the prefix."""
  gate, up = (context.constrain(project(f"{prefix}{name}", x, layer, context), "mlp") for name in ("gate", "up"))
  return context.constrain(project(f"{prefix}down", jax.nn.silu(gate) * up, layer, context))


def project(name: str, x, layer: Layer, context: Context):
  """x [B, T, *I] through a projection of the layer, low-rank update included: [B, T, *O]."""
  kernel, factors, lora = layer.weights[name], layer.factors.get(name), context.lora
  if factors and layer.dropout_key is None and _takes_the_sum(x, kernel, context):
    return _product(x, kernel + lora.scale * product_of(factors["a"], factors["b"]), context.mesh)
  projected = _product(x, kernel, context.mesh)
  if is_quantised(kernel) and name in ("query", "key", "value"):
    projected = projected.reshape(*projected.shape[:2], -1, context.config.head_dim)
  if factors is None:
    return projected
  if layer.dropout_key is not None:
    key = jax.random.fold_in(layer.dropout_key, LEAVES.index(name))
    kept = jax.random.bernoulli(key, jnp.float32(1 - lora.dropout), x.shape)
    # Random bits that XLA fuses into the products are slow, and take TPU compilers many minutes.
    kept, x = jax.lax.optimization_barrier((kept, x))
    x = jnp.where(kept, x / (1 - lora.dropout), 0).astype(x.dtype)
  low = context.constrain(_product(x, factors["a"], context.mesh))  # [B, T, rank]
  return projected + lora.scale * _product(low, factors["b"], context.mesh)


def _takes_the_sum(x, kernel, context: Context) -> bool:
  """Whether x goes through the sum of a kernel and its update: where the update loses no digits, at less cost."""
  if is_quantised(kernel) or not rounds_finely(x.dtype.name, device_of(context.mesh).platform):
    return False
  parts = map(parts_of, context.axes, x.shape, (context.mesh,) * 2)  # of which each device has its own sum
  inputs = math.prod(x.shape[2:])
  return costs_less_added(math.prod(x.shape[:2]) // math.prod(parts), inputs, kernel.size // inputs, context.lora.rank)


def _product(x, kernel, mesh: Mesh | None):
  """x [B, T, *I] @ kernel [*I, *O] -> [B, T, *O] in x's dtype; a quantised one is [I, O], whatever I and O are made of.

  Tokens are flattened into rows and the kernel into a matrix: from three dimensions, XLA's CPU backend takes the
  weight's gradient through strided transposes and is half as fast. TPUs have a matrix in other tiles than heads.
  """
  if not is_quantised(kernel) and device_of(mesh).platform == "tpu":
    return jnp.tensordot(x, _as_stored(kernel.astype(x.dtype), mesh), x.ndim - 2)
  rows = x.reshape(math.prod(x.shape[:2]), -1)
  if is_quantised(kernel):
    return product(rows, kernel).reshape(*x.shape[:2], -1)
  columns = kernel.reshape(rows.shape[1], -1).astype(x.dtype)
  return (rows @ columns).reshape(*x.shape[:2], *kernel.shape[x.ndim - 2:])


def _as_stored(kernel, mesh: Mesh | None):
  """A layer's kernel, laid out as those of all layers are.

  TPUs would otherwise lay out all of them as the product would like to have one, in a copy that stays in memory.
  """
  is_split = mesh is not None and mesh.size > 1  # its parts are put together for each layer, and laid out then
  return kernel if is_split else with_layout_constraint(kernel, Layout(tuple(range(kernel.ndim))))


def rms_norm(x, scale, epsilon: float):
  """Root-mean-square norm in float32. x: [..., D], scale: [D]; returns x's shape and dtype."""
  x32 = x.astype(jnp.float32)
  x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + epsilon)
  return (x32 * scale.astype(jnp.float32)).astype(x.dtype)


def rotate_heads(x, positions, config: DenoiserConfig):
  """Queries or keys [B, T, heads, H], the rotated part of each head at its position; the rest passes."""
  turn = lambda part: rotate(part, positions, config.rope_theta, config.rope_factor)
  if config.rotary_share == 1:
    return turn(x)
  return jnp.concatenate([turn(x[..., :config.rotary_dim]), x[..., config.rotary_dim:]], axis=-1)


def rotate(x, positions, theta: float, factor: float = 1.0):
  """Rotary positions in float32 (half-split layout). x: [B, T, heads, H], positions: int[B, T].

  Frequencies are theta^(-i / (H / 2)) / factor.
  """
  half = x.shape[-1] // 2
  frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half) / factor
  angles = positions[..., None, None].astype(jnp.float32) * frequencies  # [B, T, 1, H/2]
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
