"""LoRA: low-rank updates of frozen projections, W + (alpha / rank) A B (arXiv 2106.09685).

An adapter is the entry "lora" of a denoiser's parameters; without the entry the same denoiser computes the base model,
so that the reference of a LoRA run needs no second copy.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from gdsd_jax.parallel.mesh import param_shardings

# Canonical target names, the same for every family -> the weights of transformer.py that they stand for.
TARGETS = {"q": "query", "k": "key", "v": "value", "o": "output", "gate": "gate", "up": "up", "down": "down"}


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Shape of an adapter. Hashable, so it can be a static argument of `jax.jit`.

  Attributes:
    rank: columns of A and rows of B.
    alpha: the update is scaled by alpha / rank.
    dropout: share of the adapter's inputs that training sets to zero.
    targets: adapted projections, a subset of q, k, v, o, gate, up, down.
  """

  rank: int = 128
  alpha: float = 64.0
  dropout: float = 0.05
  targets: tuple[str, ...] = tuple(TARGETS)

  def __post_init__(self):
    unknown = [name for name in self.targets if name not in TARGETS]
    if unknown:
      raise ValueError(f"model.lora.targets: {unknown[0]!r} is not one of {', '.join(TARGETS)}")
    if not self.targets:
      raise ValueError(f"model.lora.targets: must name at least one of {', '.join(TARGETS)}")
    object.__setattr__(self, "targets", tuple(name for name in TARGETS if name in self.targets))  # order is no matter
    if self.rank < 1:
      raise ValueError(f"model.lora.rank: must be at least 1, not {self.rank}")
    if self.alpha <= 0:
      raise ValueError(f"model.lora.alpha: must be positive, not {self.alpha}")
    if not 0 <= self.dropout < 1:
      raise ValueError(f"model.lora.dropout: must lie in [0, 1), not {self.dropout}")

  @property
  def scale(self) -> float:
    return self.alpha / self.rank


class LowRank(nnx.Module):
  """A and B of one projection of all layers, or of the layer that a scan is at. Float32 whatever the base is."""

  def __init__(self, shape: tuple[int, ...], axes: tuple[str, ...], inputs: int, rank: int, rngs: nnx.Rngs):
    """shape, axes: of the stacked base weight, [layers, *I, *O]; inputs: dimensions of I."""
    layers, fan_in = shape[0], math.prod(shape[1:1 + inputs])
    bound = 1 / math.sqrt(fan_in)  # as PEFT initialises; B = 0 makes the adapted model start as the base model
    a = jax.random.uniform(rngs.params(), (*shape[:1 + inputs], rank), jnp.float32, -bound, bound)
    self.a = nnx.Param(a, logical_axes=(*axes[:1 + inputs], "lora_rank"))
    b = jnp.zeros((layers, rank, *shape[1 + inputs:]), jnp.float32)
    self.b = nnx.Param(b, logical_axes=(axes[0], _rank_axis(axes[1 + inputs:]), *axes[1 + inputs:]))


def _rank_axis(outputs: tuple[str, ...]) -> str:
  # The outputs of o and down are split over fsdp already.
  return "lora_rank" if "embed" in outputs else "lora_rank_of_b"


def merge(params: Mapping[str, Any], config: LoraConfig) -> dict[str, Any]:
  """Parameters of the base model with the adapter added to its weights, in their dtype; no entry "lora" is left."""
  blocks = dict(params["blocks"])
  for name, factors in params["lora"].items():
    a, b = factors["a"], factors["b"]
    # The sum over the rank, one layer at a time; in full float32, which accelerators round by default.
    update = jax.lax.map(lambda ab: jnp.tensordot(*ab, axes=1, precision="highest"), (a, b))
    blocks[name] = (blocks[name].astype(jnp.float32) + config.scale * update).astype(blocks[name].dtype)
  return {**{name: leaf for name, leaf in params.items() if name != "lora"}, "blocks": blocks}


def add_adapter(denoiser, params, config: LoraConfig, key, mesh=None):
  """Adds a fresh adapter, which computes what the base model does until it is trained.

  Args:
    denoiser, params: of the base model.
    config: shape of the adapter.
    key: random key of A; B is zero.
    mesh: to lay the adapter over; None for the default device.

  Returns:
    (denoiser, params): with `denoiser.lora` and the entry "lora"; the base weights are the same arrays.
  """
  adapted = dataclasses.replace(denoiser, lora=config)
  # Under jit the base weights that `init` would make are never computed.
  shardings = param_shardings(mesh, adapted)["lora"]
  adapter = jax.jit(lambda key: adapted.init(key)["lora"], out_shardings=shardings)(key)
  return adapted, {**params, "lora": adapter}
