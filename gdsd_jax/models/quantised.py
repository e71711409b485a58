"""A frozen base in 8 or 4 bits a weight, as qwix quantises (github.com/google/qwix): what is quantised, and products.

A quantised weight is a `qwix.QArray` in the place of an array: its numbers, and a scale for each block of them, in the
dtype that it stands for. It lies as its products take it, [..., inputs, outputs], an LM head as an embedding does; and
a block runs along the inputs. It stays so at all times: a product makes the numbers of one layer while it multiplies.
"""

from collections.abc import Mapping
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from gdsd_jax.checks import require, require_at_least, require_one_of
from gdsd_jax.models.lora import EXPERT_LEAVES, LEAVES
from gdsd_jax.models.weights import Weight
from gdsd_jax.parallel.mesh import is_quantised, split_into

# What a weight becomes -> the dtype that it is kept in. "nf4" are the 16 quantiles of a normal distribution (QLoRA,
# arXiv 2305.14314), the others whole numbers.
KINDS = {"int8": "int8", "int4": "int4", "nf4": "uint4"}


@dataclasses.dataclass(frozen=True)
class QuantizeConfig:
  """How a frozen base is quantised. Hashable, so it can be a static argument of `jax.jit`."""

  kind: str = "nf4"  # what the frozen projections of all layers are kept as: int8, int4 or nf4 (docs/quantised.md)
  block_size: int = 64  # inputs of a projection that share a scale
  head: bool = False  # whether the LM head is quantised, too
  embedding: bool = False  # whether the embedding is quantised, too

  def __post_init__(self):
    require_one_of("model.quantize.kind", self.kind, tuple(KINDS))
    require_at_least(self, "model.quantize.", block_size=1)

  def covers(self, path: str) -> bool:
    """Whether the weight of this path in the tree of parameters is quantised."""
    if path in ("head", "embedding"):
      return getattr(self, path)
    return not path.startswith("lora.") and path.rpartition(".")[2] in LEAVES


def quantised_weights(weights: Mapping[str, Weight], config: QuantizeConfig | None, mesh: Mesh | None = None):
  """Weights by their paths, with a QArray of two (numbers and scales) in the place of each that is quantised.

  Raises ValueError where blocks do not divide the inputs of one, or chips its blocks, or where nothing is quantised
  that the config names.
  """
  if config is None:
    return weights
  require("head" in weights or config.head == config.embedding, "model.quantize.head",
          "is the embedding in this model; set model.quantize.embedding to the same")
  return {path: _parts(path, weight, config, mesh) if config.covers(path) else weight
          for path, weight in weights.items()}


def _parts(path: str, weight: Weight, config: QuantizeConfig, mesh: Mesh | None):
  from qwix import QArray  # its import takes a second, which only those pay who quantise

  groups, of_inputs = _groups(path, len(weight.shape))
  shape = [math.prod(weight.shape[i] for i in group) for group in groups]
  axes = tuple(weight.axes[group[0]] for group in groups)
  blocks, rest = divmod(shape[of_inputs], config.block_size)
  require(rest == 0, "model.quantize.block_size",
          f"{config.block_size} does not divide the {shape[of_inputs]} inputs of {path}")
  chips = split_into(axes[of_inputs], mesh)
  require(blocks % chips == 0, "model.quantize.block_size",
          f"{config.block_size} makes {blocks} blocks of the inputs of {path}, which {chips} chips do not divide")
  numbers = Weight(tuple(shape), axes, weight.initializer, KINDS[config.kind])
  shape[of_inputs] = blocks
  return QArray(numbers, Weight(tuple(shape), axes, weight.initializer, weight.dtype), qtype=config.kind)


def _groups(path: str, rank: int) -> tuple[list[tuple[int, ...]], int]:
  """(for each dimension of a quantised weight those of the whole one that it is made of, which of them are inputs)."""
  if path in ("head", "embedding"):
    # [V, D], in which the tokens of targets are rows: TPUs would make a second, transposed copy to look up columns.
    return [(0,), (1,)] if path == "embedding" else [(1,), (0,)], 1
  name = path.rpartition(".")[2]
  first = 2 if name in EXPERT_LEAVES else 1  # behind layers and experts
  outputs = first + (2 if name == "output" else 1)
  return [*((i,) for i in range(first)), tuple(range(first, outputs)), tuple(range(outputs, rank))], first


