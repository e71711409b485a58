"""The PyTorch side of the suite: as suite_ours.py, on random weights of its own in the same dtype."""

from typing import Any

import torch

from gdsd_jax.benchmark import ours, reference, torch_llada, torch_loops
from gdsd_jax.benchmark.meter import timed
from gdsd_jax.benchmark.setting import Setting
from gdsd_jax.benchmark.suite_rows import in_steps, per_step
from gdsd_jax.runs.optimizer import OptimizerConfig


class Torch:
  """Measurements of one model; bytes are the most that PyTorch had allocated on a GPU."""

  def __init__(self, setting: Setting):
    self.platform = "gpu" if torch.cuda.is_available() else "cpu"
    self.name = reference.torch_device(self.platform)
    self.model, self.adapted = torch_llada.random(setting.architecture, setting.dtype, self.name), False

  @property
  def device(self) -> dict[str, Any]:
    kind = torch.cuda.get_device_name() if self.platform == "gpu" else "cpu"
    return {"kind": kind, "platform": self.platform, "torch": torch.__version__}

  def product(self, setting: Setting) -> dict[str, Any]:
    return {"flops_per_second": reference.peak_flops(setting.dtype, self.platform)}

  def sampling(self, setting: Setting, steps: int | None = None) -> dict[str, Any]:
    model, inputs = self._model(setting), self._inputs(setting)
    prompt, config = inputs["tokens"][:, :setting.prompt_length], in_steps(setting, steps)
    with torch.no_grad():
      self._timed(lambda: model(inputs["tokens"][:1]))  # warm-up
    seconds, nbytes = self._timed(lambda: torch_loops.sample(model, prompt, config))
    return {"seconds": seconds, "steps": config.steps, **nbytes, **per_step(setting, seconds, config.steps)}

  def update(self, setting: Setting) -> dict[str, Any]:
    """One update, in microbatches of one rollout, after one of a single rollout."""
    model, inputs = self._model(setting), self._inputs(setting)
    values = [inputs[name] for name in ("tokens", "masks", "advantages")]
    make = lambda count: torch_loops.Updater(model, setting.loss, OptimizerConfig(), accumulation=count)
    self._timed(lambda: make(1)(*(value[:1] for value in values)))  # warm-up
    updater = make(setting.batch)
    seconds, nbytes = self._timed(lambda: updater(*values))
    return {"seconds": seconds, **nbytes}

  def _model(self, setting: Setting):
    """The network; with its adapter from the first row on that has one, and the rows after it have, too."""
    if setting.lora and not self.adapted:
      torch_llada.adapt_all(self.model, setting.lora.rank, setting.lora.scale)
      self.adapted = True
    if self.adapted and not setting.lora:
      raise ValueError("rows without an adapter come before those with one")
    return self.model

  def _inputs(self, setting: Setting):
    inputs = {name: torch.tensor(array, device=self.name) for name, array in ours.random_inputs(setting).items()}
    return {**inputs, "tokens": inputs["tokens"].long()}

  def _timed(self, work) -> tuple[float, dict[str, int]]:
    """(seconds, {"bytes"}) of work; no bytes on a CPU."""
    if self.platform == "gpu":
      torch.cuda.reset_peak_memory_stats()
    _, seconds = timed(lambda: reference.done(work, self.name))
    return seconds, {"bytes": torch.cuda.max_memory_allocated()} if self.platform == "gpu" else {}
