"""Gradients by the layers' weights that are added to a sum in place, layer by layer, on the way back.

A scan gives the gradient by what it scans over as a new array: of several samples one after the other, the gradient of
one and the sum of those before would be in memory together, each as large as what is trained. So the sum goes back
through the scan itself, as the cotangent of a carry that the forward pass hands on unread.
"""

from flax import struct
import jax


@struct.dataclass
class Summed:
  """A weight of all layers [L, ...] and the sum so far, shaped like it. The gradient by the weight is the new sum."""

  weight: jax.Array
  total: jax.Array


_is_summed = lambda leaf: isinstance(leaf, Summed)


def is_of_layers(name: str) -> bool:
  """Whether an entry of the tree of parameters has the weights of layers, which a denoiser takes `Summed`, too."""
  return name not in ("embedding", "final_norm", "head")


def with_sums(params, total):
  """Parameters whose gradient by those of layers is added to `total`, a tree like them, and so is the new total."""
  return {name: jax.tree.map(Summed, part, total[name]) if is_of_layers(name) else part
          for name, part in params.items()}


def added(total, gradient):
  """The new total, from a gradient by parameters `with_sums`."""
  return {name: part if is_of_layers(name) else jax.tree.map(jax.numpy.add, total[name], part)
          for name, part in gradient.items()}


def split_sums(weights):
  """(weights to scan over, the `Summed` among them by their places in the tree)."""
  leaves, structure = jax.tree.flatten(weights, is_leaf=_is_summed)
  sums = {place: leaf for place, leaf in enumerate(leaves) if _is_summed(leaf)}
  for place, summed in sums.items():
    leaves[place] = jax.lax.stop_gradient(summed.weight)
  return structure.unflatten(leaves), sums


def of_layer(weights, carried, layer):
  """(weights of a layer, carried): weights by which the gradient is added to that by what is `carried`."""
  leaves, structure = jax.tree.flatten(weights)
  tapped = {place: _tap(leaves[place], stack, layer) for place, stack in carried.items()}
  for place, (leaf, _) in tapped.items():
    leaves[place] = leaf
  return structure.unflatten(leaves), {place: stack for place, (_, stack) in tapped.items()}


@jax.custom_vjp
def _tap(weight, stack, layer):
  return weight, stack


_tap.defvjp(
  lambda weight, stack, layer: ((weight, stack), layer),
  lambda layer, gradients: (None, gradients[1].at[layer].add(gradients[0]), None),
)


def summed_into(x, carried, sums):
  """x, on whose way back the gradient by what was carried begins with the totals of `sums`."""
  for place, stack in carried.items():
    x = _begin_with(x, stack, sums[place].total)
  return x


@jax.custom_vjp
def _begin_with(x, stack, total):
  return x


_begin_with.defvjp(
  lambda x, stack, total: (x, total),
  lambda total, gradient: (gradient, total, None),
)
