"""The suite's report as a table in Markdown, between two marks of a page."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gdsd_jax.benchmark.suite_rows import Row, rows_of, SUITES
from gdsd_jax.checks import require
from gdsd_jax.runs.files import write_whole

BEGIN, END = "<!-- made by launch/benchmark.py --suite: begin -->", "<!-- made by launch/benchmark.py --suite: end -->"
_HEADS = ("", "ours", "PyTorch", "ratio", "of the peak", "GB", "PyTorch, GB", "compiled in", "notes")


def check_page(page: Path) -> None:
  """Raises ValueError, one line, unless the page is there and has the two marks."""
  lines = page.read_text().splitlines() if page.is_file() else []
  require({BEGIN, END} <= set(lines), "--page", f"{page} lacks the two lines between which the table belongs: {BEGIN}"
          f" and {END}")


def write(text: str, page: Path) -> None:
  """Puts the table in the place of what was between the marks of a page."""
  before, _, rest = page.read_text().partition(BEGIN)
  write_whole(page, f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")


def table(report: Mapping[str, Any]) -> str:
  """The report's rows, those of both sides beside each other, and what an RL step adds up to."""
  rows, found = {row.key: row for row in rows_of(report["suite"])}, report["rows"]
  lines = [f"Measured on {_devices(report['devices'])}.", "", _line(_HEADS), _line(["---"] * len(_HEADS))]
  for name in dict.fromkeys(row.name for row in rows.values()):
    ours, torch = (found.get(f"{name}.{side}", {}) for side in ("ours", "torch"))
    if ours or torch:
      lines.append(_line(_cells(rows[f"{name}.ours"], ours, torch, found, report["suite"])))
  return "\n".join([*lines, *_rl_step(report["suite"], found)])


def _devices(devices: Mapping[str, Mapping[str, str]]) -> str:
  kinds = ", ".join(dict.fromkeys(device["kind"] for device in devices.values()))
  versions = [f"{name} {device[name]}" for device in devices.values() for name in ("jax", "torch") if name in device]
  return f"{kinds} ({', '.join(versions)})"


def _line(cells) -> str:
  return f"| {' | '.join(cells)} |"


def _cells(row: Row, ours, torch, found, suite: str) -> list[str]:
  tell, unit = _TOLD[row.measure]
  value = lambda numbers: tell(numbers) if numbers and "error" not in numbers else None
  mine, theirs = value(ours), value(torch)
  both = mine is not None and theirs is not None
  ratio = "" if not both else f"{theirs / mine if row.measure == 'update' else mine / theirs:.2f}"
  peak = found.get("product.ours", {}).get("flops_per_second")
  share = ours["flops"] / ours["seconds"] / peak if peak and "flops" in ours else None
  shown = lambda value: "" if value is None else f"{value:,.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"
  memory = lambda numbers: f"{numbers['bytes'] / 1e9:.1f}" if isinstance(numbers.get("bytes"), int) else ""
  compiled = f"{ours['compile_seconds']:.0f} s" if "compile_seconds" in ours else ""
  notes = [note for numbers, side in ((ours, ""), (torch, "PyTorch: ")) for note in _notes(row, numbers, side)]
  return [_label(row), shown(mine), shown(theirs), ratio, "" if share is None else f"{share:.0%}", memory(ours),
          memory(torch), compiled, "; ".join(notes)]


def _tokens_per_second(numbers) -> float:
  return numbers["tokens_per_second"]


_TOLD: dict[str, tuple[Callable, str]] = {  # measurement -> what is told of it, in which unit
  "product": (lambda numbers: numbers["flops_per_second"] / 1e12, "TFLOP/s"),
  "sampling": (_tokens_per_second, "tokens/s"),
  "update": (lambda numbers: numbers["seconds"], "s"),
  "attention": (lambda numbers: numbers["seconds"], "s"),
  "views": (lambda numbers: max(program["update"] for program in numbers["bytes"].values()) / 1e9, "GB"),
}


def _label(row: Row) -> str:
  setting = row.setting
  shape = f"batch {setting.batch}, {setting.prompt_length} + {setting.completion_length} tokens"
  adapter = f", LoRA r {setting.lora_rank}" if setting.lora_rank else ""
  model = {"8b": "LLaDA-8B", "8b_dream": "Dream-7B", "8b_sdar": "SDAR-8B"}.get(setting.model, setting.model)
  model += f" in {setting.quantize}" if setting.quantize else ""
  fast = [f"{setting.cache} cache"] * (setting.cache != "none")
  fast += [f"threshold {setting.threshold}"] * (setting.threshold is not None)
  ways = {"sampling": f"{model} samples, {' and '.join(fast) or 'every step whole'}", "update": f"{model}, an update, M"
          f" {setting.num_mc}", "attention": f"{model}, a forward pass", "views": f"{model}, memory of an update"}
  if row.measure == "product":
    return f"a large product, {setting.dtype}"
  return f"{ways[row.measure]}: {shape}{adapter}{', XLA without our flags' * bool(row.flags)}"


def _notes(row: Row, numbers, side: str) -> list[str]:
  if "error" in numbers:
    return [f"{side}{numbers['error']}".replace("|", "/")]
  notes = []
  if row.measure == "sampling" and numbers:
    milliseconds = f"{1e3 * numbers['seconds'] / numbers['steps']:.1f} ms a step"
    of_all = f", {numbers['steps']} of {row.setting.steps} measured" * (numbers["steps"] < row.setting.steps)
    notes.append(f"{side}{milliseconds}{of_all}")
  if "step_seconds" in numbers:
    notes.append(f"scores {numbers['score_seconds']:.2f} s, step {numbers['step_seconds']:.2f} s")
  if "plain_seconds" in numbers:
    notes.append(f"plain attention {numbers['plain_seconds']:.3g} s, {numbers['plain_bytes'] / 1e9:.1f} GB")
  if row.measure == "views" and numbers:
    notes += [f"M {num_mc}: {of['update'] / 1e9:.2f} GB" for num_mc, of in numbers["bytes"].items()]
  if not numbers.get("cudnn", True):
    notes.append("without cuDNN's attention")
  return notes


def _rl_step(suite: str, found) -> list[str]:
  """What the rollouts and updates of one RL step take, where both were measured."""
  sizes, said = SUITES[suite], []
  for side, name in (("ours", "ours"), ("torch", "PyTorch")):
    rollouts, update = (found.get(f"{row}.{side}", {}) for row in ("rollouts", "update"))
    if "seconds" in rollouts and "seconds" in update:
      sampled = rollouts["seconds_per_step"] * sizes.lengths[0]
      # Ours scores the student before each update but the first, when it is the old one.
      updates = sizes.updates * update["seconds"] + (sizes.updates - 1) * update.get("score_seconds", 0)
      said.append(f"{name} {sampled + updates:.3g} s ({sampled:.3g} s of rollouts, {updates:.3g} s of updates)")
  if not said:
    return []
  return ["", f"**One RL step** of {sizes.rollouts} rollouts and {sizes.updates} updates, added up from the rows above:"
          f" {'; '.join(said)}."]
