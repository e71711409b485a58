"""LoRA: low-rank updates of frozen projections, W + (alpha / rank) A B (arXiv 2106.09685).

An adapter is the entry "lora" of a denoiser's parameters; without the entry the same denoiser computes the base model,
so that the reference of a LoRA run needs no second copy.
"""

from collections.abc import Mapping
import dataclasses
import functools
import math
from typing import Any

from flax.nnx import initializers
import jax
import jax.numpy as jnp

from gdsd_jax.models.config import DenoiserConfig, LoraConfig, TARGETS
from gdsd_jax.models.transformer import block_weights, stacked, Weight
from gdsd_jax.parallel.mesh import param_shardings


def adapter_weights(config: DenoiserConfig, lora: LoraConfig) -> dict[str, Weight]:
  """A and B of all adapted projections, by their paths in the tree of parameters, such as "lora.query.a".

  They are float32 whatever the base is. A starts as in PEFT; B = 0 makes the adapted model start as the base model.
  """
  block, a, b = block_weights(config), {}, {}
  for name in (TARGETS[target] for target in lora.targets):
    shape, axes = block[name].shape, block[name].axes
    inputs = 2 if name == "output" else 1  # dimensions
    bound = 1 / math.sqrt(math.prod(shape[:inputs]))
    uniform = functools.partial(jax.random.uniform, minval=-bound, maxval=bound)
    a[f"{name}.a"] = Weight((*shape[:inputs], lora.rank), (*axes[:inputs], "lora_rank"), uniform, "float32")
    # The outputs of o and down are split over fsdp already.
    rank = "lora_rank" if "embed" in axes[inputs:] else "lora_rank_of_b"
    b[f"{name}.b"] = Weight((lora.rank, *shape[inputs:]), (rank, *axes[inputs:]), initializers.zeros, "float32")
  return stacked({**a, **b}, "lora", config)


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
