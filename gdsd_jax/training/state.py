"""Everything that the future of a run depends on, and the optimizer that moves it."""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

from gdsd_jax import parallel
from gdsd_jax.models.denoiser import Denoiser


@struct.dataclass
class TrainState:
  """State of a run between iterations.

  Attributes:
    step: int32 scalar, iterations done.
    params: the student's parameters.
    opt_state: of the optimizer.
    reference: parameters of the reference denoiser; None when the objective has no KL.
    key: random key that the next iteration starts from.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  reference: Any
  key: jax.Array


def make_optimizer(config) -> optax.GradientTransformation:
  """AdamW after a global-norm clip, constant rate after a linear warm-up; updates that are not finite are left out.

  Args:
    config: the run's `optimizer` section.
  """
  rate = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
  if config.warmup_steps == 0:
    rate = config.learning_rate
  adamw = optax.chain(
    optax.clip_by_global_norm(config.clip),
    optax.adamw(rate, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay),
  )
  # The loop gives up after a number of such updates in a row; optax itself must never let one through.
  return optax.apply_if_finite(adamw, max_consecutive_errors=jnp.iinfo(jnp.int32).max)


def init_state(denoiser: Denoiser, params, optimizer, seed: int, with_reference: bool, mesh) -> TrainState:
  """State before the first iteration, laid over the mesh."""
  state = TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=jax.jit(optimizer.init)(params),
    # A copy: the student's buffers are donated to each step.
    reference=jax.tree.map(jnp.copy, params) if with_reference else None,
    key=jax.random.key(seed),
  )
  return jax.device_put(state, state_shardings(state, denoiser, optimizer, mesh))


def state_shardings(state: TrainState, denoiser: Denoiser, optimizer, mesh) -> TrainState:
  """Shardings of a state: optimizer moments and reference lie as the parameters do, the rest everywhere."""
  replicated = parallel.replicated(mesh)
  params = parallel.param_shardings(mesh, denoiser)
  moments = optax.tree_utils.tree_map_params(
    optimizer, lambda _, sharding: sharding, state.opt_state, params, transform_non_params=lambda _: replicated
  )
  reference = None if state.reference is None else params
  return TrainState(step=replicated, params=params, opt_state=moments, reference=reference, key=replicated)


def sync_reference(reference, params, mix: float):
  """The reference drawn to the student: mix · params + (1 − mix) · reference."""
  return jax.tree.map(lambda old, new: mix * new + (1 - mix) * old, reference, params)
