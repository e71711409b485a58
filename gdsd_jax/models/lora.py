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
from gdsd_jax.parallel.mesh import is_quantised, param_shardings

# Canonical target names, the same for every family -> the weights of a block that they stand for. Of a mixture of
# experts, gate, up and down are those that every token goes through; the experts' own are adapted where they are asked
# for, by the target "experts".
TARGETS = {"q": "query", "k": "key", "v": "value", "o": "output", "gate": "gate", "up": "up", "down": "down"}
EXPERTS, EXPERT_LEAVES = "experts", ("expert_gate", "expert_up", "expert_down")
_SHARED = {target: f"shared_{target}" for target in ("gate", "up", "down")}
LEAVES = (*TARGETS.values(), *_SHARED.values(), *EXPERT_LEAVES)  # whose numbers dropout draws by
LEAVES_OF = {target: (leaf, *([_SHARED[target]] if target in _SHARED else [])) for target, leaf in TARGETS.items()}
LEAVES_OF[EXPERTS] = EXPERT_LEAVES


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Shape of an adapter. Hashable, so it can be a static argument of `jax.jit`."""

  rank: int = 128  # columns of A and rows of B
  alpha: float = 64.0  # the update is scaled by alpha / rank
  dropout: float = 0.05  # share of the adapter's inputs that training sets to zero
  # Adapted projections, some of q, k, v, o, gate, up, down, and "experts", for each expert's own.
  targets: tuple[str, ...] = tuple(TARGETS)

  def __post_init__(self):
    known = tuple(LEAVES_OF)
    for name in self.targets:
      require_one_of("model.lora.targets", name, known)
    require(len(self.targets) > 0, "model.lora.targets", f"must name at least one of {', '.join(known)}")
    object.__setattr__(self, "targets", tuple(name for name in known if name in self.targets))  # order is no matter
    require_at_least(self, "model.lora.", rank=1)
    require(self.alpha > 0, "model.lora.alpha", f"must be positive, not {self.alpha}")
    require(0 <= self.dropout < 1, "model.lora.dropout", f"must lie in [0, 1), not {self.dropout}")

  @property
  def scale(self) -> float:
    return self.alpha / self.rank

  @property
  def leaves(self) -> tuple[str, ...]:
    """Weights of a block that are adapted where a block has them."""
    return tuple(leaf for target in self.targets for leaf in LEAVES_OF[target])


def adapter_weights(stacks: Mapping[str, Mapping[str, Any]], lora: LoraConfig) -> dict[str, dict[str, Any]]:
  """A and B of the adapted projections among the weights of each stack's blocks, as "query.a" and so on.

  They are float32 whatever the base is. A starts as in PEFT; B = 0 makes the adapted model start as the base model.
  Raises ValueError if the model has none of the targets, if experts are adapted with dropout, or if no adapted
  projection is as wide as the rank: A and B would hold more than all of them.
  """
  has_experts = any("router" in block for block in stacks.values())
  require(has_experts or EXPERTS not in lora.targets, "model.lora.targets", "names experts, and the model has none")
  require(not lora.dropout or EXPERTS not in lora.targets, "model.lora.dropout",
          f"must be 0 where model.lora.targets names experts, whose adapters have none, not {lora.dropout}")
  adapters, widest = {}, 0
  for stack, block in stacks.items():
    a, b = {}, {}
    for name in (name for name in lora.leaves if name in block):
      a[f"{name}.a"], b[f"{name}.b"], width = _factors(name, block[name], lora.rank)
      widest = max(widest, width)
    adapters[stack] = {**a, **b}
  require(widest > 0, "model.lora.targets", f"the model has none of {', '.join(lora.targets)}")
  require(lora.rank <= widest, "model.lora.rank", f"{lora.rank} is more than the {widest} of the widest adapted"
                                                  " projection, whose every update has a lower rank")
  return adapters


def _factors(name: str, weight, rank: int):
  """(A, B, largest rank of an update) of a projection; each expert has factors of its own."""
  of_experts = int(name in EXPERT_LEAVES)
  inputs = of_experts + (2 if name == "output" else 1)  # dimensions
  weight = weight._replace(dtype="float32")
  shape, axes = weight.shape, weight.axes
  fan_in = math.prod(shape[of_experts:inputs])
  uniform = functools.partial(jax.random.uniform, minval=-1 / math.sqrt(fan_in), maxval=1 / math.sqrt(fan_in))
  # The outputs of o and down are split over fsdp already.
  of_b = "lora_rank" if of_experts or "embed" in axes[inputs:] else "lora_rank_of_b"
  a = weight._replace(shape=(*shape[:inputs], rank), axes=(*axes[:inputs], "lora_rank"), initializer=uniform)
  b = weight._replace(shape=(*shape[:of_experts], rank, *shape[inputs:]),
                      axes=(*axes[:of_experts], of_b, *axes[inputs:]), initializer=initializers.zeros)
  return a, b, min(fan_in, math.prod(shape[inputs:]))


def merge(params: Mapping[str, Any], config: LoraConfig) -> dict[str, Any]:
  """Parameters of the base model with the adapter added to its weights, in their dtype; no entry "lora" is left."""
  merged = {name: leaf for name, leaf in params.items() if name != "lora"}
  stacks = {name: part for name, part in params["lora"].items() if name in params}
  stacks["blocks"] = {name: factors for name, factors in params["lora"].items() if name not in stacks}
  for stack, adapter in stacks.items():
    merged[stack] = block = dict(params[stack])
    for name, factors in adapter.items():
      block[name] = _added(block[name], factors, config.scale, name in EXPERT_LEAVES)
  return merged


def _added(weight, factors: Mapping[str, Any], scale: float, of_experts: bool):
  """A projection of all layers with its update. Raises ValueError if it is quantised."""
  if is_quantised(weight):
    raise ValueError("an adapter is merged into whole weights: load the base without `quantize`")
  of_layer = functools.partial(jnp.matmul, precision="highest") if of_experts else product_of
  update = jax.lax.map(lambda ab: of_layer(*ab), (factors["a"], factors["b"]))  # one layer at a time
  return (weight.astype(jnp.float32) + scale * update).astype(weight.dtype)


def product_of(a, b):
  """A [*I, r] B [r, *O] -> [*I, *O], in full float32, which accelerators round by default."""
  return jnp.tensordot(a, b, axes=1, precision="highest")


def costs_less_added(tokens: int, inputs: int, outputs: int, rank: int) -> bool:
  """Whether so many tokens take fewer multiplications through W + A B than through W, A and B, in training.

  A and B are gone through forward, once more where a backward pass makes activations again, and for gradients by x and
  by both. W + A B is as large as W; but it is made twice, and has a gradient, of which those by A and B are made.
  """
  return 4 * tokens * rank * (inputs + outputs) > (tokens + 4 * rank) * inputs * outputs


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
