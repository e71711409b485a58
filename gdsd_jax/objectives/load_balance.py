"""How evenly routers use their experts: numbers of a step, the auxiliary loss, and the update of biases."""

import jax
import jax.numpy as jnp

from gdsd_jax.models.experts import Load


def load_metrics(load: Load) -> dict[str, jax.Array]:
  """Numbers of a step from the load of its layers [layers, E], each the mean over layers."""
  count = load.chosen.shape[-1]
  logs = jnp.where(load.chosen > 0, jnp.log(jnp.maximum(load.chosen, jnp.finfo(jnp.float32).tiny)), 0)
  entropy = -jnp.sum(load.chosen * logs, axis=-1) / jnp.log(float(count))
  return {
    "router/largest_load": jnp.mean(count * jnp.max(load.chosen, axis=-1)),
    "router/load_entropy": jnp.mean(entropy),
    "router/idle_experts": jnp.mean((load.chosen == 0).astype(jnp.float32)),
  }


def balance_loss(load: Load):
  """The auxiliary loss E Σ_e f_e P_e, averaged over layers; 1 where tokens are spread evenly.

  f is the share of the tokens' choices that fell on an expert, and P its mean score as a share of all experts'. Source:
  Switch Transformer (arXiv 2101.03961, eq. 4) for one expert a token; OLMoE (arXiv 2409.02060) for several, and the
  mean over layers; DeepSeek-V3 (arXiv 2412.19437, eq. 17) for sigmoid scores.
  """
  return load.chosen.shape[-1] * jnp.mean(jnp.sum(load.chosen * load.share, axis=-1))


def balanced_bias(bias, load: Load, rate: float):
  """Biases [layers, E] moved towards an even load, without a gradient: b + rate · sign(mean load − load).

  Source: arXiv 2408.15664, algorithm 1, which DeepSeek-V3 trains by.
  """
  return bias + rate * jnp.sign(1 / load.chosen.shape[-1] - load.chosen).astype(bias.dtype)
