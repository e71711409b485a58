"""From a run's checkpoint to files that other programs load: Hugging Face weights, or a PEFT adapter."""

from collections.abc import Mapping
import logging
import os
from pathlib import Path
import shutil

from etils import epath

from gdsd_jax.huggingface.adapters import save_adapter
from gdsd_jax.huggingface.folder import tokenizer_files
from gdsd_jax.huggingface.weights import save_pretrained
from gdsd_jax.models.lora import merge
from gdsd_jax.runs.config import ModelConfig
from gdsd_jax.runs.files import is_remote
from gdsd_jax.runs.weights import load_run, read_model_config

_log = logging.getLogger(__name__)


def export_run(workdir: Path, step: str, out: Path, merged: bool) -> None:
  """Writes the model of a run to `out`: an adapter of a LoRA run unless `merged`, else a full model.

  Args:
    workdir: the run's folder.
    step: its checkpoint, "latest", "best" or a number.
    out: folder, made if it is missing.
    merged: whether a LoRA run gives the full model, with the adapter added to its weights.

  Raises:
    ValueError, OSError: one line with the cause; nothing was written.
  """
  model = read_model_config(workdir)
  check_out(out, workdir, model)
  denoiser, params = load_run(workdir, step, mesh=None)
  if merged and denoiser.lora is None:
    raise ValueError(f"--merge: the run in {workdir} has no adapter; its full model is exported without this flag")
  write_model(out, denoiser, params, model, merged)


def check_out(out: Path, workdir: Path, model: ModelConfig) -> None:
  """Raises ValueError or OSError unless a run's model can be written to `out` without losing what the run is made of.

  Args:
    out: folder to write to, which need not exist.
    workdir: the run's folder.
    model: the model that it started from.
  """
  taken = {workdir: "the run's own folder (--workdir)"}
  taken[model.folder] = "the model that the run started from"
  if model.lora_path:
    taken[model.lora_folder] = "the adapter that the run started from"
  check_folder(out, taken)


def check_folder(out: Path, taken: Mapping[epath.Path, str]) -> None:
  """Raises ValueError or OSError unless `out` can be written and is none of the folders in `taken`, told by name."""
  for folder, what in taken.items():
    if not is_remote(folder) and folder.resolve() == out.resolve():
      raise ValueError(f"--out: {out} is {what}; choose another folder")
  existing = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
  if not existing.is_dir() or not os.access(existing, os.W_OK):
    raise OSError(f"--out: cannot write to {out}: {existing} is {'read-only' if existing.is_dir() else 'a file'}")


def write_model(out: Path, denoiser, params, base_model: ModelConfig, merged: bool = False) -> None:
  """Writes an adapter, if there is one and `merged` does not ask for the full model, or else a full model.

  Args:
    out: folder, made if it is missing.
    denoiser, params: the model.
    base_model: what it was made from, whose tokenizer comes along with a full model.
    merged: add the adapter to the weights.
  """
  if denoiser.lora is not None and not merged:
    save_adapter(out, denoiser, params, base_model.path, base_model.revision)
    _log.info("wrote the PEFT adapter to %s; its base model is %s", out, base_model.path)
    return
  if denoiser.lora is not None:
    params = merge(params, denoiser.lora)
  save_pretrained(out, denoiser, params)
  for file in tokenizer_files(base_model.folder):
    shutil.copyfile(file, out / file.name)
  _log.info("wrote the full model to %s", out)
