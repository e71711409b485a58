"""Throughput, memory and utilisation of sampling and training, and the same of a PyTorch version, as one report.

Every measurement has a process of its own, so that its memory is its own, and no two run at once.
"""

from collections.abc import Callable
import concurrent.futures
from concurrent.futures.process import BrokenProcessPool
import dataclasses
import functools
import importlib.metadata
import multiprocessing
from pathlib import Path
import shutil
import statistics
import tempfile
from typing import Any

import numpy as np

from gdsd_jax import signals
from gdsd_jax.benchmark import ours
from gdsd_jax.benchmark.flops import sampling_flops, training_flops
from gdsd_jax.benchmark.setting import Setting
from gdsd_jax.benchmark.views import compiled_for_one_device, VIEWS

_MEASURED = ("seconds", "cpu_seconds", "bytes_before", "bytes_peak", "load")
_CHECKED = ("loss", "grad_norm", "score")


def measure(setting: Setting, say: Callable[[str], None] = print) -> dict[str, Any]:
  """Everything that a setting asks for, as JSON values.

  They are the setting's fields; `parameters`; `device`; `versions`; `peak_flops_per_second` of a large matrix product
  by each side; `sampling` and `training`, see `_sides`; `memory`, see `scoring_memory`; `views`, see
  `_memory_by_views`. Raises ValueError or OSError, one line, where the device has too little memory or PyTorch cannot
  use it.
  """
  with tempfile.TemporaryDirectory(prefix="gdsd_benchmark_") as folder, signals.at_leaving(
      functools.partial(shutil.rmtree, folder, ignore_errors=True)):
    say(f"making a {setting.model} model and its inputs")
    device, parameters = _in_own_process(ours.prepare, Path(folder), setting)
    libraries = ("jax", "torch") if setting.reference else ("jax",)
    versions = {name: importlib.metadata.version(name) for name in libraries}
    result = {**vars(setting), "parameters": parameters, "device": device, "versions": versions}
    if set(setting.only) & {"sampling", "training"}:
      works = _works("peak_flops", setting, device["platform"], setting.dtype)
      result["peak_flops_per_second"] = {side: _in_own_process(*work) for side, work in works.items()}
    for name, measurement in (("sampling", _sampling), ("training", _training)):
      if name in setting.only:
        result[name] = measurement(setting, Path(folder), result, say)
  if "memory" in setting.only:
    say("compiling scores at several vocabularies")
    result["memory"] = _in_own_process(ours.scoring_memory, setting)
  if "views" in setting.only:
    result["views"] = _memory_by_views(setting, Path(folder), result["device"]["platform"], say)
  return result


def _in_own_process(function: Callable, *arguments):
  """The function's result, or what it raises; OSError if its process was ended."""
  spawn = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(1, spawn, initializer=signals.end_with_parent) as pool:
    try:
      with signals.unheard():
        asked = pool.submit(function, *arguments)
      return asked.result()
    except BrokenProcessPool:
      raise OSError(f"the process of {function.__name__} was ended, as the system does when memory runs out") from None


def _works(name: str, setting: Setting, platform: str, *arguments) -> dict[str, tuple]:
  """Side -> (its function `name`, arguments)."""
  works = {"ours": (getattr(ours, name), *arguments)}
  if setting.reference:
    from gdsd_jax.benchmark import reference  # PyTorch is there only where somebody compares with it

    works["reference"] = (getattr(reference, name), *arguments, platform)
  return works


def _sampling(setting: Setting, folder: Path, result, say) -> dict[str, Any]:
  steps, length = len(setting.masked_tokens), setting.prompt_length + setting.completion_length
  flops = sampling_flops(setting.architecture, setting.batch, length, setting.masked_tokens, setting.lora_rank)
  works = _works("sampling", setting, result["device"]["platform"], folder, setting)
  if setting.fast_sampler:
    works[setting.faster] = (ours.sampling, folder, setting, True)
  sides, runs = _sides("sampling", works, setting, flops, result["peak_flops_per_second"], say)
  for name, side in sides.items():
    if "seconds" in side and name != setting.faster:
      side["seconds_per_denoising_step"] = side["seconds"] / steps
  faster = sides.get(setting.faster, {})
  if "seconds" in faster and "seconds" in sides["ours"]:
    del faster["utilisation"]  # it does not do what the plain algorithm needs
    for ratio, field in (("speedup_over_plain", "seconds"), ("cpu_speedup_over_plain", "cpu_seconds")):
      faster[ratio] = sides["ours"][field] / faster[field]
    if setting.temperature == 0:
      faster["equal_tokens_to_plain"] = float(np.mean(runs["ours"][0]["tokens"] == runs[setting.faster][0]["tokens"]))
  compared = _compared(sides)
  if compared and setting.temperature == 0:
    tokens = [runs[side][0]["tokens"] for side in ("ours", "reference")]
    compared["equal_tokens"] = float(np.mean(tokens[0] == tokens[1]))
  return {"flops": flops, "denoising_steps": steps, **sides, **compared}


