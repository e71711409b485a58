"""The model that a command evaluates or samples: a run's checkpoint, or a model, adapter or export by its name."""

from collections.abc import Mapping
import dataclasses
import logging
from pathlib import Path
from typing import Any

from gdsd_jax.checks import require
from gdsd_jax.huggingface.adapter_config import base_model_of
from gdsd_jax.huggingface.adapters import load_adapter
from gdsd_jax.huggingface.base_fingerprint import hub_name
from gdsd_jax.huggingface.folder import is_adapter, resolve_path
from gdsd_jax.huggingface.weights import load_pretrained
from gdsd_jax.parallel.processes import gather_json
from gdsd_jax.runs.config_dict import flatten
from gdsd_jax.runs.files import run_folder
from gdsd_jax.runs.model_config import ModelConfig
from gdsd_jax.runs.saved_config import read_saved
from gdsd_jax.runs.weights import find_step, load_run, read_model_config

_log = logging.getLogger(__name__)
# Of section model, for any files.
_READ = ("layout", "quantize", "mlp_tokens", "mask_token_id", "eos_token_id", "block_length")


@dataclasses.dataclass(frozen=True)
class ChosenModel:
  """Which model a command is about: a run's checkpoint, else `model`, else that of the config."""

  workdir: Path | None = None  # folder of the run; None where it is no run's
  step: str = "latest"  # checkpoint of the run: latest, best, or a number
  model: str | None = None  # folder or hub name; a PEFT adapter's folder stands for its base model with the adapter

  @classmethod
  def of_flags(
    cls, workdir: str | None, step: str | None, model: str | None, given: Mapping[str, Any]
  ) -> "ChosenModel":
    """What --workdir, --step and --model name, beside the flags `given` of --config: path -> value.

    Raises ValueError or OSError, one line, where they contradict each other.
    """
    for name, value in {"workdir": workdir, "step": step, "model": model}.items():
      require(value != "", f"--{name}", "is empty")  # an unset variable of the shell, say: no other is taken for it
    require(workdir is None or model is None, "--model", "--workdir names a model already; give one of them")
    require(step is None or workdir is not None, "--step", "needs --workdir, whose checkpoint it chooses")
    chosen = cls(workdir and run_folder(workdir), step or "latest", model)
    chosen._check_model_fields(given)
    return chosen

  def _check_model_fields(self, given: Mapping[str, Any]) -> None:
    """A run's own model.* holds; of a --model, some fields say how it is read, see `_READ`."""
    saved = {} if self.workdir is None else flatten(read_saved(self.workdir))
    for path, value in given.items():
      value = list(value) if isinstance(value, tuple) else value
      if path.startswith("model.") and self.workdir is not None:
        require(saved.get(path) == value, f"--config.{path}", f"{value!r} is not what the run in {self.workdir} was"
                f" made with, {saved.get(path)!r}, as its checkpoint needs")
      elif path.startswith("model.") and self.model is not None:
        reads = path.split(".")[1] in ("dtype", *_READ)
        require(reads, f"--config.{path}", f"--model={self.model} says already what is loaded")

  def resolved(self) -> "ChosenModel":
    """The same with the number of its checkpoint: a run that goes on may soon have a later one."""
    if self.workdir is None:
      return self
    step = gather_json(find_step(self.workdir, self.step))[0]  # others may have looked a little later
    return dataclasses.replace(self, step=str(step))

  def base(self, default: ModelConfig) -> tuple[ModelConfig, Path | None]:
    """(the base model, which has the tokenizer, and the folder of an adapter over it, None without one or in a run)."""
    if self.workdir is not None:
      return read_model_config(self.workdir), None
    path, adapter = self.model or default.path, None if self.model else default.lora_path
    revision, field = None if self.model else default.revision, "--model" if self.model else "model.path"
    folder = resolve_path(path, revision, field)
    if is_adapter(folder):
      require(not adapter, "model.lora.path", f"{path}, which is model.path, is an adapter already; name one of them,"
              " and its base model as model.path")
      adapter, (path, revision) = folder, base_model_of(folder, field)
      resolve_path(path, revision, f"{field}: the base model of {folder} (--config.model.path=BASE"
                                   " --config.model.lora.path=ADAPTER lay it over another)")
    elif adapter:
      adapter = default.lora_folder
    read = {name: getattr(default, name) for name in _READ}
    return ModelConfig(path, revision, default.dtype, **read), adapter or None

  def load(self, default: ModelConfig, mesh):
    """(denoiser, params, base model). Raises ValueError or OSError, one line."""
    model, adapter = self.base(default)
    if self.workdir is not None:
      return *load_run(self.workdir, self.step, mesh), model
    if adapter is None:
      _log.info("%s is a whole model", model.path)
    else:
      _log.info("%s is a PEFT adapter, laid over %s", hub_name(adapter) or adapter, model.path)
    read = {"layout": model.layout, "revision": model.revision, "quantize": model.quantize, "stated": model.stated}
    denoiser, params = load_pretrained(model.path, model.dtype, mesh, **read)
    denoiser = dataclasses.replace(denoiser, mlp_tokens=model.mlp_tokens)
    if adapter is not None:
      denoiser, params = load_adapter(adapter, denoiser, params)
    return denoiser, params, model

  def describe(self, default: ModelConfig) -> dict[str, Any]:
    """What settings and summary say of a model whose step is resolved."""
    if self.workdir is not None:
      return {"source": str(self.workdir), "step": int(self.step)}
    quantised = {} if default.quantize is None else {"quantize": dataclasses.asdict(default.quantize)}
    return {"source": self.model or default.path, "dtype": default.dtype, **quantised}
