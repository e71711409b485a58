"""The README.md of an export: what it was made from and how, whose licence holds, and how to load it."""

from collections.abc import Mapping
import importlib.metadata
from pathlib import Path
from typing import Any

from gdsd_jax.huggingface import eurobert
from gdsd_jax.huggingface.families import FAMILIES
from gdsd_jax.huggingface.stated import flags
from gdsd_jax.models.denoiser import Denoiser

NAME = "README.md"
_FAMILIES = {"llada": "LLaDA", "dream": "Dream", "sdar": "SDAR", "sdar_moe": "SDAR", "llada2_moe": "LLaDA 2",
             "illada": "iLLaDA", "lladamoe": "LLaDA-MoE"}
_AUTO = "AutoModelForMaskedLM"
_MARK = "<!-- written by gdsd_jax -->"
# Fields of a run's recipe that a reader asks for first.
_TOLD = ("kind", "task.name", "objective.name", "steps", "group_size", "prompts_per_step", "optimizer.learning_rate",
         "model.lora.rank", "seed", "step")


def is_ours(folder: Path) -> bool:
  """Whether a card may be written: there is none, or one from here. Others are somebody's work."""
  file = folder / NAME
  return not file.is_file() or _MARK in file.read_text("utf-8", errors="replace")


def model_card(folder: Path, denoiser: Denoiser, base: str, base_is_hub: bool, made: Mapping[str, Any] | None,
               opened: str | None = None, stated: Mapping[str, int] | None = None) -> str:
  """The text of a model's card, or of an adapter's where `denoiser.lora` is there.

  Args:
    folder: where the export is.
    denoiser: what was exported, its config's layout being that of the files.
    base: name or path of the model that it was made from; empty where it began from nothing.
    base_is_hub: whether that is a name of the hub's.
    made: fields of the run's recipe, nested, and the `step` of its checkpoint; None where it is not known.
    opened: where the base model is that an adapter fits; `base` unless it is another folder.
    stated: what was said of the base model beside its config.json, as in `load_config`: an adapter's files do not.
  """
  adapter = denoiser.lora is not None
  head = ["library_name: " + ("peft" if adapter else "transformers"), "tags: [masked-diffusion, gdsd_jax]"]
  if base_is_hub:
    head += [f"base_model: {base}", f"base_model_relation: {'adapter' if adapter else 'finetune'}"]
  family = _FAMILIES.get(denoiser.config.family, "")
  what = f"A {'LoRA adapter of a ' * adapter}{family}{' ' * bool(family)}masked diffusion language model"
  if not base:
    licence = "It was trained from nothing."
  elif base_is_hub:
    licence = f"Its base model is [{base}](https://huggingface.co/{base}), whose licence holds for it, too."
  else:
    licence = f"Its base model is `{Path(base).name}`, whose licence holds for it, too."
  return "\n".join((
    "---", *head, "---", _MARK, "", f"# {folder.resolve().name}", "",
    f"{what}, trained by gdsd_jax {_version()}{_told(made)}. {licence}", "",
    "## Loading", "", *_how(folder, denoiser, opened or base, flags(stated or {})), "",
  ))


def _version() -> str:
  try:
    return importlib.metadata.version("gdsd_jax")
  except importlib.metadata.PackageNotFoundError:  # run from a clone that is not installed
    return ""


def _told(made: Mapping[str, Any] | None) -> str:
  found = {}
  for path in _TOLD:
    value = made
    for name in path.split("."):
      value = value.get(name) if isinstance(value, Mapping) else None
    if value not in (None, ""):
      found[path] = value
  return f" ({', '.join(f'{path} {value}' for path, value in found.items())})" if found else ""


def _how(folder: Path, denoiser: Denoiser, base: str, stated: str) -> list[str]:
  config, name = denoiser.config, folder.resolve().name
  native, published = config.layout == "transformers", FAMILIES.get(config.family)
  lines = ["```python"]
  if denoiser.lora is not None:
    lines += ["from peft import PeftModel", "from transformers import " + (_AUTO if native else "AutoModel"), ""]
    base = f"{name}/{Path(base).name}" if Path(base).parent == folder.resolve() else base
    opened = f'{_AUTO}.from_pretrained("{base}")' if native else (
      f'AutoModel.from_pretrained("{base}", trust_remote_code=True)  # the base model\'s own code')
    lines += [f"base = {opened}", f'model = PeftModel.from_pretrained(base, "{name}")']
  elif native:
    lines += [f"from transformers import {_AUTO}, AutoTokenizer", "",
              f'tokenizer = AutoTokenizer.from_pretrained("{name}")', f'model = {_AUTO}.from_pretrained("{name}")']
  elif published is not None:
    lines += ["from transformers import AutoModel, AutoTokenizer", "",
              f'tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)',
              f'model = AutoModel.from_pretrained("{name}", trust_remote_code=True)  # runs code of'
              f" {published.hub_name}"]
  if len(lines) > 1:
    lines += ["```", "", _note(config), "", "```python"]
  lines += ["import gdsd_jax", ""]
  if denoiser.lora is None:
    lines.append(f'denoiser, params = gdsd_jax.load_pretrained("{name}")')
  else:
    lines.append(f"# gdsd-evaluate --config=RECIPE --model={name}{stated}")
  return [*lines, "```"]


def _note(config) -> str:
  said = []
  if config.layout == "transformers":
    said.append(f"transformers' class {eurobert.CLASS} computes this network, attention in both directions and an LM"
                " head; no code is downloaded. It needs a release of transformers that has the class.")
  if config.shifted_output:
    said.append("Logits at position i predict token i + 1, as the family's own code has them.")
  return " ".join([*said, "transformers has no sampler for diffusion: `generate` is not meant for it."])
