"""The weights of a run: the denoiser that it trained, from one of its checkpoints, without the rest of its state."""

import dataclasses
from pathlib import Path

from etils import epath
import jax
import orbax.checkpoint as ocp

from gdsd_jax.checks import require
from gdsd_jax.huggingface.adapters import load_adapter
from gdsd_jax.huggingface.weights import load_weights
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.models.lora import add_adapter
from gdsd_jax.parallel.mesh import device_of, param_shardings
from gdsd_jax.runs.checkpoints import cause_of, CheckpointError, damaged_metrics, mark_copied, quiet_orbax
from gdsd_jax.runs.config_dict import made
from gdsd_jax.runs.files import absolute
from gdsd_jax.runs.finite import not_finite
from gdsd_jax.runs.model_config import ModelConfig
from gdsd_jax.runs.saved_config import FILE, read_saved
from gdsd_jax.waiting import waiting


def make_denoiser(config: ModelConfig, architecture: DenoiserConfig, mesh, folder: Path | None = None) -> Denoiser:
  """The denoiser of a run, without its weights, which come from the `folder`, where there is one.

  What is trained is float32 in either case: bfloat16 has too few digits to add updates as small as AdamW's. Raises
  ValueError, one line, where the config asks for what the model does not have.
  """
  require(architecture.experts is not None or not config.train_router, "model.train_router",
          f"{config.path} has no experts, and so no router")
  require(config.remat != "offload" or device_of(mesh).platform != "cpu", "model.remat",
          "'offload' is for TPUs and GPUs, whose memory is not the host's; give full")
  frozen_dtype = config.dtype if config.lora else "float32"
  source = None if folder is None else str(folder)
  return Denoiser(architecture, config.dtype, frozen_dtype, config.remat, config.lora, mesh,
                  trains_routers=config.train_router, source=source, quantize=config.quantize,
                  mlp_tokens=config.mlp_tokens)


def load_model(config: ModelConfig, seed: int, mesh):
  """(denoiser, params) that a run starts from: the model of its config, with the adapter when it has one."""
  path = config.folder
  denoiser = make_denoiser(config, config.architecture, mesh, path)
  params, lora = load_weights(path, denoiser), denoiser.lora
  if lora is None:
    return denoiser, params
  if not config.lora_path:
    return add_adapter(denoiser, params, lora, jax.random.key(seed))
  adapted, params = load_adapter(config.lora_folder, denoiser, params)
  found = adapted.lora
  if dataclasses.replace(found, dropout=lora.dropout) != lora:
    raise ValueError(
      f"model.lora: {config.lora_path} has rank {found.rank}, alpha {found.alpha} and targets"
      f" {', '.join(found.targets)}; the config has {lora.rank}, {lora.alpha} and {', '.join(lora.targets)}"
    )
  return denoiser, params


def read_model_config(workdir: epath.Path) -> ModelConfig:
  """The model that a run, be it RL or fine-tuning, was started with; fields that were added since have their defaults.

  A hub model is at the commit that the run began with, wherever its revision is by now.

  Raises:
    ValueError, OSError: there is no run in `workdir`, or its config.json is damaged.
  """
  saved = read_saved(workdir)
  try:
    fields = saved.get("model", {})
    if commit := saved.get("provenance", {}).get("model_commit"):
      fields["revision"] = commit
    # How it was trained is no matter to who loads it, and was said in other words once.
    return made(ModelConfig, {name: value for name, value in fields.items() if name != "remat"})
  except (ValueError, AttributeError, TypeError) as error:
    raise ValueError(f"--workdir: {workdir / FILE} is not the config of a run: {error}") from None


def find_step(workdir: epath.Path, step: str | int) -> int:
  """The step of a run's checkpoint: "latest", "best" (of the evaluated ones that were kept), or a number.

  Raises:
    ValueError, OSError: there is no such checkpoint; the message tells which there are.
  """
  read_model_config(workdir)
  steps, best = [], None
  if (workdir / "checkpoints").is_dir():
    for folder, cause in damaged_metrics(absolute(workdir / "checkpoints")).items():
      raise CheckpointError(f"--workdir: {folder} in the checkpoint of step {folder.parent.name} is damaged ({cause});"
                            " without that folder, which holds its evaluation's reward, it can be used")
    with _open(workdir) as manager:
      steps, best = sorted(manager.all_steps()), manager.best_step()
  if not steps:
    raise FileNotFoundError(f"--workdir: {workdir} has no complete checkpoint yet")
  name = str(step)
  found = {"latest": steps[-1], "best": best}.get(name, int(name) if name.isdecimal() else None)
  if found not in steps:
    known = ["latest", *(["best"] if best is not None else []), *map(str, steps)]
    raise ValueError(f"--step: {name!r} is no checkpoint of {workdir}; there are {', '.join(known)}")
  return found


def load_run(workdir: epath.Path, step: str | int, mesh=None, whole: bool = False):
  """Loads the denoiser of a run's checkpoint.

  Args:
    workdir: folder of the run.
    step: which checkpoint, see `find_step`.
    mesh: to lay the parameters over; None for the default device.
    whole: leave the base as its files have it where the run has quantised it.

  Returns:
    (denoiser, params), with the adapter's when the run trained one.

  Raises:
    ValueError, OSError: the base model or the checkpoint cannot be read, or they do not fit together.
  """
  config, step = read_model_config(workdir), find_step(workdir, step)
  config = dataclasses.replace(config, quantize=None) if whole else config
  path = config.folder
  denoiser = make_denoiser(config, config.architecture, mesh, path)
  frozen = load_weights(path, denoiser) if denoiser.lora else {}  # without an adapter the checkpoint has all weights
  trained = jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
    denoiser.abstract_params(), param_shardings(mesh, denoiser),
  )
  wanted = {"params": {"lora": trained["lora"]} if denoiser.lora else trained}
  restore = ocp.args.PyTreeRestore(
    item=wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
  )
  try:
    with waiting(f"reading the checkpoint of step {step}"), _open(workdir) as manager:
      state = manager.restore(step, args=ocp.args.Composite(state=restore))["state"]
  except Exception as error:  # Orbax and TensorStore raise many kinds
    raise CheckpointError(
      f"--workdir: the checkpoint of step {step} in {workdir} cannot be read: {cause_of(error)}"
      "; --step chooses another"
    ) from error
  if name := not_finite(state["params"]):
    raise CheckpointError(f"--step: {name} in the checkpoint of step {step} of {workdir} holds values that are infinite"
                          " or not a number; choose an earlier step")
  return denoiser, {**frozen, **state["params"]}


def _open(workdir: epath.Path) -> ocp.CheckpointManager:
  """The run's checkpoints, for reading alone: the run itself may be writing more."""
  mark_copied(absolute(workdir / "checkpoints"))
  with quiet_orbax():
    options = ocp.CheckpointManagerOptions(read_only=True, best_fn=lambda metrics: metrics["reward"])
    return ocp.CheckpointManager(absolute(workdir / "checkpoints"), options=options, item_names=("state", "run"))
