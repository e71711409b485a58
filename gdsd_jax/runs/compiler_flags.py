"""How XLA compiles for NVIDIA GPUs, where the user says nothing else."""

import os
from pathlib import Path

# Products by cuBLAS alone: they read a layer's weights where these lie, while Triton's are given a copy of them, made
# anew for each layer of each pass; and there is nothing to try out while a program is compiled. Nor are the weights of
# two products merged, which is a copy, too. What that gains is in docs/performance.md.
GPU_FLAGS = "--xla_gpu_enable_triton_gemm=false --xla_gpu_dot_merger_threshold_mb=0"
_DRIVER = Path("/dev/nvidiactl")


def use_compiler_flags() -> None:
  """Puts these flags before those that XLA_FLAGS has already, which win. Before JAX asks for its devices."""
  if _DRIVER.exists():
    os.environ["XLA_FLAGS"] = f"{GPU_FLAGS} {os.environ.get('XLA_FLAGS', '')}"
