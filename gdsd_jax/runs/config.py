"""The fields of a run's configuration, their defaults, and the checks made once, before anything is compiled."""

import dataclasses
import importlib.util
import json
import math
from typing import Any

from etils import epath
import ml_collections
from ml_collections import config_dict

from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.models.lora import LoraConfig
from gdsd_jax.objectives.objective import Objective

# Fields that may change when a run resumes: they do not change what the run computes.
RESUMABLE = (
  "steps", "checkpoint.", "log.", "mesh.",
  # Only launch/evaluate.py reads these.
  "eval.lengths", "eval.steps_per_token", "eval.block_length", "eval.prompt_buckets", "eval.prefill",
)

MOMENTS_DTYPES = ("float32", "bfloat16")


def base_config() -> ml_collections.ConfigDict:
  """Every field a recipe has, at its default (the paper's, where the paper has one)."""
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.steps = 1000  # iterations: each samples rollouts once and updates objective.num_iterations times
  config.group_size = 16  # rollouts of each prompt (G)
  config.prompts_per_step = 8
  # Train on rollouts of the iteration before, sampled by the parameters that that one began with: rewards are computed
  # while the device samples. The rollouts are one iteration old (docs/overlap.md).
  config.async_rollouts = False
  config.max_skipped_steps = 5  # in a row, before the run gives up (a gradient or reward that fails)

  config.model = ml_collections.ConfigDict()
  config.model.path = "tiny"  # folder, hub name, or "tiny", the embedded model
  config.model.dtype = "float32"  # of matrix products and frozen weights; trained ones are float32 always
  # What the backward pass computes again: "none" of the activations, all but "products" with weights (a quarter less to
  # compute than all, far more to keep), or the "full" pass through each block.
  config.model.remat = "full"
  config.model.lora = ml_collections.ConfigDict()
  config.model.lora.rank = 0  # 0: no adapter, all parameters are trained
  config.model.lora.alpha = 64.0
  config.model.lora.dropout = 0.05
  config.model.lora.targets = ("q", "k", "v", "o", "gate", "up", "down")
  config.model.lora.path = config_dict.placeholder(str)  # PEFT folder to start from; rank and alpha must be its own

  config.task = ml_collections.ConfigDict()
  config.task.name = "arithmetic"
  # Fields of the task, unset ones at its own default; a recipe adds those that only its task has.
  config.task.train_source = config_dict.placeholder(str)  # where problems come from: see tasks/sources.py
  config.task.test_source = config_dict.placeholder(str)
  config.task.data_dir = config_dict.placeholder(str)  # of TFDS; its default where unset

  config.sampler = ml_collections.ConfigDict()
  config.sampler.kind = "llada"
  config.sampler.completion_length = 256  # L
  config.sampler.steps = 256
  config.sampler.temperature = 1.0
  config.sampler.block_length = 32  # K (llada; dream with any of cache, threshold and factor)
  config.sampler.remasking = "low_confidence"  # llada, as the one below
  config.sampler.cfg_scale = 0.0
  config.sampler.alg = "entropy"  # dream, as the four below
  config.sampler.alg_temp = 0.0
  config.sampler.top_p = config_dict.placeholder(float)
  config.sampler.top_k = config_dict.placeholder(int)
  config.sampler.eps = 1e-3
  # Fast-dLLM, approximate (docs/fast_dllm.md); launch/evaluate.py samples by these three, too.
  config.sampler.cache = "none"  # of keys and values in a block: "none", "prefix" or "dual"
  config.sampler.threshold = config_dict.placeholder(float)  # commit all that is surer, however many steps that makes
  config.sampler.factor = config_dict.placeholder(float)  # or: as many as confidence allows; 1 is usual
  # Ends a batch when all its texts have ended; what is behind their end, which training learns from, is then made up.
  config.sampler.early_stop = False
  # Widths that prompts are padded to; each is compiled once.
  config.sampler.prompt_buckets = (128, 256, 400)
  # Equal parts of a step's rollouts, shortest prompts first, each padded to the bucket of its own longest one. The
  # rewards of a part are computed while the next is sampled; each part costs the device as many denoising steps.
  config.sampler.microbatches = 1

  config.objective = ml_collections.ConfigDict()
  config.objective.name = "gdsd"
  config.objective.psi = 0.04  # per token; useful from 0.01 to 0.1
  config.objective.epsilon = config_dict.placeholder(float)  # unset: 4e-4 for gdsd, 0.2 for gdsd_tlc and espo
  config.objective.beta = 1e-3  # KL to the reference
  config.objective.num_mc = 2  # mask samples (M)
  config.objective.num_iterations = 8  # updates on each batch of rollouts (mu)
  config.objective.center_top_k = config_dict.placeholder(int)  # gdsd_tlc: unset is 64
  config.objective.center_gradient = False
  config.objective.weighted = True
  config.objective.scale_rewards = False  # divide advantages by the group's standard deviation
  config.objective.reference_sync_every = 0  # iterations between draws of the reference to the student; 0: frozen
  config.objective.reference_sync_mix = 0.6  # share of the student in the new reference

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.learning_rate = 1e-5
  config.optimizer.warmup_steps = 0  # updates
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.99
  config.optimizer.weight_decay = 0.01
  config.optimizer.clip = 0.2  # global gradient norm
  # Of AdamW's first moment: bfloat16 saves 2 of the 8 bytes that both moments take of each trained parameter. The
  # second is float32 always: at b2 = 0.99 it moves by under 1 % an update, much of which bfloat16's 8 bits would lose.
  config.optimizer.moments_dtype = "float32"
  config.optimizer.accumulation = 1  # microbatches of each update

  config.eval = ml_collections.ConfigDict()
  config.eval.every = 100  # iterations; also before the first and after the last
  config.eval.num_examples = 256  # of the test split
  config.eval.batch_size = 64
  # Of launch/evaluate.py, as in the paper; all of the test split.
  config.eval.lengths = (128, 256, 512)  # completion lengths; the accuracy is the best of them
  config.eval.steps_per_token = 0.5
  config.eval.block_length = 32  # as sampler.block_length
  config.eval.prompt_buckets = (128, 256, 512, 1024)  # only those that some prompt needs are compiled
  config.eval.prefill = ""  # text that every completion begins with

  config.checkpoint = ml_collections.ConfigDict()
  config.checkpoint.every = 50  # iterations
  config.checkpoint.keep = 2  # the latest ones; the best evaluated one is kept besides

  config.mesh = ml_collections.ConfigDict()
  config.mesh.data = -1  # the rest of the devices
  config.mesh.fsdp = 1
  config.mesh.tensor = 1

  config.log = ml_collections.ConfigDict()
  config.log.every = 1  # iterations between lines on the screen
  config.log.rollouts_every = 50  # iterations between printed rollouts; 0: never
  config.log.plot_seconds = 20.0  # least time between drawings of reward.png
  config.log.tensorboard = True
  config.log.wandb_project = ""  # Weights & Biases, when a project is named
  return config


