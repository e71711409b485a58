"""A mixture of experts: a router sends each token through a few of many small MLPs, by products over groups of rows.

No token is dropped, and no expert has a capacity. Dimensions, besides those of transformer.py: n tokens of a chip, k
experts of a token, E experts, F inner width of one.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gdsd_jax.models.config import ExpertsConfig
from gdsd_jax.models.lora import EXPERT_LEAVES, LoraConfig
from gdsd_jax.models.quantised import grouped_product
from gdsd_jax.parallel.mesh import axis_of, is_quantised, partition

_AXES = {  # an expert's projections and their adapters' factors
  "expert_gate": ("experts", None, "expert_mlp"), "expert_up": ("experts", None, "expert_mlp"),
  "expert_down": ("experts", "expert_mlp", None),
}


class Load(NamedTuple):
  """How a router spread tokens over the experts of a layer; both sum to 1. [layers, E] of a stack of layers."""

  chosen: jax.Array  # float32[E], the share of the tokens' choices that fell on each expert; it has no gradient
  share: jax.Array  # float32[E], the mean over tokens of an expert's score, as a share of the scores of all


def mixture(x, weights, factors, config: ExpertsConfig, lora: LoraConfig | None, mesh: Mesh | None,
            axes: tuple[str, str | None] = ("batch", "tokens")):
  """What the experts of each token make of it, weighted by the router: [B, T, D] for x [B, T, D].

  Args:
    weights, factors: those of the layer, see `transformer.Layer`.
    config, lora: those of the denoiser.
    mesh: that x and the weights are laid out over. Experts split over its axis `expert` see the tokens of all chips
      along that axis, and the sums of what they make of them go back to the tokens' own chips.
    axes: logical axes of B and T, see `transformer.Context`.
  """
  chosen, shares = route(x, weights["router"], weights.get("router_bias"), config)
  kernels = {name: weights[name] for name in EXPERT_LEAVES}
  adapter = {name: factors[name] for name in EXPERT_LEAVES if name in factors}
  scale = lora.scale if adapter else 0.0
  if mesh is None or mesh.size == 1:
    return _on_a_chip(x, chosen, shares, kernels, adapter, scale=scale)
  split = lambda x, *axes: partition(axes, x.shape, mesh)
  tokens = split(x, *axes, None)
  factors_split = lambda name, parts: {"a": split(parts["a"], *_AXES[name][:2], None),
                                       "b": split(parts["b"], _AXES[name][0], None, _AXES[name][2])}
  specs = (tokens, tokens, tokens, {name: split(kernel, *_AXES[name]) for name, kernel in kernels.items()},
           {name: factors_split(name, parts) for name, parts in adapter.items()})
  compute = functools.partial(
    _on_a_chip, scale=scale, expert_axis=axis_of("experts", mesh), inner_axis=axis_of("expert_mlp", mesh))
  # Sequences that do not divide over the mesh are on every chip, so that none need be gathered.
  if tokens[0] is None:
    compute = functools.partial(compute, gather=False)
  of_mesh = jax.shard_map(compute, mesh=mesh, in_specs=specs, out_specs=tokens, check_vma=False)
  return of_mesh(x, chosen, shares, kernels, adapter)


def route(x, router, bias, config: ExpertsConfig):
  """(experts int32[B, T, k], weights of their outputs float32[B, T, k]) of each token of x [B, T, D], in float32.

  `router` is [D, E], and `bias` [E] or None. LLaDA 2 and DeepSeek-V3 (arXiv 2412.19437) choose by sigmoid, with a bias
  and from groups; OLMoE (arXiv 2409.02060) and Qwen3 by a softmax.
  """
  scores = _scores(x, router, config)
  # The choice itself has no gradient.
  wanted = jax.lax.stop_gradient(scores if bias is None else scores + bias.astype(jnp.float32))
  if config.groups > 1:
    groups = wanted.reshape(*wanted.shape[:-1], config.groups, -1)
    best = jnp.sum(jax.lax.top_k(groups, min(2, groups.shape[-1]))[0], axis=-1)
    _, kept = jax.lax.top_k(best, config.groups_per_token)
    is_kept = jnp.any(kept[..., None] == jnp.arange(config.groups), axis=-2)
    wanted = jnp.where(is_kept[..., None], groups, -jnp.inf).reshape(wanted.shape)
  _, chosen = jax.lax.top_k(wanted, config.per_token)
  shares = jnp.take_along_axis(scores, chosen, axis=-1)
  if config.normalised:
    shares = shares / (jnp.sum(shares, axis=-1, keepdims=True) + 1e-20)
  return chosen, shares * config.scale


def load_of(x, router, bias, config: ExpertsConfig, real) -> Load:
  """The load by those tokens of x [B, T, D] that are `real`, bool[B, T], or by all where that is None; see `route`."""
  chosen, _ = route(x, router, bias, config)
  falls = jnp.any(chosen[..., None] == jnp.arange(config.count), axis=-2)  # bool[B, T, E]
  scores = _scores(x, router, config)
  shares = scores / jnp.sum(scores, axis=-1, keepdims=True)
  of = jnp.ones(x.shape[:2], jnp.float32) if real is None else real.astype(jnp.float32)
  mean = lambda values: jnp.sum(values * of[..., None], axis=(0, 1)) / jnp.maximum(jnp.sum(of), 1)
  return Load(mean(falls) / config.per_token, mean(shares))


def _scores(x, router, config: ExpertsConfig):
  """float32[B, T, E], each expert's score."""
  logits = jnp.matmul(x.astype(jnp.float32), router.astype(jnp.float32), precision="highest")
  return jax.nn.sigmoid(logits) if config.router == "sigmoid" else jax.nn.softmax(logits, axis=-1)


