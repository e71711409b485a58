"""The memory that an update's programs need, by the number of views in which each rollout is scored."""


import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gdsd_jax.benchmark.setting import Setting
from gdsd_jax.diffusion.forward import rollout_masks
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.objectives.abstract import abstract_rollouts, abstract_scored
from gdsd_jax.objectives.views import Drawing
from gdsd_jax.parallel.mesh import batch_sharding, make_mesh
from gdsd_jax.runs.gradient import DistillationBatch, ScoringBatch
from gdsd_jax.runs.optimizer import make_optimizer, OptimizerConfig
from gdsd_jax.runs.state import init_state, state_shardings
from gdsd_jax.runs.step import distillation_step, score_rollouts

VIEWS = (2, 4, 8, 16)  # numbers of mask samples that are compared


def compiled_memory(setting: Setting, denoiser: Denoiser, mesh: Mesh) -> dict[str, int]:
  """Bytes of a device that the programs of an update need, "scores" and "update"; XLA's numbers, nothing is run.

  They are arguments, temporaries and outputs, where an output that lies in a donated argument counts once.
  """
  objective, optimizer = setting.loss, make_optimizer(OptimizerConfig(), updates=1)
  make = lambda params: init_state(denoiser, params, optimizer, 0, objective.needs_reference, mesh)
  state = jax.eval_shape(make, denoiser.abstract_params())
  lay_out = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
  state = jax.tree.map(lay_out, state, state_shardings(state, denoiser, optimizer, mesh))
  split = lambda tree: jax.tree.map(lambda leaf: lay_out(leaf, batch_sharding(mesh)), tree)

  count, length = setting.batch, setting.completion_length
  masks = lambda key, rollouts: rollout_masks(
    key, rollouts.confidence, setting.num_mc, **setting.sampler.forward_process)
  drawing = Drawing(setting.num_mc, 1, setting.prompt_length, setting.block_length, setting.sampler.most_steps, masks)
  rollouts = abstract_rollouts(objective, count, length, count, steps=drawing.num_steps)
  scored = split(abstract_scored(objective, rollouts, drawing))
  whole = lambda dtype: jax.ShapeDtypeStruct((count, setting.prompt_length + length), dtype)
  batch = ScoringBatch(split(whole(jnp.int32)), split(whole(bool)), scored.views.inputs, scored.kept)
  static = dict(denoiser=denoiser, objective=objective, accumulation=setting.accumulation)
  programs = {
    "scores": score_rollouts.lower(state.student_params, batch, **static),
    "update": distillation_step.lower(state, DistillationBatch(batch, scored), optimizer=optimizer, **static),
  }
  return {name: compiled_bytes(lowered.compile()) for name, lowered in programs.items()}


def compiled_bytes(compiled) -> int:
  """Bytes of a device that a compiled program needs, by XLA's account: see `compiled_memory`."""
  memory = compiled.memory_analysis()
  held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
  return held + memory.temp_size_in_bytes


def compiled_for_one_device(setting: Setting) -> dict[str, int]:
  """`compiled_memory` on the first device."""
  mesh = make_mesh(1, 1, 1, jax.local_devices()[:1])
  denoiser = Denoiser(setting.architecture, setting.dtype, setting.held_dtype, setting.remat, setting.lora, mesh)
  return compiled_memory(setting, denoiser, mesh)
