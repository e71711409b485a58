"""From a run's checkpoint to files that other programs load: Hugging Face weights, or a PEFT adapter."""

from collections.abc import Mapping
import dataclasses
import logging
import os
from pathlib import Path
from typing import Any

from etils import epath
import jax

from gdsd_jax import own_code
from gdsd_jax.checks import require, require_one_of
from gdsd_jax.huggingface.adapters import save_adapter
from gdsd_jax.huggingface.eurobert import EUROBERT
from gdsd_jax.huggingface.folder import is_embedded
from gdsd_jax.huggingface.model_card import is_ours, model_card, NAME as README
from gdsd_jax.huggingface.origin import check_alone, NAME as ORIGIN
from gdsd_jax.huggingface.own_layout import LAYOUTS
from gdsd_jax.huggingface.weights import load_weights, save_pretrained
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.models.lora import merge
from gdsd_jax.paths import expanded
from gdsd_jax.runs.files import absolute, is_remote
from gdsd_jax.runs.lock import locked
from gdsd_jax.runs.model_config import ModelConfig
from gdsd_jax.runs.saved_config import read_saved
from gdsd_jax.runs.weights import find_step, load_run, read_model_config

_log = logging.getLogger(__name__)


def export_run(workdir: Path, step: str, out: Path, merged: bool, layout: str | None = None) -> None:
  """Writes the model of a run to `out`: an adapter of a LoRA run unless `merged`, else a full model.

  Args:
    workdir: the run's folder.
    step: its checkpoint, "latest", "best" or a number.
    out: folder, made if it is missing.
    merged: whether a LoRA run gives the full model, with the adapter added to its weights. Where the run quantised
      them, these are those that it had read, as an exported adapter is laid over them, too.
    layout: see `write_model`.

  Raises:
    ValueError, OSError: one line with the cause; nothing was written.
  """
  model = read_model_config(workdir)
  check_out(out, workdir, model, merged)
  step = str(find_step(workdir, step))
  denoiser, params = load_run(workdir, step, mesh=None, whole=True)
  if merged and denoiser.lora is None:
    raise ValueError(f"--merge: the run in {workdir} has no adapter; its full model is exported without this flag")
  made = {**read_saved(workdir), "step": step}
  write_model(out, denoiser, params, model, merged, layout, made, origin_of_run(workdir, model, merged))


def origin_of_run(workdir: epath.Path, model: ModelConfig | None, merged: bool = False) -> str:
  """What an export says that it was made from, so that the same run may replace it. `model` as in `check_out`."""
  kind = "the adapter" if model is not None and model.lora is not None and not merged else "the model"
  return f"{kind} of the run {absolute(workdir)}"


def check_out(out: Path, workdir: epath.Path, model: ModelConfig | None, merged: bool = False) -> None:
  """Raises ValueError or OSError unless a run's model can be written to `out`, and nothing else is lost by that.

  Args:
    out: folder to write to. It need not exist; what an earlier export of the run has left there may be replaced.
    workdir: the run's folder.
    model: the model that it started from; None where it started from nothing.
    merged: whether a LoRA run gives the full model.
  """
  taken = {workdir: "the run's own folder (--workdir)"}
  if model is not None:
    taken[model.folder] = "the model that the run started from"
    if model.lora_path:
      taken[Path(expanded(model.lora_path, "model.lora.path"))] = "the adapter that the run started from"
  for folder, what in taken.items():
    if not is_remote(folder) and folder.resolve() == out.resolve():
      raise ValueError(f"--out: {out} is {what}; choose another folder")
  existing = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
  if not existing.is_dir() or not os.access(existing, os.W_OK):
    raise OSError(f"--out: cannot write to {out}: {existing} is {'read-only' if existing.is_dir() else 'a file'}")
  try:
    check_alone(out, origin_of_run(workdir, model, merged))
  except FileExistsError as error:
    raise FileExistsError(f"--out: {error}") from None


def write_model(out: Path, denoiser, params, base_model: ModelConfig, merged: bool = False, layout: str | None = None,
                made: Mapping[str, Any] | None = None, origin: str | None = None) -> None:
  """Writes an adapter, if there is one and `merged` does not ask for the full model, or else a full model.

  Args:
    out: folder, made if it is missing.
    denoiser, params: the model; without the base's weights where there is an adapter of which only that is written. In
      the place of quantised ones, those of the files are written or merged into.
    base_model: what it was made from, whose tokenizer comes along with a full model.
    merged: add the adapter to the weights.
    layout: as in `save_pretrained`. None is "transformers", which opens with nothing asked, for full models. An adapter
      fits its base model in the layout that that has. Where "transformers" is asked for, or where only this package
      knows the base model, the base comes along in the folder base_model, so that PEFT opens both.
    made: fields of the run's recipe, for the model card.
    origin: see `origin_of_run`; None where it is the model of no run.
  """
  check_layout(layout, denoiser, merged)
  with locked(out, "--out", alone=True):
    _write_model(out, denoiser, params, base_model, merged, layout, made, origin)


