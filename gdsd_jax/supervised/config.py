"""What fine-tuning and pretraining are told: configs/sft.py, vrpo.py and pretrain_tiny.py, typed and checked."""

from collections.abc import Mapping
import dataclasses
from typing import Any, ClassVar

from ml_collections import ConfigDict

from gdsd_jax.checks import require, require_at_least, require_buckets, require_seed
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.objectives.vrpo import Vrpo
from gdsd_jax.runs import config as sections
from gdsd_jax.runs.config_dict import check_paths, made
from gdsd_jax.runs.model_config import ModelConfig


@dataclasses.dataclass(frozen=True)
class ChatsConfig:
  """The chats to learn; section `data`."""

  train_source: str | None  # files, a folder, or a dataset of TFDS or the hub, as task.train_source is of RL
  validation_source: str | None  # chats that are evaluated on and never learnt
  validation_size: int  # or so many of the last training chats
  data_dir: str | None  # where datasets are kept; their libraries' own folders where unset
  columns: str | None  # what the sources call the columns, such as "messages=dialogue"
  bad_rows: str  # "refuse", or "skip": chats that cannot be read are left out, and counted
  prompt_buckets: tuple[int, ...]  # widths that prompts are padded to
  completion_buckets: tuple[int, ...]  # completions are filled up with EOS, which is learnt: so a model learns to end
  rows: ClassVar[str] = "of chats, whose rows have `messages`, `prompt` and `completion`, or `conversations`"

  def __post_init__(self):
    require(self.train_source is not None, "data.train_source", f"name a source {self.rows}")
    require_at_least(self, "data.", validation_size=0)
    require(not (self.validation_source and self.validation_size), "data.validation_size",
            "must be 0 with data.validation_source, which has the validation chats")
    require_buckets("data.prompt_buckets", self.prompt_buckets)
    require_buckets("data.completion_buckets", self.completion_buckets)


@dataclasses.dataclass(frozen=True)
class ValidationConfig:
  """When the loss on validation chats is computed, if there are any; section `eval`."""

  every: int  # steps; also before the first and after the last

  def __post_init__(self):
    require_at_least(self, "eval.", every=1)


@dataclasses.dataclass(frozen=True)
class RouterConfig:
  """How fine-tuning evens out the load of experts; section `router`. dFactory, LLaDA 2's own code, does neither."""

  # Weight of the auxiliary loss E Σ f P of each layer's experts, f the share of the tokens' choices that fell on one, P
  # its mean score as a share of all: Switch Transformer's, with OLMoE's mean over layers, which has 0.01. 0: none.
  balance_coefficient: float = 0.0
  # By so much each update moves the bias that chooses an expert, up where its load is below the mean, and down where it
  # is above (DeepSeek-V3's, which has 0.001). 0: biases stay as they are.
  bias_rate: float = 0.0

  def __post_init__(self):
    require_at_least(self, "router.", balance_coefficient=0, bias_rate=0)

  def check_model(self, model: ModelConfig, architecture: DenoiserConfig) -> None:
    """Raises ValueError, one line, where the model has nothing that a field here could move."""
    for name in ("balance_coefficient", "bias_rate"):
      require(not getattr(self, name) or architecture.experts is not None, f"router.{name}",
              f"must be 0: {model.path} has no experts, and so no router")
    require(not self.balance_coefficient or model.train_router, "router.balance_coefficient",
            "needs model.train_router=True, and so model.lora.rank=0: the loss is there to move routers")
    require(not self.bias_rate or model.lora is None, "router.bias_rate",
            "needs model.lora.rank=0: an adapter leaves the base's biases as they are")
    require(not self.bias_rate or architecture.experts.selection_bias, "router.bias_rate",
            f"must be 0: the routers of {model.path} choose experts without a bias")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuningConfig:
  """A fine-tuning run (configs/sft.py); `as_given` is the recipe's fields as a nested dict, which config.json holds."""

  seed: int  # of all that is drawn
  steps: int  # updates
  batch_size: int  # examples of an update
  model: ModelConfig
  mesh: sections.MeshConfig
  data: ChatsConfig
  eval: ValidationConfig
  optimizer: sections.OptimizerConfig
  checkpoint: sections.CheckpointConfig
  log: sections.LogConfig
  router: RouterConfig = RouterConfig()
  as_given: Mapping[str, Any]

  def __post_init__(self):
    require_seed("seed", self.seed)
    require_at_least(self, "", steps=1, batch_size=1)
    self.model.check_trained()
    parts = self.optimizer.accumulation
    require(self.batch_size % parts == 0, "optimizer.accumulation",
            f"{parts} must divide batch_size, {self.batch_size}")
    self.optimizer.check_length(self.steps)
    self.log.check_without_rollouts()