def sampler_config(config) -> SamplerConfig:
  """SamplerConfig of a run's `sampler` section."""
  fields = config.sampler.to_dict()
  for of_the_run in ("prompt_buckets", "microbatches"):
    del fields[of_the_run]
  return SamplerConfig(**fields)


def evaluation_samplers(config) -> dict[int, SamplerConfig]:
  """Completion length -> the sampler of launch/evaluate.py: greedy, at the confidence that the papers evaluate by.

  It takes over Fast-dLLM's options of the `sampler` section, and stops early where it goes block by block: only texts
  up to their end count here.

  Raises:
    ValueError: a field of the `eval` section does not fit.
  """
  fields, samplers = config.eval, {}
  fast = {name: config.sampler[name] for name in ("cache", "threshold", "factor")}
  if fast["threshold"] is not None or fast["factor"] is not None:
    fast["alg"] = config.sampler.alg  # they need a probability, which entropy is not
  if not 0 < fields.steps_per_token <= 1:
    raise ValueError(f"eval.steps_per_token: must lie in (0, 1], not {fields.steps_per_token}")
  if not fields.lengths or len(set(fields.lengths)) < len(fields.lengths):
    raise ValueError(f"eval.lengths: must be different lengths, at least one, not {tuple(fields.lengths)}")
  for length in fields.lengths:
    try:
      sampler = SamplerConfig(
        kind=config.sampler.kind, completion_length=length, steps=round(length * fields.steps_per_token),
        temperature=0.0, block_length=fields.block_length, eps=config.sampler.eps, **fast,
      )
      samplers[length] = dataclasses.replace(sampler, early_stop=sampler.is_blockwise)
    except ValueError as error:
      raise ValueError(
        f"eval.lengths: {length} at eval.steps_per_token={fields.steps_per_token} and"
        f" eval.block_length={fields.block_length} is no sampler: {error}"
      ) from None
  return samplers