def default_layout(config: DenoiserConfig) -> str:
  """The layout that opens in transformers with nothing asked, if it has a class of the network."""
  return "transformers" if EUROBERT.computes(config) else "published"


def check_layout(layout: str | None, denoiser, merged: bool = False) -> None:
  """Raises ValueError unless a model, or its adapter unless `merged`, can be written in a layout; None always can."""
  if layout is None:
    return
  config, adapter = denoiser.config, denoiser.lora is not None and not merged
  require(not own_code.is_own(config.family), "--layout", f"the model has its own, {config.family}")
  require_one_of("--layout", layout, LAYOUTS)
  require(not adapter or layout in ("transformers", config.layout), "--layout",
          f"the base model's is {config.layout}, which its adapter must have, too")
  require(layout != "transformers" or EUROBERT.computes(config), "--layout",
          "transformers has no class of this network; write the published one")


def _write_model(out: Path, denoiser, params, base_model: ModelConfig, merged: bool, layout: str | None,
                 made: Mapping[str, Any] | None, origin: str | None) -> None:
  own = own_code.is_own(denoiser.config.family)
  folder = base_model.folder
  if denoiser.quantize is not None:
    denoiser, adapter = dataclasses.replace(denoiser, quantize=None, mesh=None), {"lora": params["lora"]}
    params = {**load_weights(folder, denoiser), **jax.device_get(adapter)} if merged else adapter
  if denoiser.lora is not None and not merged:
    _write_adapter(out, denoiser, params, base_model, folder, None if own else layout, made, origin)
    return
  if denoiser.lora is not None:
    params, denoiser = merge(params, denoiser.lora), dataclasses.replace(denoiser, lora=None)
  if not own:
    layout = layout or default_layout(denoiser.config)
  written = dataclasses.replace(denoiser, config=dataclasses.replace(
    denoiser.config, layout=layout or denoiser.config.layout), source=str(folder))
  card = model_card(out, written, *_named(base_model, folder)[:2], made)
  save_pretrained(out, written, params, extra=_beside(out, card, origin))
  _log.info("wrote the full model to %s, as %s", out, "the layout of your own" if own else
            "transformers opens it with nothing asked" if layout == "transformers" else "its family publishes it")


def _write_adapter(out: Path, denoiser, params, base_model: ModelConfig, folder: Path, layout: str | None,
                   made: Mapping[str, Any] | None, origin: str | None) -> None:
  base, is_hub, revision = _named(base_model, folder)
  made_from, config = base, denoiser.config
  layout = layout or ("transformers" if is_embedded(folder) else config.layout)
  if layout != config.layout:
    weights = params if "embedding" in params else load_weights(folder, denoiser)
    bare = dataclasses.replace(denoiser, lora=None, source=str(folder))
    save_pretrained(out / "base_model", bare, {name: leaf for name, leaf in weights.items() if name != "lora"},
                    layout=layout)
    base, revision = str((out / "base_model").resolve()), None
    denoiser = dataclasses.replace(denoiser, config=dataclasses.replace(config, layout=layout), source=base)
  card = model_card(out, denoiser, made_from, is_hub, made, base, base_model.stated)
  save_adapter(out, denoiser, params, base, revision, _beside(out, card, origin))
  _log.info("wrote the PEFT adapter to %s; its base model is %s", out, base)


def _beside(out: Path, card: str, origin: str | None) -> dict[str, str]:
  """Files of an export besides the model's: what it was made from, and a card, unless somebody has written one."""
  return {**({ORIGIN: f"{origin}\n"} if origin else {}), **({README: card} if is_ours(out) else {})}


def _named(model: ModelConfig, folder: Path) -> tuple[str, bool, str | None]:
  """(how other programs find a model, whether that is a name of the hub's, the hub's revision)."""
  is_hub = folder != Path(expanded(model.path, "model.path")) and not is_embedded(folder)
  return (model.path.removeprefix("hf://"), True, model.revision) if is_hub else (str(folder.resolve()), False, None)
