"""What the paper's recipes share: the published models, LoRA, lengths, sampler, and a batch for eight devices.

Where they depart from the official scripts is told in docs/protocol.md.
"""

from collections.abc import Iterable

import ml_collections
from ml_collections import config_dict

from gdsd_jax.checks import require
from gdsd_jax.huggingface.published import HUB_NAMES, published_architecture
from gdsd_jax.runs.config_dict import base_config

PRESETS = ("tiny", *HUB_NAMES)
# Preset of a model that GDSD's authors released -> that of the model which they trained it from.
RELEASED = {"released_llada": "llada_8b", "released_dream": "dream_7b"}

_DEVICES = 8  # The official runs had so many, and their batch sizes are per device.


def evaluate_as_dream(config: ml_collections.ConfigDict) -> None:
  """Sets the published evaluation of Dream-Instruct on GSM8K, MATH, HumanEval and MBPP.

  The source is eval_instruct/eval.sh of DreamLM/Dream, by which ESPO evaluates it, too: temperature 0.1, top-p 0.9,
  entropy, a step a token. Greedily its GSM8K falls from 81.8 to 35.0 (issue 56 there), and so do MATH and MBPP (84).
  """
  config.eval.temperature = 0.1
  config.eval.top_p = 0.9
  config.eval.alg = "entropy"
  config.eval.steps_per_token = 1.0


def check_preset(preset: str, without_tiny: str | None = None, more: Iterable[str] = ()) -> None:
  """Raises ValueError unless `preset` is known, which `more` are, too; `without_tiny` says why a recipe has no tiny."""
  known = (*PRESETS, *more)
  require(preset in known, "--config", f"unknown preset {preset!r}, known are {', '.join(known)}")
  require(preset != "tiny" or not without_tiny, "--config",
          f"no preset tiny here, {without_tiny}; there are {', '.join(known[1:])}")


def with_released(config: ml_collections.ConfigDict, task: str, preset: str) -> ml_collections.ConfigDict:
  """The config of a published model with the one that GDSD's authors made of it in its place, for its evaluation.

  All of them are of GDSD-TLC (github.com/GaryBall/GDSD). Their hub pages tell 8 billion parameters in bfloat16: whole
  models. One that is a PEFT adapter would be evaluated over the base model which it names.

  Args:
    config: that of `published_config`, which the recipe has completed.
    task: as their names have it, "sudoku", "countdown" or "code".
    preset: one of RELEASED.
  """
  config.model.path = f"diffusion-reasoning/gdsd_{task}_{preset.removeprefix('released_')}"
  return config


def finetuning_config(preset: str) -> ml_collections.ConfigDict:
  """What recipes of fine-tuning share, for a recipe to complete: model, mesh, rows, when it validates and saves.

  Args:
    preset: one that `check_preset` knows; a published model is trained by LoRA on eight devices.
  """
  tiny = preset == "tiny"
  source = base_config() if tiny else published_config(preset, per_device_batch=8, accumulation=4)
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.model, config.mesh, config.optimizer = source.model, source.mesh, source.optimizer
  config.optimizer.clip = 1.0
  config.optimizer.accumulation = 1 if tiny else 4

  config.data = ml_collections.ConfigDict()
  for name in ("train_source", "validation_source", "data_dir", "columns"):
    config.data[name] = config_dict.placeholder(str)
  config.data.bad_rows = "refuse"
  config.data.validation_size = 0
  config.data.prompt_buckets = (36, 64, 128) if tiny else (128, 256, 512, 1024)
  config.data.completion_buckets = (16, 32, 64) if tiny else (128, 256, 512, 1024)

  config.router = dict(balance_coefficient=0.0, bias_rate=0.0)  # of models with experts
  config.eval = dict(every=100)
  config.checkpoint, config.log = source.checkpoint, source.log
  config.checkpoint.every = 100
  config.log.every = 10
  return config


def published_config(preset: str, per_device_batch: int, accumulation: int) -> ml_collections.ConfigDict:
  """Config of a published model by LoRA, as in the paper, for a recipe to complete.

  The group and the batch are the official ones whatever the number of devices, which must divide a microbatch,
  8 × per_device_batch rollouts. On fewer devices --config.optimizer.accumulation makes microbatches smaller; the
  update stays the same.

  Args:
    preset: a published model's, of HUB_NAMES.
    per_device_batch: rollouts of a microbatch on each of the official eight devices.
    accumulation: microbatches of an update.
  """
  config = base_config()
  config.model.path = HUB_NAMES[preset]
  config.model.dtype = "bfloat16"
  # All that is not set here is at its default, the paper's. Of the adapter's targets the official runs named some that
  # LLaDA lacks, and so adapted q, k, v and up alone: --config.model.lora.targets="('q','k','v','up')" repeats that.
  config.model.lora.rank = 128

  config.group_size = 2 * _DEVICES
  config.prompts_per_step = per_device_batch * accumulation * _DEVICES // config.group_size
  config.optimizer.accumulation = accumulation
  if preset == "dream_7b":
    config.sampler.kind = "dream"
    config.sampler.top_p = 0.95
  model = published_architecture(HUB_NAMES[preset])
  if model is not None and model.block_length is not None:
    _go_block_by_block(config, model.block_length)

  # Weights and batch over all devices, of a slice where there are several; the adapter's optimizer state is small.
  config.mesh.data = -1
  config.mesh.fsdp = -1
  return config


def _go_block_by_block(config: ml_collections.ConfigDict, block_length: int) -> None:
  """Samples as the authors of block-causal models do: as many steps as a block has tokens, and its exact cache."""
  config.sampler.kind = "block"
  config.sampler.block_length = block_length
  config.sampler.cache = "exact"
  config.eval.steps_per_token = 1.0