def objective_config(config) -> Objective:
  """Objective of a run's `objective` section."""
  names = ("name", "psi", "epsilon", "beta", "center_top_k", "center_gradient", "weighted")
  return Objective(**{name: config.objective[name] for name in names})


def lora_config(config) -> LoraConfig | None:
  """LoraConfig of a run's `model.lora` section; None when its rank is 0."""
  fields = config.model.lora
  if fields.rank == 0:
    return None
  return LoraConfig(fields.rank, fields.alpha, fields.dropout, tuple(fields.targets))


def validate(config) -> None:
  """Checks every field that can be checked without loading anything. Raises ValueError, one line naming the field."""
  for path, value in flatten(config).items():
    if isinstance(value, float) and not math.isfinite(value):
      raise ValueError(f"{path}: must be a finite number, not {value}")
  for section, name in (("sampler", "prompt_buckets"), ("eval", "prompt_buckets"), ("eval", "lengths")):
    if not all(type(length) is int for length in config[section][name]):  # flags do not look into tuples
      raise ValueError(f"{section}.{name}: must be whole numbers, not {tuple(config[section][name])}")
  sampler_config(config)
  evaluation_samplers(config)
  objective_config(config)
  if lora_config(config) and config.objective.reference_sync_every:
    raise ValueError(
      "objective.reference_sync_every: must be 0 with model.lora.rank > 0, whose reference is the base model"
    )
  if config.model.lora.path and not config.model.lora.rank:
    raise ValueError("model.lora.path: needs model.lora.rank > 0")
  at_least = {
    "group_size": 2, "steps": 1, "prompts_per_step": 1, "max_skipped_steps": 1, "sampler.microbatches": 1,
    "objective.num_mc": 1,
    "objective.num_iterations": 1, "objective.reference_sync_every": 0, "eval.every": 1, "eval.num_examples": 1,
    "eval.batch_size": 1, "checkpoint.every": 1, "checkpoint.keep": 1, "log.every": 1, "log.rollouts_every": 0,
    "seed": 0,
  }
  fields = flatten(config)
  for path, least in at_least.items():
    if fields[path] < least:
      raise ValueError(f"{path}: must be at least {least}, not {fields[path]}")
  check_optimizer(config.optimizer)
  if not 0 <= config.objective.reference_sync_mix <= 1:
    raise ValueError(
      f"objective.reference_sync_mix: must lie between 0 and 1, not {config.objective.reference_sync_mix}"
    )
  for section in ("sampler", "eval"):
    buckets = list(config[section].prompt_buckets)
    if not buckets or buckets != sorted(set(buckets)) or buckets[0] < 1:
      raise ValueError(f"{section}.prompt_buckets: must be ascending positive lengths, not {tuple(buckets)}")
  rollouts = config.group_size * config.prompts_per_step
  for section, name in (("sampler", "microbatches"), ("optimizer", "accumulation")):
    if rollouts % config[section][name]:
      raise ValueError(
        f"{section}.{name}: {config[section][name]} must divide the {rollouts} rollouts of a step"
        " (group_size × prompts_per_step)"
      )
  if config.log.wandb_project and importlib.util.find_spec("wandb") is None:
    raise ValueError("log.wandb_project: wandb is not installed; pip install 'gdsd_jax[wandb]'")