@dataclasses.dataclass(frozen=True)
class PreferenceRowsConfig(ChatsConfig):
  """The preferences to learn; section `data` of configs/vrpo.py."""

  rows: ClassVar[str] = "of preferences, whose rows have `chosen` and `rejected`, and `prompt` unless these are chats"


@dataclasses.dataclass(frozen=True)
class PreferenceViewsConfig:
  """How replies are scored; a part of section `objective`."""

  num_mc: int  # time steps at which the likelihood of a reply is estimated, each with one mask

  def __post_init__(self):
    require(1 <= self.num_mc <= sections.MOST_SAMPLES, "objective.num_mc",
            f"must lie between 1 and {sections.MOST_SAMPLES}, not {self.num_mc}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceConfig(FinetuningConfig):
  """Fine-tuning on preferences (configs/vrpo.py): `batch_size` counts these, of two replies each."""

  data: PreferenceRowsConfig
  objective: Vrpo
  views: PreferenceViewsConfig = dataclasses.field(metadata={"section": "objective"})

  def __post_init__(self):
    super().__post_init__()
    require(self.router == RouterConfig(), "router.balance_coefficient, router.bias_rate",
            "must be 0 in fine-tuning on preferences; fine-tuning on chats has them")


@dataclasses.dataclass(frozen=True)
class PretrainingConfig:
  """How a small model is made from nothing; `as_given` is the recipe's fields as a nested dict, as in config.json."""

  seed: int  # of all that is drawn
  task: sections.TaskConfig
  slips: float  # share of wrong results in careless solutions
  model: DenoiserConfig  # its special tokens are 0 here: the tokenizer, which is trained first, says them
  sampler: SamplerConfig  # for the evaluations, and the length that the training solutions are filled up to with EOS
  max_prompt_length: int  # tokens that prompts are padded to
  steps: int  # updates
  careless_after: int  # steps on right solutions before the careless ones
  batch_size: int  # examples of an update
  optimizer: sections.OptimizerConfig
  eval_every: int  # steps
  eval_examples: int  # validation problems of an evaluation
  checkpoint: sections.CheckpointConfig
  log: sections.LogConfig
  as_given: Mapping[str, Any]

  def __post_init__(self):
    require_seed("seed", self.seed)
    require_at_least(self, "", steps=1, batch_size=1, eval_every=1, eval_examples=1, max_prompt_length=1)
    require(0 <= self.slips <= 1, "slips", f"must lie between 0 and 1, not {self.slips}")
    sections.require_prompts(self.sampler, "eval_examples", self.eval_examples)
    self.optimizer.check_length(self.steps)
    self.log.check_without_rollouts()


def pretraining_config(config: ConfigDict) -> PretrainingConfig:
  """The fields of configs/pretrain_tiny.py, typed and checked. Raises ValueError, one line naming the field."""
  fields = config.to_dict()
  shape = fields["model"] = dict(fields.get("model", {}))
  for name in ("head_dim", "mask_token_id", "eos_token_id", "pad_token_id"):
    require(name not in shape, f"model.{name}", "follows from the rest, or from the tokenizer; leave it out")
    shape[name] = 0
  check_paths(PretrainingConfig, fields)
  shape["head_dim"] = shape["hidden_size"] // shape["num_heads"]
  fields["optimizer"] = {"clip": 1.0, **fields["optimizer"]}
  return made(PretrainingConfig, {**fields, "as_given": config.to_dict()})
