"""The PyTorch version's sampling and training as a benchmark runs them, each function in a process of its own."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from gdsd_jax.benchmark import torch_llada, torch_loops
from gdsd_jax.benchmark.meter import measured, Memory, process_memory, product_flops, PRODUCT_SIZE
from gdsd_jax.benchmark.setting import REFERENCE_NORM, Setting
from gdsd_jax.checks import require
from gdsd_jax.runs.optimizer import OptimizerConfig


def torch_device(platform: str) -> str:
  """PyTorch's name of the device that JAX calls `platform`. Raises ValueError if it cannot use it."""
  usable = {"cpu": "cpu", "gpu": "cuda"} if torch.cuda.is_available() else {"cpu": "cpu"}
  require(platform in usable, "--reference", f"PyTorch {torch.__version__} cannot use the {platform} that JAX uses")
  return usable[platform]


def peak_flops(dtype: str, platform: str) -> float:
  """FLOP/s of a large matrix product."""
  device, size = torch_device(platform), PRODUCT_SIZE[platform]
  x = torch.full((size, size), 0.5, dtype=getattr(torch, dtype), device=device)
  return product_flops(size, lambda: done(lambda: x @ x, device))


def sampling(folder: Path, setting: Setting, platform: str) -> dict[str, Any]:
  """One batch of completions: seconds, memory, tokens int[B, L]."""
  model, inputs, device = _load(folder, setting, platform)
  prompt = inputs["tokens"][:, :setting.prompt_length]
  with torch.no_grad():
    model(inputs["tokens"])  # warm-up
  tokens, cost = _measured(lambda: torch_loops.sample(model, prompt, setting.sampler), device)
  return {**cost, "tokens": tokens.cpu().numpy()}


def training(folder: Path, setting: Setting, platform: str) -> dict[str, Any]:
  """The second of two updates: seconds, memory; and of the first its loss, gradient norm and mean old score."""
  model, inputs, device = _load(folder, setting, platform)
  updater = torch_loops.Updater(model, setting.loss, OptimizerConfig(), setting.accumulation, REFERENCE_NORM)
  update = lambda: updater(inputs["tokens"], inputs["masks"], inputs["advantages"])
  first = update()
  _, cost = _measured(update, device)
  return {**cost, **first}


def _load(folder: Path, setting: Setting, platform: str):
  """(model, inputs, device)"""
  device = torch_device(platform)
  adapter = folder / "adapter" if setting.lora else None
  scale = setting.lora.scale if setting.lora else 0.0
  model = torch_llada.load(setting.architecture, folder / "model", setting.dtype, adapter, scale, device)
  with np.load(folder / "inputs.npz") as arrays:
    inputs = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
  inputs["tokens"] = inputs["tokens"].long()
  return model, inputs, device


def _measured(work, device: str):
  """`measured`; on an NVIDIA GPU its memory is what PyTorch allocates there."""
  on_gpu = Memory(torch.cuda.reset_peak_memory_stats, torch.cuda.memory_allocated, torch.cuda.max_memory_allocated)
  return measured(lambda: done(work, device), process_memory() if device == "cpu" else on_gpu)


def done(work, device: str):
  """What work returns, once the device has done it."""
  result = work()
  if device == "cuda":
    torch.cuda.synchronize()
  return result