def check_optimizer(fields) -> None:
  """Checks an `optimizer` section. Raises ValueError, one line naming the field."""
  if fields.moments_dtype not in MOMENTS_DTYPES:
    raise ValueError(f"optimizer.moments_dtype: {fields.moments_dtype!r} is not one of {', '.join(MOMENTS_DTYPES)}")
  for name, least in (("warmup_steps", 0), ("accumulation", 1), ("weight_decay", 0)):
    if fields[name] < least:
      raise ValueError(f"optimizer.{name}: must be at least {least}, not {fields[name]}")
  for name in ("learning_rate", "clip"):
    if fields[name] <= 0:
      raise ValueError(f"optimizer.{name}: must be positive, not {fields[name]}")
  for name in ("b1", "b2"):
    if not 0 <= fields[name] < 1:
      raise ValueError(f"optimizer.{name}: must lie in [0, 1), not {fields[name]}")


def validate_mesh(config, mesh) -> None:
  """Checks that batches split evenly over the mesh. Raises ValueError with the numbers."""
  shards = mesh.shape["data"] * mesh.shape["fsdp"]
  rollouts = config.group_size * config.prompts_per_step
  for name, size in (
    ("group_size × prompts_per_step / optimizer.accumulation", rollouts // config.optimizer.accumulation),
    ("group_size × prompts_per_step / sampler.microbatches", rollouts // config.sampler.microbatches),
    ("eval.batch_size", config.eval.batch_size),
  ):
    if size % shards:
      raise ValueError(f"{name}: {size} rollouts cannot be split over mesh.data × mesh.fsdp = {shards} devices")


def flatten(config) -> dict[str, Any]:
  """{"path.to.field": value} of a ConfigDict or nested dict, tuples as lists (as JSON has them)."""
  flat = {}
  for name, value in config.items():
    if isinstance(value, (dict, ml_collections.ConfigDict)):
      flat |= {f"{name}.{path}": leaf for path, leaf in flatten(value).items()}
    else:
      flat[name] = list(value) if isinstance(value, tuple) else value
  return flat


def contradictions(saved: dict[str, Any], current) -> list[str]:
  """Lines "field: saved → current" for what a resumed run may not change. saved: nested dict; current: ConfigDict."""
  old, new = flatten(saved), flatten(current)
  return [
    f"{path}: {old.get(path)!r} → {new.get(path)!r}"
    for path in sorted(old.keys() | new.keys())
    if old.get(path) != new.get(path) and not path.startswith(RESUMABLE)
  ]


def refuse_contradictions(workdir: epath.Path, current) -> None:
  """Raises ValueError if `workdir` holds a run whose config.json a resumed run would contradict."""
  file = workdir / "config.json"
  if not file.is_file():
    return
  try:
    different = contradictions(json.loads(file.read_text()), current)
  except (ValueError, AttributeError) as error:
    raise ValueError(f"--workdir: {file} is not the config of a run: {error}") from None
  if different:
    raise ValueError(
      f"--workdir: {workdir} holds a run with another config ({'; '.join(different)});"
      " restore these fields or choose another --workdir"
    )


def config_json(config) -> str:
  """The config as JSON, fields in order."""
  return json.dumps(config.to_dict(), indent=2, sort_keys=True)
