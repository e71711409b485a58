"""What fine-tuning and pretraining are told: configs/sft.py and configs/pretrain_tiny.py, typed and checked."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from ml_collections import ConfigDict

from gdsd_jax.checks import require, require_at_least, require_buckets
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.runs import config as sections
from gdsd_jax.runs.config_dict import made


@dataclasses.dataclass(frozen=True)
class ChatsConfig:
  """The chats to learn; section `data`."""

  train_source: str | None  # .jsonl, .jsonl.gz, .json, .csv or a TFDS name
  data_dir: str | None  # where TFDS keeps its data; its default where unset
  prompt_buckets: tuple[int, ...]  # widths that prompts are padded to
  completion_buckets: tuple[int, ...]  # completions are filled up with EOS, which is learnt: so a model learns to end

  def __post_init__(self):
    require(self.train_source is not None, "data.train_source",
            "name a file of chats, rows with `messages` (or a TFDS name)")
    require_buckets("data.prompt_buckets", self.prompt_buckets)
    require_buckets("data.completion_buckets", self.completion_buckets)


@dataclasses.dataclass(frozen=True)
class FinetuningConfig:
  """A fine-tuning run (configs/sft.py); `as_given` is the recipe's fields as a nested dict, which config.json holds."""

  seed: int
  steps: int
  batch_size: int
  model: sections.ModelConfig
  mesh: sections.MeshConfig
  data: ChatsConfig
  optimizer: sections.OptimizerConfig
  checkpoint: sections.CheckpointConfig
  log: sections.LogConfig
  as_given: Mapping[str, Any]

  def __post_init__(self):
    require_at_least(self, "", seed=0, steps=1, batch_size=1)
    parts = self.optimizer.accumulation
    require(self.batch_size % parts == 0, "optimizer.accumulation",
            f"{parts} must divide batch_size, {self.batch_size}")
    self.optimizer.check_length(self.steps)


@dataclasses.dataclass(frozen=True)
class PretrainingConfig:
  """How a small model is made from nothing; `as_given` is the recipe's fields as a nested dict, as in config.json."""

  seed: int
  task: sections.TaskConfig
  slips: float  # share of wrong results in careless solutions
  model: DenoiserConfig  # its special tokens are 0 here: the tokenizer, which is trained first, says them
  sampler: SamplerConfig  # for the evaluations, and the length that the training solutions are filled up to with EOS
  max_prompt_length: int
  steps: int
  careless_after: int  # steps on right solutions before the careless ones
  batch_size: int
  optimizer: sections.OptimizerConfig
  eval_every: int  # steps
  eval_examples: int
  checkpoint: sections.CheckpointConfig
  log: sections.LogConfig
  as_given: Mapping[str, Any]

  def __post_init__(self):
    require_at_least(self, "", seed=0, steps=1, batch_size=1, eval_every=1, eval_examples=1)
    self.optimizer.check_length(self.steps)


def pretraining_config(config: ConfigDict) -> PretrainingConfig:
  """The fields of configs/pretrain_tiny.py, typed and checked. Raises ValueError, one line naming the field."""
  fields = config.to_dict()
  shape, optimizer = fields["model"], {"clip": 1.0, **fields["optimizer"]}
  shape["head_dim"] = shape["hidden_size"] // shape["num_heads"]
  shape |= dict.fromkeys(("mask_token_id", "eos_token_id", "pad_token_id"), 0)
  return made(PretrainingConfig, {**fields, "optimizer": optimizer, "as_given": config.to_dict()})
