"""Every weight of the network, declared once: shape, logical axes and initialiser side by side.

A table says all that a module's constructor would, and nothing has to be split and merged around the scan over layers.
To add an option of the architecture: a field of `DenoiserConfig`, its weights in `block_weights`, and its computation
in `attention` or `mlp` of transformer.py. Dimensions are named as there.
"""

from collections.abc import Callable
import math
from typing import NamedTuple

import jax
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
DENSE = "dense_blocks"  # the stack of the first layers of a model of experts, which have an MLP


def stacks(config: DenoiserConfig) -> dict[str, range]:
  """Runs of layers with the same weights, by the names that these have in the tree of parameters, first to last."""
  first = 0 if config.experts is None else config.experts.dense_layers
  return {**({DENSE: range(first)} if first else {}), "blocks": range(first, config.num_layers)}


def normal(fan_in: int) -> Callable:
  return initializers.truncated_normal(stddev=1 / math.sqrt(fan_in))


def block_weights(config: DenoiserConfig, stack: str = "blocks") -> dict[str, Weight]:
  """The weights of one transformer block of a stack, by name."""
  D = config.hidden_size
  N, K, H = config.num_heads, config.num_kv_heads, config.head_dim
  # Residual outputs start small, so that a deep stack starts near the identity.
  depth = 2 * config.num_layers
  biases = {
    "query_bias": Weight((N, H), ("heads", "head_dim"), zeros),
    "key_bias": Weight((K, H), ("kv_heads", "head_dim"), zeros),
    "value_bias": Weight((K, H), ("kv_heads", "head_dim"), zeros),
  }
  norms = {name: Weight((H,), ("head_dim",), ones) for name in ("query_norm", "key_norm")}
  mixed = config.experts is not None and stack != DENSE
  return {
    "attention_norm": Weight((D,), ("embed",), ones),
    "query": Weight((D, N, H), ("embed", "heads", "head_dim"), normal(D)),
    "key": Weight((D, K, H), ("embed", "kv_heads", "head_dim"), normal(D)),
    "value": Weight((D, K, H), ("embed", "kv_heads", "head_dim"), normal(D)),
    **(biases if config.qkv_bias else {}),
    **(norms if config.qk_norm else {}),
    "output": Weight((N, H, D), ("heads", "head_dim", "embed"), normal(N * H * depth)),
    "mlp_norm": Weight((D,), ("embed",), ones),
    **(_expert_weights(config, depth) if mixed else _mlp_weights(D, config.mlp_size, depth)),
  }


def _mlp_weights(D: int, F: int, depth: int, prefix: str = "") -> dict[str, Weight]:
  return {
    f"{prefix}gate": Weight((D, F), ("embed", "mlp"), normal(D)),
    f"{prefix}up": Weight((D, F), ("embed", "mlp"), normal(D)),
    f"{prefix}down": Weight((F, D), ("mlp", "embed"), normal(F * depth)),
  }


def _expert_weights(config: DenoiserConfig, depth: int) -> dict[str, Weight]:
  D, experts = config.hidden_size, config.experts
  E, F = experts.count, experts.size
  bias = {"router_bias": Weight((E,), ("routed",), zeros, "float32")}
  return {
    "router": Weight((D, E), ("embed", "routed"), normal(D)),
    **(bias if experts.selection_bias else {}),
    "expert_gate": Weight((E, D, F), ("experts", "embed", "expert_mlp"), normal(D)),
    "expert_up": Weight((E, D, F), ("experts", "embed", "expert_mlp"), normal(D)),
    "expert_down": Weight((E, F, D), ("experts", "expert_mlp", "embed"), normal(F * depth)),
    **(_mlp_weights(D, experts.shared_size, depth, "shared_") if experts.shared_size else {}),
  }


def weights_of(config: DenoiserConfig, lora: LoraConfig | None) -> dict[str, Weight]:
  """All weights by their paths in the tree of parameters, such as "blocks.query" and "lora.query.a"."""
  V, D, layers = config.vocab_size, config.hidden_size, stacks(config)
  # `init` draws them in this order.
  weights = {"embedding": Weight((V, D), ("vocab", "embed"), normal(D))}
  for stack, run in layers.items():
    weights |= _stacked(block_weights(config, stack), stack, len(run))
  weights["final_norm"] = Weight((D,), ("embed",), ones)
  if not config.tied_head:
    weights["head"] = Weight((D, V), ("embed", "vocab"), normal(D))
  if lora is not None:
    blocks = {stack: block_weights(config, stack) for stack in layers}
    for stack, adapter in adapter_weights(blocks, lora).items():
      weights |= _stacked(adapter, f"lora.{stack}".removesuffix(".blocks"), len(layers[stack]))
  return weights


def canonical(path: str) -> str:
  """The path of a weight in a model of one stack: layouts call those of all stacks alike."""
  return path.replace(f"{DENSE}.", "blocks.", 1)


def of_stack(tree, stack: str, adapted: bool):
  """(weights of a stack of layers, their factors, none if not `adapted`) in a tree like that of the parameters."""
  adapter = tree["lora"] if adapted else {}
  own = {name: leaf for name, leaf in adapter.items() if name != DENSE} if stack != DENSE else adapter.get(DENSE, {})
  return tree[stack], own


def of_layers(tree, layers: range):
  """These layers of a tree of arrays of all of them, along the first axis; of a stack alone they are all."""
  return jax.tree.map(lambda x: x if len(x) == len(layers) else x[layers.start:layers.stop], tree)


def _stacked(weights: dict[str, Weight], place: str, layers: int) -> dict[str, Weight]:
  """One layer's weights as those of several, along a leading axis; their paths begin with `place`."""
  return {f"{place}.{name}": weight._replace(shape=(layers, *weight.shape), axes=("layers", *weight.axes))
          for name, weight in weights.items()}