def _on_a_chip(x, chosen, shares, kernels, adapter, scale: float, expert_axis: str | None = None,
               inner_axis: str | None = None, gather: bool = True):
  """x [b, T, D] of a chip through the experts and the inner dimensions that the chip holds, summed over all chips."""
  shape, dtype = x.shape, x.dtype
  x, chosen, shares = (part.reshape(-1, part.shape[-1]) for part in (x, chosen, shares))
  first = 0
  if expert_axis is not None:
    first = jax.lax.axis_index(expert_axis) * kernels["expert_down"].shape[0]
    if gather:
      x, chosen, shares = (jax.lax.all_gather(part, expert_axis, tiled=True) for part in (x, chosen, shares))
  y = _through_own_experts(x, chosen - first, shares, kernels, adapter, scale)
  if expert_axis is not None:
    y = jax.lax.psum_scatter(y, expert_axis, tiled=True) if gather else jax.lax.psum(y, expert_axis)
  if inner_axis is not None:
    y = jax.lax.psum(y, inner_axis)
  return y.astype(dtype).reshape(shape)


def _through_own_experts(x, chosen, shares, kernels, adapter, scale: float):
  """float32[n, D]: weighted outputs for x [n, D] of those experts that are here, which are numbered from 0."""
  (n, k), experts = chosen.shape, kernels["expert_down"].shape[0]
  # Each token's row, once for each of its experts, sorted by expert; those of experts elsewhere come last.
  group = jnp.where((chosen >= 0) & (chosen < experts), chosen, experts).reshape(-1)
  order = jnp.argsort(group, stable=True)
  back = jnp.argsort(order)
  sizes = jnp.bincount(group, length=experts + 1)[:-1].astype(jnp.int32)
  is_here = (jnp.arange(n * k) < jnp.sum(sizes))[:, None]
  # Rows beyond the groups are zero by the product's definition, but no kernel promises it.
  def product(rows, kernel):
    multiply = grouped_product if is_quantised(kernel) else jax.lax.ragged_dot
    return jnp.where(is_here, multiply(rows, kernel.astype(rows.dtype), sizes), 0)

  def project(name, rows):
    projected = product(rows, kernels[name])
    if name not in adapter:
      return projected
    return projected + scale * product(product(rows, adapter[name]["a"]), adapter[name]["b"])

  rows = jnp.where(is_here, permuted(jnp.repeat(x, k, axis=0), order, back), 0)
  inner = jax.nn.silu(project("expert_gate", rows)) * project("expert_up", rows)
  outputs = permuted(project("expert_down", inner), back, order).reshape(n, k, -1)
  return jnp.sum(outputs.astype(jnp.float32) * shares[..., None], axis=1)


@jax.custom_vjp
def permuted(rows, order, back):
  """rows[order], for a permutation and its inverse `back`, by which its gradient is a gather, too."""
  return jnp.take(rows, order, axis=0)


permuted.defvjp(
  lambda rows, order, back: (jnp.take(rows, order, axis=0), (order, back)),
  lambda kept, gradient: (jnp.take(gradient, kept[1], axis=0), None, None),
)
