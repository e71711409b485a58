"""Every weight of the network, declared once: shape, logical axes and initialiser side by side.

A table says all that a module's constructor would, and nothing has to be split and merged around the scan over layers.
To add an option of the architecture: a field of `DenoiserConfig`, its weights in `block_weights`, and its computation
in `attention` or `mlp` of transformer.py. Dimensions are named as there.
"""

from collections.abc import Callable
import math
from typing import NamedTuple

from jax.nn import initializers

from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.models.lora import adapter_weights, LoraConfig


class Weight(NamedTuple):
  """A weight before there is an array of it."""

  shape: tuple[int, ...]
  axes: tuple[str, ...]  # the logical axis of each dimension, which `parallel/mesh.py` maps to an axis of the mesh
  initializer: Callable  # (random key, shape, dtype) -> array
  dtype: str | None = None  # None leaves it to the denoiser (`param_dtype`)


ones, zeros = initializers.ones, initializers.zeros


def normal(fan_in: int) -> Callable:
  return initializers.truncated_normal(stddev=1 / math.sqrt(fan_in))


def block_weights(config: DenoiserConfig) -> dict[str, Weight]:
  """The weights of one transformer block, by name."""
  D, F = config.hidden_size, config.mlp_size
  N, K, H = config.num_heads, config.num_kv_heads, config.head_dim
  # Residual outputs start small, so that a deep stack starts near the identity.
  depth = 2 * config.num_layers
  biases = {
    "query_bias": Weight((N, H), ("heads", "head_dim"), zeros),
    "key_bias": Weight((K, H), ("kv_heads", "head_dim"), zeros),
    "value_bias": Weight((K, H), ("kv_heads", "head_dim"), zeros),
  }
  return {
    "attention_norm": Weight((D,), ("embed",), ones),
    "query": Weight((D, N, H), ("embed", "heads", "head_dim"), normal(D)),
    "key": Weight((D, K, H), ("embed", "kv_heads", "head_dim"), normal(D)),
    "value": Weight((D, K, H), ("embed", "kv_heads", "head_dim"), normal(D)),
    **(biases if config.qkv_bias else {}),
    "output": Weight((N, H, D), ("heads", "head_dim", "embed"), normal(N * H * depth)),
    "mlp_norm": Weight((D,), ("embed",), ones),
    "gate": Weight((D, F), ("embed", "mlp"), normal(D)),
    "up": Weight((D, F), ("embed", "mlp"), normal(D)),
    "down": Weight((F, D), ("mlp", "embed"), normal(F * depth)),
  }


def weights_of(config: DenoiserConfig, lora: LoraConfig | None) -> dict[str, Weight]:
  """All weights by their paths in the tree of parameters, such as "blocks.query" and "lora.query.a"."""
  V, D, layer = config.vocab_size, config.hidden_size, block_weights(config)
  # `init` draws them in this order.
  weights = {"embedding": Weight((V, D), ("vocab", "embed"), normal(D)), **_stacked(layer, "blocks", config)}
  weights["final_norm"] = Weight((D,), ("embed",), ones)
  if not config.tied_head:
    weights["head"] = Weight((D, V), ("embed", "vocab"), normal(D))
  if lora is not None:
    weights |= _stacked(adapter_weights(layer, lora), "lora", config)
  return weights


def _stacked(weights: dict[str, Weight], place: str, config: DenoiserConfig) -> dict[str, Weight]:
  """One layer's weights as those of all layers, along a leading axis; their paths begin with `place`."""
  L = config.num_layers
  return {f"{place}.{name}": weight._replace(shape=(L, *weight.shape), axes=("layers", *weight.axes))
          for name, weight in weights.items()}
