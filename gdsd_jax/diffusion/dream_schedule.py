"""How many tokens each of Dream's denoising steps commits (arXiv 2508.15487 and its published `diffusion_generate`)."""

import functools

import numpy as np


@functools.cache
def commits(length: int, steps: int, eps: float) -> tuple[int, ...]:
  """int(n · share) of the n tokens that are still masked, for each step; those that would commit none are left out."""
  found, remaining = [], length
  for share in unmask_shares(steps, eps):
    found.append(int(np.float32(remaining) * share))
    remaining -= found[-1]
  return tuple(count for count in found if count)


def unmask_shares(steps: int, eps: float) -> np.ndarray:
  """Share of the masked tokens that each of Dream's steps commits: 1 − s/t, and 1 for the last. float32[steps]."""
  # Times are float32 from both ends, as torch.linspace counts them in the published sampler: int(n · share) must fall
  # on the same side of a whole number.
  span = np.float32((np.float32(eps) - np.float32(1)) / np.float32(steps))
  index = np.arange(steps + 1, dtype=np.float32)
  times = np.where(index < (steps + 1) // 2, 1 + span * index, np.float32(eps) - span * (steps - index))
  times = times.astype(np.float32)
  shares = 1 - times[1:] / times[:-1]
  shares[-1] = 1
  return shares
