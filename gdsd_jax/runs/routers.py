"""Routers of mixtures of experts in training: which of their weights move, and what a step tells of their load.

For a model without experts each function costs nothing.
"""

import functools

import jax
import jax.numpy as jnp

from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.objectives.load_balance import load_metrics
from gdsd_jax.runs.gradient import cut, ScoringBatch


def moved(tree, denoiser: Denoiser):
  """Gradients or updates of what is trained, zero where it does not move.

  Those are routers that are held, and always the biases that choose experts: they have no gradient, but weight decay
  would draw them to zero.
  """
  if denoiser.config.experts is None or denoiser.lora is not None:
    return tree
  stays = {"router_bias"} if denoiser.trains_routers else {"router_bias", "router"}
  return jax.tree_util.tree_map_with_path(lambda path, x: jnp.zeros_like(x) if path[-1].key in stays else x, tree)


@functools.partial(jax.jit, static_argnames=("denoiser", "accumulation"))
def router_metrics(params, rollouts: ScoringBatch, *, denoiser: Denoiser, accumulation: int) -> dict[str, jax.Array]:
  """Numbers of the routers' load by the clean tokens of the first microbatch of N rollouts."""
  tokens, mask = (cut(x[:, None], accumulation)[0] for x in (rollouts.tokens, rollouts.attention_mask))
  _, load = denoiser.hidden_and_load(denoiser.cast(params), tokens, mask)
  return load_metrics(load)


def said_of_routers(denoiser: Denoiser) -> str | None:
  """What a run says of its routers when it begins; None for a model without any."""
  if denoiser.config.experts is None:
    return None
  if denoiser.lora is None and denoiser.trains_routers:
    return "the routers of experts are trained, too (model.train_router)"
  freed = "" if denoiser.lora else "; --config.model.train_router=True trains them"
  return f"the routers of experts stay as they are{freed}"
