"""How XLA compiles for NVIDIA GPUs, and how much of their memory it takes, where the user says nothing else."""

import os
from pathlib import Path

# Products by cuBLAS alone: they read a layer's weights where these lie, while Triton's are given a copy of them, made
# anew for each layer of each pass; and there is nothing to try out while a program is compiled. Nor are the weights of
# two products merged, which is a copy, too. What that gains is in docs/performance.md.
GPU_FLAGS = "--xla_gpu_enable_triton_gemm=false --xla_gpu_dot_merger_threshold_mb=0"
_DRIVER = Path("/dev/nvidiactl")
_SHARES = ("XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION")  # JAX takes one of them, not both


def use_compiler_flags() -> None:
  """Puts these flags before those that XLA_FLAGS has already, which win. Before JAX asks for its devices."""
  if _DRIVER.exists():
    os.environ["XLA_FLAGS"] = f"{GPU_FLAGS} {os.environ.get('XLA_FLAGS', '')}"


def take_most_memory() -> None:
  """Has JAX take nearly all of a GPU's memory, not three quarters of it, unless the user says how much."""
  if not any(map(os.environ.get, _SHARES)):
    os.environ[_SHARES[0]] = "0.95"


def memory_left() -> str:
  """What to do about the quarter of a GPU's memory that JAX leaves alone, as the end of a line; "" where it has all."""
  said = any(map(os.environ.get, _SHARES)) or not _DRIVER.exists()
  return "" if said else f"; JAX takes three quarters of a GPU unless {_SHARES[0]}=0.95, say, gives it more"
