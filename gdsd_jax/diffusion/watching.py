"""Completions shown while they are computed: the compiled sampler asks the host before each of its steps."""

from collections.abc import Callable

import jax
from jax.experimental import io_callback
import jax.numpy as jnp
import numpy as np

from gdsd_jax.diffusion.config import Rollout, SamplerConfig
from gdsd_jax.parallel.mesh import constrain

# Called with a step's number, from 0, and the completions before it: int32[B, L] tokens, masks among them, and
# float32[B, L] confidence, 0 at masks. It returns whether to go on: if not, what is masked stays so. The device waits
# for it. It runs in a thread of the runtime's and must not use JAX.
Watcher = Callable[[np.ndarray, np.ndarray, np.ndarray], bool]


def unwatchable(config: SamplerConfig) -> str | None:
  """Why a sampler cannot be watched here; None where it can."""
  if config.is_own:
    return f"{config.kind} is a sampler of your own, whose steps are not known here"
  if config.slots is not None:
    return "sampler.slots has each completion at a step of its own; set it to None"
  if jax.process_count() > 1:
    return "the devices are those of several processes"
  try:
    jax.local_devices(backend="cpu")
  except RuntimeError:  # what JAX shows the host goes through it
    return f"JAX_PLATFORMS={jax.config.jax_platforms} leaves out cpu"
  return None


def if_wanted(watcher: Watcher, mesh, step, rollout: Rollout, act: Callable[[Rollout], Rollout],
              completions: Callable[[Rollout], Rollout] = lambda rollout: rollout):
  """(whether the watcher wants the step, bool[], and act(rollout) if so, otherwise the rollout as it is).

  `completions` gives what is shown of a rollout that holds more. What is computed next depends on the watcher's answer,
  and so calls come in the order of the steps.
  """
  look = lambda step, tokens, confidence: np.bool_(watcher(*map(np.array, (step, tokens, confidence))))
  shown = completions(rollout)
  seen = [constrain(x, mesh, None, None) for x in (shown.tokens, shown.confidence)]  # one device has all of it
  wanted = io_callback(look, jax.ShapeDtypeStruct((), jnp.bool_), step, *seen)
  return wanted, jax.lax.cond(wanted, act, lambda rollout: rollout, rollout)


def step_or_end(watcher: Watcher | None, mesh, number, loop, step: Callable, last: int,
                completions: Callable[[Rollout], Rollout] = lambda rollout: rollout):
  """What a loop over (index, rollout) is after step(index, rollout), whose number in all the sampler is `number`.

  Without a watcher each step is made. One that does not want it leaves the rollout as it is, and the index at `last`.
  """
  index, rollout = loop
  if watcher is None:
    return index + 1, step(index, rollout)
  wanted, rollout = if_wanted(watcher, mesh, number, rollout, lambda rollout: step(index, rollout), completions)
  return jnp.where(wanted, index + 1, last), rollout
