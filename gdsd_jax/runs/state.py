"""Everything that the future of a run depends on."""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

from gdsd_jax.compiling import compiling
from gdsd_jax.diffusion.config import Rollout
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.parallel.mesh import param_shardings, replicated


@struct.dataclass
class TrainState:
  """State of a run between iterations."""

  step: jax.Array  # int32 scalar, iterations done
  params: Any  # what is trained: the student's parameters, or of a LoRA run its adapter, {"lora": …}
  frozen: Any  # the rest of them, {} when all are trained; it never changes, so that checkpoints leave it out
  opt_state: Any  # the optimizer's
  # What the reference denoiser has in place of `params`: a copy of them, or {} of a LoRA run, whose reference is the
  # base model; None when the objective has no KL.
  reference: Any
  key: jax.Array  # random key that the next iteration starts from
  # In a checkpoint of a run with async_rollouts, the rollouts that the next iteration trains on; None elsewhere.
  ahead: Rollout | None = None

  @property
  def student_params(self):
    """All parameters of the student."""
    return {**self.frozen, **self.params}

  @property
  def reference_params(self):
    """All parameters of the reference denoiser, structured as the student's: one compilation scores both."""
    if not self.frozen:
      return self.reference
    adapter_off = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), self.params)
    return {**self.frozen, **adapter_off}


def init_state(denoiser: Denoiser, params, optimizer, seed: int, with_reference: bool, mesh) -> TrainState:
  """State before the first iteration, laid over the mesh as the parameters are; nothing is ever whole on one device.

  An adapter among the parameters leaves the rest frozen. A reference is there if the objective has a KL to one.
  """
  trained, frozen = (params, {}) if denoiser.lora is None else split_adapter(params)

  def make(trained):
    reference = {} if denoiser.lora else jax.tree.map(jnp.copy, trained)  # a copy: student buffers are donated
    return TrainState(step=jnp.zeros((), jnp.int32), params=trained, frozen={}, opt_state=optimizer.init(trained),
                      reference=reference if with_reference else None, key=jax.random.key(seed))

  shardings = state_shardings(jax.eval_shape(make, trained), denoiser, optimizer, mesh)
  with compiling("the state of the optimizer", least=1.0):
    state = jax.jit(make, out_shardings=shardings.replace(frozen={}))(trained)
  return state.replace(frozen=frozen)


def split_adapter(params) -> tuple[dict[str, Any], dict[str, Any]]:
  """(adapter, base): the entry "lora" of the parameters, and all the others."""
  return {"lora": params["lora"]}, {name: leaf for name, leaf in params.items() if name != "lora"}


def state_shardings(state: TrainState, denoiser: Denoiser, optimizer, mesh) -> TrainState:
  """Shardings of a state: optimizer moments and reference lie as the parameters do, the rest everywhere."""
  everywhere = replicated(mesh)
  params, frozen = param_shardings(mesh, denoiser), {}
  if denoiser.lora is not None:
    params, frozen = split_adapter(params)
  moments = optax.tree_utils.tree_map_params(
    optimizer, lambda _, sharding: sharding, state.opt_state, params, transform_non_params=lambda _: everywhere
  )
  reference = params if state.reference else state.reference  # a LoRA run's is empty
  return TrainState(step=everywhere, params=params, frozen=frozen, opt_state=moments, reference=reference,
                    key=everywhere)


def sync_reference(reference, params, mix: float):
  """The reference drawn to the student: mix · params + (1 − mix) · reference."""
  return jax.tree.map(lambda old, new: mix * new + (1 - mix) * old, reference, params)
