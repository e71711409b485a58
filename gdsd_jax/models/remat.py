"""What the backward pass computes again of a block, to keep less of it."""

from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name

REMAT = ("none", "products", "full", "offload")
_BLOCK_INPUT = "block_input"  # the name by which "offload" knows it


def named_input(x):
  """The input x of a block, as "offload" looks for it."""
  return checkpoint_name(x, _BLOCK_INPUT)


def rematerialised(apply_block: Callable, remat: str) -> Callable:
  """The body of a scan over blocks, of which that much is computed again, see `Denoiser.remat`."""
  if remat == "none":
    return apply_block
  policies, policy = jax.checkpoint_policies, None
  if remat == "products":
    policy = policies.dots_with_no_batch_dims_saveable
  elif remat == "offload":
    policy = policies.save_and_offload_only_these_names(
      names_which_can_be_saved=[], names_which_can_be_offloaded=[_BLOCK_INPUT], offload_src="device",
      offload_dst="pinned_host")
  # A scan already keeps XLA from undoing it.
  return jax.checkpoint(apply_block, prevent_cse=False, policy=policy)
