"""Every weight of the network, declared once: shape, logical axes and initialiser side by side.

The pass is pure functions of a dict of arrays, so Flax gives initialisers and tools for trees, but no modules: a table
says all that a module's constructor would, and nothing has to be split and merged around a scan.

Dimensions: D hidden_size, N heads, K key/value heads, H head_dim, F mlp_size, V vocabulary.
"""

from collections.abc import Callable
import dataclasses
import math

from flax.nnx import initializers

from gdsd_jax.models.config import DenoiserConfig

_ones, _zeros = initializers.ones, initializers.zeros


def _normal(fan_in: int) -> Callable:
  return initializers.truncated_normal(stddev=1 / math.sqrt(fan_in))


@dataclasses.dataclass(frozen=True)
class Weight:
  """A weight before there is an array of it."""

  shape: tuple[int, ...]
  axes: tuple[str, ...]  # the logical axis of each dimension, which `parallel/mesh.py` maps to an axis of the mesh
  initializer: Callable  # (random key, shape, dtype) -> array
  dtype: str | None = None  # None leaves it to the denoiser (`param_dtype`)


def block_weights(config: DenoiserConfig) -> dict[str, Weight]:
  """The weights of one transformer block, by name."""
  D, F = config.hidden_size, config.mlp_size
  N, K, H = config.num_heads, config.num_kv_heads, config.head_dim
  # Residual outputs start small, so that a deep stack starts near the identity.
  depth = 2 * config.num_layers
  biases = {
    "query_bias": Weight((N, H), ("heads", "head_dim"), _zeros),
    "key_bias": Weight((K, H), ("kv_heads", "head_dim"), _zeros),
    "value_bias": Weight((K, H), ("kv_heads", "head_dim"), _zeros),
  }
  return {
    "attention_norm": Weight((D,), ("embed",), _ones),
    "query": Weight((D, N, H), ("embed", "heads", "head_dim"), _normal(D)),
    "key": Weight((D, K, H), ("embed", "kv_heads", "head_dim"), _normal(D)),
    "value": Weight((D, K, H), ("embed", "kv_heads", "head_dim"), _normal(D)),
    **(biases if config.qkv_bias else {}),
    "output": Weight((N, H, D), ("heads", "head_dim", "embed"), _normal(N * H * depth)),
    "mlp_norm": Weight((D,), ("embed",), _ones),
    "gate": Weight((D, F), ("embed", "mlp"), _normal(D)),
    "up": Weight((D, F), ("embed", "mlp"), _normal(D)),
    "down": Weight((F, D), ("mlp", "embed"), _normal(F * depth)),
  }


def network_weights(config: DenoiserConfig) -> dict[str, Weight]:
  """All weights of the base model, by their paths in the tree of parameters, such as "blocks.query"."""
  V, D = config.vocab_size, config.hidden_size
  head = {"head": Weight((D, V), ("embed", "vocab"), _normal(D))}
  return {
    "embedding": Weight((V, D), ("vocab", "embed"), _normal(D)),
    **stacked(block_weights(config), "blocks", config),
    "final_norm": Weight((D,), ("embed",), _ones),
    **({} if config.tied_head else head),
  }


def stacked(weights: dict[str, Weight], place: str, config: DenoiserConfig) -> dict[str, Weight]:
  """One layer's weights as those of all layers, along a leading axis; their paths begin with `place`."""
  L = config.num_layers
  return {f"{place}.{name}": Weight((L, *weight.shape), ("layers", *weight.axes), weight.initializer, weight.dtype)
          for name, weight in weights.items()}
