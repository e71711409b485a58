"""What a benchmark found, as a table."""

from typing import Any

_GB = 1e9
_ROWS = (  # label, field of a side, format, unit, field of the ratio
  ("  seconds", "seconds", ".3f", 1, "speedup"),
  ("  seconds of all threads", "cpu_seconds", ".3f", 1, "cpu_speedup"),
  ("  threads that wanted to run", "load", ".1f", 1, None),
  ("  seconds a denoising step", "seconds_per_denoising_step", ".4f", 1, None),
  ("  speed over plain sampling", "speedup_over_plain", ".2f", 1, None),
  ("  the same by all threads", "cpu_speedup_over_plain", ".2f", 1, None),
  ("  tokens as in plain sampling", "equal_tokens_to_plain", ".2%", 1, None),
  ("  completion tokens/s", "tokens_per_second", ",.1f", 1, None),
  ("  needed FLOP/s over the peak", "utilisation", ".1%", 1, None),
  ("  memory before, GB", "bytes_before", ".3f", _GB, None),
  ("  peak memory, GB", "bytes_peak", ".3f", _GB, "memory_ratio"),
)


def table(result: dict[str, Any]) -> str:
  """What `measure` returned, as lines for people."""
  device, versions = result["device"], ", ".join(f"{name} {version}" for name, version in result["versions"].items())
  lines = ["", f"{result['model']}: {result['parameters'] / 1e6:,.1f} M parameters, {result['dtype']} products on"
           f" {device['kind']} ({device['platform']}), {versions}",
           f"batch {result['batch']}, prompt {result['prompt_length']}, completion {result['completion_length']}"]
  for name in ("sampling", "training"):
    if name in result:
      lines += ["", *_compared(name, result[name])]
  if "peak_flops_per_second" in result:
    peaks = ", ".join(f"{value / 1e12:.3g} {side}" for side, value in result["peak_flops_per_second"].items())
    lines += ["", f"a large matrix product, TFLOP/s: {peaks}"]
  if "memory" in result:
    lines += ["", "temporary memory of one rollout's scores, GB", _row("vocabulary", "scores", "with gradient")]
    for vocabulary, found in result["memory"].items():
      lines.append(_row(f"{vocabulary:,}", *(f"{found[name] / _GB:.3f}" for name in ("scores", "scores_and_gradient"))))
  if "views" in result:
    found = result["views"]
    lines += ["", f"memory of an update by mask samples, GB; the peak is that of {found['source']}",
              _row("mask samples", "scores", "update", "peak")]
    for count, numbers in found["by_views"].items():
      lines.append(_row(str(count), *(f"{numbers[name] / _GB:.4f}" for name in ("scores", "update", "peak"))))
    lines.append(f"  the peak grows by {found['growth']:.1%}")
  return "\n".join(lines)


def _compared(name: str, found: dict[str, Any]) -> list[str]:
  sides = [side for side in ("ours", "reference", "fast_dllm", "exact_cache") if side in found]
  lines = [_row(name, *sides, *(["ratio"] if "speedup" in found else []))]
  for label, field, form, unit, ratio in _ROWS:
    cells = [f"{found[side][field] / unit:{form}}" if field in found[side] else "" for side in sides]
    if any(cells):
      lines.append(_row(label, *cells, *([f"{found[ratio]:.2f}"] if ratio in found else [])))
  lines += [f"  {side}: {found[side]['error']}" for side in sides if "error" in found[side]]
  if "equal_tokens" in found:
    lines.append(f"  equal tokens: {found['equal_tokens']:.2%}")
  if "relative_difference" in found:
    different = ", ".join(f"{name} {value:.1e}" for name, value in found["relative_difference"].items())
    lines.append(f"  relative difference: {different}")
  return lines


def _row(label: str, *cells: str) -> str:
  return label.ljust(30) + "".join(cell.rjust(16) for cell in cells)
