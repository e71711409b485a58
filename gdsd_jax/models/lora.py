"""LoRA: low-rank updates of frozen projections, W + (alpha / rank) A B (arXiv 2106.09685).

An adapter is the entry "lora" of a denoiser's parameters; without the entry the same denoiser computes the base model,
so that the reference of a LoRA run needs no second copy.
"""

from collections.abc import Mapping
import dataclasses
import functools
import math
from typing import Any

import jax
from jax.nn import initializers
import jax.numpy as jnp

from gdsd_jax.checks import require, require_at_least, require_one_of
from gdsd_jax.parallel.mesh import param_shardings

# Canonical target names, the same for every family -> the weights of a block that they stand for.
TARGETS = {"q": "query", "k": "key", "v": "value", "o": "output", "gate": "gate", "up": "up", "down": "down"}


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Shape of an adapter. Hashable, so it can be a static argument of `jax.jit`."""

  rank: int = 128  # columns of A and rows of B
  alpha: float = 64.0  # the update is scaled by alpha / rank
  dropout: float = 0.05  # share of the adapter's inputs that training sets to zero
  targets: tuple[str, ...] = tuple(TARGETS)  # adapted projections, some of q, k, v, o, gate, up, down

  def __post_init__(self):
    for name in self.targets:
      require_one_of("model.lora.targets", name, tuple(TARGETS))
    require(len(self.targets) > 0, "model.lora.targets", f"must name at least one of {', '.join(TARGETS)}")
    object.__setattr__(self, "targets", tuple(name for name in TARGETS if name in self.targets))  # order is no matter
    require_at_least(self, "model.lora.", rank=1)
    require(self.alpha > 0, "model.lora.alpha", f"must be positive, not {self.alpha}")
    require(0 <= self.dropout < 1, "model.lora.dropout", f"must lie in [0, 1), not {self.dropout}")

  @property
  def scale(self) -> float:
    return self.alpha / self.rank


def adapter_weights(block: Mapping[str, Any], lora: LoraConfig) -> dict[str, Any]:
  """A and B of the adapted projections among a block's weights (`block_weights`), as "query.a" and so on.

  They are float32 whatever the base is. A starts as in PEFT; B = 0 makes the adapted model start as the base model.
  Raises ValueError if no adapted projection is as wide as the rank: A and B would hold more than all of them.
  """
  a, b, widest = {}, {}, 0
  for name in (TARGETS[target] for target in lora.targets):
    weight = block[name]._replace(dtype="float32")
    (shape, axes), inputs = weight[:2], 2 if name == "output" else 1  # dimensions
    widest = max(widest, min(math.prod(shape[:inputs]), math.prod(shape[inputs:])))
    bound = 1 / math.sqrt(math.prod(shape[:inputs]))
    uniform = functools.partial(jax.random.uniform, minval=-bound, maxval=bound)
    # The outputs of o and down are split over fsdp already.
    rank = "lora_rank" if "embed" in axes[inputs:] else "lora_rank_of_b"
    a[f"{name}.a"] = weight._replace(
      shape=(*shape[:inputs], lora.rank), axes=(*axes[:inputs], "lora_rank"), initializer=uniform
    )
    b[f"{name}.b"] = weight._replace(
      shape=(lora.rank, *shape[inputs:]), axes=(rank, *axes[inputs:]), initializer=initializers.zeros
    )
  require(lora.rank <= widest, "model.lora.rank", f"{lora.rank} is more than the {widest} of the widest adapted"
                                                  " projection, whose every update has a lower rank")
  return {**a, **b}


def merge(params: Mapping[str, Any], config: LoraConfig) -> dict[str, Any]:
  """Parameters of the base model with the adapter added to its weights, in their dtype; no entry "lora" is left."""
  base = {name: leaf for name, leaf in params.items() if name != "lora"}
  base["blocks"] = blocks = dict(params["blocks"])
  for name, factors in params["lora"].items():
    a, b = factors["a"], factors["b"]
    # The sum over the rank, one layer at a time; in full float32, which accelerators round by default.
    update = jax.lax.map(lambda ab: jnp.tensordot(*ab, axes=1, precision="highest"), (a, b))
    blocks[name] = (blocks[name].astype(jnp.float32) + config.scale * update).astype(blocks[name].dtype)
  return base


def add_adapter(denoiser, params, config: LoraConfig, key):
  """Adds a fresh adapter, which computes what the base model does until it is trained.

  Args:
    denoiser, params: the base model.
    config: shape of the adapter, which is laid over the denoiser's mesh.
    key: random key of A; B is zero.

  Returns:
    (denoiser, params): with `denoiser.lora` and the entry "lora"; the base weights are the same arrays.
  """
  adapted = dataclasses.replace(denoiser, lora=config)
  # Under jit the base weights that `init` would make are never computed.
  shardings = param_shardings(adapted.mesh, adapted)["lora"]
  adapter = jax.jit(lambda key: adapted.init(key)["lora"], out_shardings=shardings)(key)
  return adapted, {**params, "lora": adapter}