def quantise(path: str, weight, config: QuantizeConfig):
  """The QArray of a weight, or of some of its layers or of the vocabulary; its scales have the weight's dtype."""
  import qwix

  groups, of_inputs = _groups(path, weight.ndim)
  flat = weight.transpose(sum(groups, ())).reshape([math.prod(weight.shape[i] for i in group) for group in groups])
  others = [axis for axis in range(flat.ndim) if axis != of_inputs]
  # In float32: a quotient of bfloat16's 8 bits is rounded once more than its 8-bit number.
  return qwix.quantize(flat.astype(jnp.float32), config.kind, channelwise_axes=others,
                       tiled_axes={of_inputs: config.block_size}, scale_dtype=weight.dtype)


def dequantised(weight):
  """The array that a weight stands for, in its dtype; any array as it is."""
  if not is_quantised(weight):
    return weight
  numbers, scale = weight.qvalue, weight.scale
  if weight.qtype == "nf4":
    # `qwix.dequantize` gathers them from a table, in an array of one dimension: that is slow on accelerators, and
    # collects over a mesh what lies split.
    numbers = _chosen(numbers.astype(jnp.int32), _nf4_numbers())
  return numbers.astype(scale.dtype) * _spread(scale, numbers.shape)


def _spread(scale, shape: tuple[int, ...]):
  """Each number's own scale: those of blocks, repeated along the dimension of a weight of this shape that they cut."""
  if scale.shape[:-1] == shape[:-1]:
    # A product with zeros and ones, which is exact. To cut the last dimension, TPUs would copy all of a head.
    ones = jnp.repeat(jnp.eye(scale.shape[-1], dtype=scale.dtype), shape[-1] // scale.shape[-1], axis=1)
    return jnp.matmul(scale, ones, precision="highest")
  blocks = [part for whole, count in zip(shape, scale.shape) for part in (count, whole // count)]
  return jnp.broadcast_to(scale.reshape([part for count in scale.shape for part in (count, 1)]), blocks).reshape(shape)


@functools.cache
def _nf4_numbers() -> tuple[float, ...]:
  """The numbers that nf4's 16 codes stand for."""
  import qwix

  with jax.ensure_compile_time_eval():
    codes = qwix.QArray(jnp.arange(16).astype(jnp.uint4), jnp.ones(1, jnp.float32), qtype="nf4")
    return tuple(np.asarray(qwix.dequantize(codes)).tolist())


def _chosen(codes, numbers):
  """float32[...]: numbers[code] of each code, by its bits, highest first."""
  if len(numbers) == 1:
    return jnp.float32(numbers[0])
  low, high = numbers[:len(numbers) // 2], numbers[len(numbers) // 2:]
  return jnp.where(codes & len(low), _chosen(codes, high), _chosen(codes, low))


@jax.custom_vjp
def product(x, weight):
  """x [..., I] @ a quantised weight [I, O], which has no gradient: [..., O] in x's dtype.

  The backward pass makes the weight's numbers again: kept from the forward pass, those of all layers would be there.
  """
  return x @ dequantised(weight).astype(x.dtype)


product.defvjp(
  lambda x, weight: (product(x, weight), weight),
  lambda weight, gradient: (gradient @ dequantised(weight).astype(gradient.dtype).T, None),
)


@jax.custom_vjp
def grouped_product(rows, weight, sizes):
  """`jax.lax.ragged_dot` of rows [n, I] with the quantised weights [E, I, O] of E groups; as `product`."""
  return jax.lax.ragged_dot(rows, dequantised(weight).astype(rows.dtype), sizes)


# Rows are grouped as forward; each is multiplied with its group's transposed weight.
_TRANSPOSED = jax.lax.RaggedDotDimensionNumbers((((1,), (2,)), ((), ())), [0], [0])
grouped_product.defvjp(
  lambda rows, weight, sizes: (grouped_product(rows, weight, sizes), (weight, sizes)),
  lambda kept, gradient: (jax.lax.ragged_dot_general(
    gradient, dequantised(kept[0]).astype(gradient.dtype), kept[1], _TRANSPOSED), None, None),
)