def _training(setting: Setting, folder: Path, result, say) -> dict[str, Any]:
  in_step = setting.scored_in_step(result["device"]["platform"])
  flops = training_flops(setting.architecture, setting.batch, setting.prompt_length, setting.completion_length,
                         setting.num_mc, not in_step, setting.loss.needs_reference, setting.lora_rank)
  works = _works("training", setting, result["device"]["platform"], folder, setting)
  sides, runs = _sides("training", works, setting, flops, result["peak_flops_per_second"], say)
  for name, side in sides.items():
    if "seconds" in side:
      side |= {check: runs[name][0][check] for check in _CHECKED}
  if compared := _compared(sides):
    differences = {check: abs(sides["ours"][check] / sides["reference"][check] - 1) for check in _CHECKED}
    compared["relative_difference"] = differences
  return {"flops": flops, **sides, **compared}


def _memory_by_views(setting: Setting, folder: Path, platform: str, say) -> dict[str, Any]:
  """Mask samples -> `compiled_memory` and `peak`, bytes, in `by_views`; the `source` of the peak, and its `growth`.

  The peak is the device's own, of two updates, where it tells one; of a CPU it is that of the compiled update. The
  growth is the largest over the smallest, less 1.
  """
  found, on_cpu = {}, platform == "cpu"
  for num_mc in VIEWS:
    say(f"memory of an update in {num_mc} views")
    chosen = dataclasses.replace(setting, num_mc=num_mc)
    numbers = _in_own_process(compiled_for_one_device, chosen)
    peak = numbers["update"] if on_cpu else _in_own_process(ours.training, folder, chosen)["bytes_peak"]
    found[num_mc] = {**numbers, "peak": peak}
  peaks = [numbers["peak"] for numbers in found.values()]
  source = "the compiled update" if on_cpu else "the device's allocator"
  return {"source": source, "growth": max(peaks) / min(peaks) - 1, "by_views": found}


def _sides(name: str, works: dict[str, tuple], setting: Setting, flops: float, peaks: dict[str, float], say):
  """({side: numbers}, {side: what each run returned}), the sides measured in turn.

  Numbers: those of `meter.measured` (medians), `all_seconds`, `tokens_per_second` of completions,
  `utilisation` (needed FLOP/s over the better of the measured peaks); or `error`, one line.
  """
  runs, errors = {side: [] for side in works}, {}
  for repeat in range(setting.repeats):
    for side, work in works.items():
      if side in errors:
        continue
      say(f"{name}, {side}, {repeat + 1} of {setting.repeats}")
      try:
        runs[side].append(_in_own_process(*work))
      except (RuntimeError, OSError) as error:
        if "memory" not in str(error).lower():
          raise
        errors[side] = " ".join(str(error).split())[:300]  # the other side's numbers are worth having
  sides = {}
  for side, found in runs.items():
    if side in errors:
      sides[side] = {"error": errors[side]}
      continue
    medians = {field: statistics.median(run[field] for run in found) for field in _MEASURED}
    sides[side] = {
      **medians,
      "all_seconds": [run["seconds"] for run in found],
      "tokens_per_second": setting.batch * setting.completion_length / medians["seconds"],
      "utilisation": flops / medians["seconds"] / max(peaks.values()),
    }
  return sides, runs


def _compared(sides: dict[str, dict[str, Any]]) -> dict[str, float]:
  """Reference over ours; {} where a side is missing."""
  one, other = sides["ours"], sides.get("reference", {})
  if "seconds" not in one or "seconds" not in other:
    return {}
  ratios = {"speedup": "seconds", "cpu_speedup": "cpu_seconds", "memory_ratio": "bytes_peak"}
  return {ratio: other[field] / one[field] for ratio, field in ratios.items()}
