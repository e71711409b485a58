"""Our side of the suite: its measurements in a process of their own, on weights that are made once, on the device."""

import dataclasses
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from gdsd_jax.benchmark import ours
from gdsd_jax.benchmark.flops import attention_flops, masked_tokens, projection_flops, sampling_flops, training_flops
from gdsd_jax.benchmark.meter import timed
from gdsd_jax.benchmark.setting import Setting
from gdsd_jax.benchmark.suite_rows import in_steps, per_step
from gdsd_jax.benchmark.update import laid_out, Update
from gdsd_jax.benchmark.views import compiled_bytes, compiled_memory
from gdsd_jax.diffusion.blockwise import sample
from gdsd_jax.models import attention
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.parallel.mesh import make_mesh, param_shardings
from gdsd_jax.runs.compilation_cache import use_compilation_cache

_AGAIN = 10.0  # seconds: what takes less is measured a second time, warm
_VIEWS = (2, 16)  # numbers of mask samples whose memory is compared
_KERNEL = "__cudnn$fmha"  # what cuDNN's attention is called in a compiled program


class Ours:
  """Measurements of one model with random weights, held as a run holds a frozen base.

  Each method takes a row's setting and options, and returns its numbers as JSON values. Bytes are those that XLA
  assigned to a program: arguments, temporaries and results.
  """

  def __init__(self, setting: Setting):
    use_compilation_cache()
    self.mesh = make_mesh(1, 1, 1, jax.local_devices()[:1])
    self.base = Denoiser(setting.architecture, setting.dtype, setting.dtype, setting.remat, mesh=self.mesh,
                         quantize=setting.quantized)
    make = jax.jit(self.base.init, out_shardings=param_shardings(self.mesh, self.base))
    self.params = jax.block_until_ready(make(jax.random.key(0)))

  @property
  def device(self) -> dict[str, Any]:
    device = jax.local_devices()[0]
    return {"kind": device.device_kind, "platform": device.platform, "jax": jax.__version__}

  def product(self, setting: Setting) -> dict[str, Any]:
    """FLOP/s of a large matrix product, which the other rows are compared with."""
    return {"flops_per_second": ours.peak_flops(setting.dtype)}

  def sampling(self, setting: Setting, steps: int | None = None) -> dict[str, Any]:
    """One batch of completions by the setting's sampler, in `steps` denoising steps where that is given."""
    config = in_steps(setting, steps)
    denoiser, params = self._denoiser(setting)
    tokens = ours.random_inputs(setting)["tokens"][:, :setting.prompt_length]
    arguments = params, jnp.asarray(tokens), jnp.ones(tokens.shape, bool), jax.random.key(0)
    compiled, compile_seconds = timed(lambda: sample.lower(denoiser, *arguments, config).compile())
    # Not by `compiled` itself, which takes 4-bit numbers in a layout that only the jitted function puts them into.
    run = lambda: jax.block_until_ready(sample(denoiser, *arguments, config))
    run()
    rollout, seconds = timed(run)
    done = len(np.unique(rollout.steps))  # each commits a token somewhere
    numbers = {"seconds": seconds, "steps": done, "compile_seconds": compile_seconds,
               "bytes": compiled_bytes(compiled), "cudnn": _KERNEL in compiled.as_text()}
    if config.is_fast:
      return {**numbers, "tokens_per_second": setting.batch * setting.completion_length / seconds}
    length = setting.prompt_length + setting.completion_length
    flops = sampling_flops(setting.architecture, setting.batch, length, masked_tokens(config), setting.lora_rank)
    return {**numbers, **per_step(setting, seconds, done), "flops": flops}

  def update(self, setting: Setting) -> dict[str, Any]:
    """The second of two updates, and its parts: scores of the old or the reference denoiser, and the step."""
    denoiser, params = self._denoiser(setting)
    rollouts, advantages = laid_out(setting, ours.random_inputs(setting), self.mesh)
    update = Update(setting, denoiser, params, self.mesh, rollouts, advantages)
    first, compile_seconds = timed(update)
    score = lambda params: timed(lambda: jax.block_until_ready(update.score(params)))
    old, old_seconds = score(update.state.student_params)
    reference, reference_seconds = score(update.state.reference_params)
    _, step_seconds = timed(lambda: update.step(old, reference))
    self.params = update.state.frozen  # which a step takes over, and hands on as they are
    flops = training_flops(setting.architecture, setting.batch, setting.prompt_length, setting.completion_length,
                           setting.num_mc, True, True, setting.lora_rank)
    return {"seconds": old_seconds + reference_seconds + step_seconds, "score_seconds": old_seconds,
            "step_seconds": step_seconds, "compile_seconds": compile_seconds, "flops": flops,
            "bytes": max(compiled_memory(setting, denoiser, self.mesh).values()),
            "loss": float(first["loss"]), "grad_norm": float(first["grad_norm"])}

  def attention(self, setting: Setting) -> dict[str, Any]:
    """A forward pass of all blocks with the attention that is chosen here, and with the plain one."""
    tokens = jnp.asarray(ours.random_inputs(setting)["tokens"])
    chosen = self._forward(tokens)
    with mock.patch.object(attention, "_kernel", lambda *_: attention.plain_attention):
      plain = self._forward(tokens)
    flops = projection_flops(setting.architecture, tokens.size) + attention_flops(setting.architecture, *tokens.shape)
    return {**chosen, "flops": flops, **{f"plain_{name}": value for name, value in plain.items()}}

  def views(self, setting: Setting) -> dict[str, Any]:
    """Bytes of an update's programs by the number of mask samples."""
    denoiser, _ = self._denoiser(setting)
    return {"bytes": {str(num_mc): compiled_memory(dataclasses.replace(setting, num_mc=num_mc), denoiser, self.mesh)
                      for num_mc in _VIEWS}}

  def _denoiser(self, setting: Setting):
    """(denoiser, params), with a new adapter where the setting has one: an update uses its arrays up."""
    return ours.adapted(self.base, self.params, setting.lora) if setting.lora else (self.base, self.params)

  def _forward(self, tokens) -> dict[str, Any]:
    # A function of its own each time: what JAX has traced, it does not trace again.
    program = jax.jit(lambda params, tokens, mask: self.base.hidden(params, tokens, mask))
    arguments = self.params, tokens, jnp.ones(tokens.shape, bool)
    compiled, compile_seconds = timed(lambda: program.lower(*arguments).compile())
    _, seconds = _warm(lambda: jax.block_until_ready(compiled(*arguments)))
    return {"seconds": seconds, "compile_seconds": compile_seconds, "bytes": compiled_bytes(compiled),
            "cudnn": _KERNEL in compiled.as_text()}


def _warm(work):
  """(result, seconds) of work, of its second run where the first took little."""
  result, seconds = timed(work)
  return timed(work) if seconds < _AGAIN else (result, seconds)
