"""What slots did while rollouts were sampled: passes over all of them, and how many worked at a completion."""

import jax
import jax.numpy as jnp


@jax.jit
def _counts(passes):
  """(passes in all, those before the last prompt had a slot, and of either those of single slots that did work)."""
  first, end = passes[:, 0], passes[:, 1]
  last = jnp.max(first)
  return jnp.max(end), last, jnp.sum(end - first), jnp.sum(jnp.minimum(end, last) - jnp.minimum(first, last))


def slot_use(passes: jax.Array, slots: int) -> dict[str, float]:
  """Numbers of `Rollout.passes`, int32[B, 2], of rollouts that were sampled in so many slots.

  Returns:
    sampler_passes: passes over all slots.
    slot_occupancy: the share of the slots, over all passes, that worked at an unfinished completion.
    slot_occupancy_queued: the same until the last prompt had a slot; not-a-number where none waited for one.
  """
  number, queued, worked, worked_queued = map(int, _counts(passes))
  return {
    "sampler_passes": number, "slot_occupancy": worked / (slots * number),
    "slot_occupancy_queued": worked_queued / (slots * queued) if queued else float("nan"),
  }
