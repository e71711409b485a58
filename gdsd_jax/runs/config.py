"""What a run is told: frozen dataclasses, which check themselves, with every field's default and explanation.

Recipes and flags see an `ml_collections.ConfigDict` of the same fields (runs/config_dict.py). The model,
samplers, objectives, masks, the optimizer, evaluations and logs have theirs in files of their own:
runs/model_config.py, diffusion/config.py, objectives/named.py, diffusion/forward.py, runs/optimizer.py,
runs/eval_config.py, runs/log_config.py.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from jax.sharding import Mesh

from gdsd_jax.checks import require, require_at_least, require_buckets, require_int32, require_seed
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.diffusion.forward import MaskConfig
from gdsd_jax.objectives.advantages import ADVANTAGES
from gdsd_jax.objectives.named import ObjectiveFields
from gdsd_jax.objectives.objective import Objective
from gdsd_jax.parallel.mesh import device_of, rounds_finely
from gdsd_jax.parallel.slices import count_slices
from gdsd_jax.runs.eval_config import EvalConfig
from gdsd_jax.runs.log_config import LogConfig
from gdsd_jax.runs.model_config import ModelConfig
from gdsd_jax.runs.optimizer import OptimizerConfig
from gdsd_jax.tasks import Task


@dataclasses.dataclass(frozen=True)
class TaskConfig:
  """A task by its name, and what is set of its own fields; the others have the task's own defaults. Section `task`."""

  name: str = "arithmetic"
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  made: Task | None = dataclasses.field(default_factory=lambda: None)  # one that a program gives; recipes cannot


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
  """How the rollouts of a step are batched; a part of section `sampler`."""

  prompt_buckets: tuple[int, ...] = (128, 256, 400)  # widths that prompts are padded to; each is compiled once
  # Equal parts of a step's rollouts, shortest prompts first, each padded to the bucket of its own longest one. The
  # rewards of a part are computed while the next is sampled; each part costs the device as many denoising steps.
  microbatches: int = 1
  other_family: bool = False  # sample a model of one published family as the other is sampled

  def __post_init__(self):
    require_buckets("sampler.prompt_buckets", self.prompt_buckets)
    require_at_least(self, "sampler.", microbatches=1)


MOST_SAMPLES = 1024  # more masks would do no more for a score than other rollouts do


@dataclasses.dataclass(frozen=True)
class DistillationConfig:
  """What an iteration makes of its rollouts; a part of section `objective`."""

  num_mc: int | None = None  # mask samples (M); None: as many as the objective was published with
  num_iterations: int = 8  # updates on each batch of rollouts (mu)
  # "leave_one_out", "minus_mean" or "z_score" (objectives/advantages.py); None: as the objective was published
  advantages: str | None = None
  scale_rewards: bool = False  # divide leave-one-out advantages by the group's standard deviation
  least_accuracy: float = 0.0  # groups with an accuracy below are left out of the updates
  largest_accuracy: float = 1.0  # and those above
  redraws: int = 0  # how often others are drawn in the place of groups that are left out
  reference_sync_every: int = 0  # iterations between draws of the reference to the student; 0: frozen
  reference_sync_mix: float = 0.6  # share of the student in the new reference

  def __post_init__(self):
    require_at_least(self, "objective.", num_iterations=1, reference_sync_every=0, redraws=0)
    low, high = self.least_accuracy, self.largest_accuracy
    require(0 <= low <= high <= 1, "objective.least_accuracy, objective.largest_accuracy",
            f"must lie between 0 and 1, in that order, not {low}, {high}")
    require(not self.redraws or self.filters_groups, "objective.redraws",
            "is for groups that objective.least_accuracy and largest_accuracy leave out; all are kept")
    require(self.num_mc is None or self.num_mc >= 1, "objective.num_mc", f"must be at least 1, not {self.num_mc}")
    require(self.num_mc is None or self.num_mc <= MOST_SAMPLES, "objective.num_mc",
            f"{self.num_mc} is more than {MOST_SAMPLES}; each sample takes two passes over every rollout")
    require(self.advantages in (None, *ADVANTAGES), "objective.advantages",
            f"{self.advantages!r} is not one of {', '.join(ADVANTAGES)}")
    mix = self.reference_sync_mix
    require(0 <= mix <= 1, "objective.reference_sync_mix", f"must lie between 0 and 1, not {mix}")

  @property
  def filters_groups(self) -> bool:
    """Whether groups are left out by their accuracy."""
    return (self.least_accuracy, self.largest_accuracy) != (0, 1)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """When a run is saved; section `checkpoint`."""

  every: int = 50  # iterations
  keep: int = 2  # the latest ones; the best evaluated one is kept besides

  def __post_init__(self):
    require_at_least(self, "checkpoint.", every=1, keep=1)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Sizes of the mesh's axes (see `make_mesh`); section `mesh`."""

  data: int = -1  # all devices that the others leave; where one of these is -1, too, the number of TPU slices
  fsdp: int = 1  # devices that weights and rollouts are split over together
  tensor: int = 1  # devices that heads, MLP and vocabulary are split over
  expert: int = 1  # devices that the experts of a mixture, and the rollouts, are split over
  context: int = 1  # devices that the tokens of each sequence are split over, for long completions


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
  """An RL run. It and each of its parts raise ValueError, one line naming the field, where a value does not fit."""

  seed: int = 0  # of everything that is drawn: the order of the problems, rollouts, masks, a new adapter
  steps: int = 1000  # iterations: each samples rollouts once and updates objective.num_iterations times
  group_size: int = 16  # rollouts of each prompt (G)
  prompts_per_step: int = 8  # problems of an iteration, each answered by group_size rollouts
  # Train on rollouts of the iteration before, sampled by the parameters that that one began with: rewards are computed
  # while the device samples. The rollouts are one iteration old (docs/overlap.md).
  async_rollouts: bool = False
  max_skipped_steps: int = 5  # in a row, before the run gives up (a gradient or reward that fails)
  model: ModelConfig
  task: TaskConfig
  sampler: SamplerConfig
  rollouts: RolloutConfig = dataclasses.field(metadata={"section": "sampler"})
  masks: MaskConfig
  objective: Objective = dataclasses.field(metadata={"fields_of": ObjectiveFields})  # one's own has fields of its own
  distillation: DistillationConfig = dataclasses.field(metadata={"section": "objective"})
  optimizer: OptimizerConfig
  eval: EvalConfig
  checkpoint: CheckpointConfig
  mesh: MeshConfig
  log: LogConfig
  as_given: Mapping[str, Any] = dataclasses.field(repr=False)  # the recipe's nested fields, as config.json holds them

  def __post_init__(self):
    require_seed("seed", self.seed)
    require_at_least(self, "", steps=1, group_size=2, prompts_per_step=1, max_skipped_steps=1)
    require(not (self.model.lora and self.distillation.reference_sync_every), "objective.reference_sync_every",
            "must be 0 with model.lora.rank > 0, whose reference is the base model")
    parts = {"sampler.microbatches": self.rollouts.microbatches, "optimizer.accumulation": self.optimizer.accumulation}
    rollouts = self.rollouts_per_step
    for field, count in parts.items():
      require(rollouts % count == 0, field,
              f"{count} must divide the {rollouts} rollouts of a step (group_size × prompts_per_step)")
    self._check_slots()
    require_int32("steps × objective.num_iterations", self.updates)
    self._check_objective()
    self.optimizer.check_length(self.updates)
    evaluation_samplers(self)
    self.eval.validation(self.sampler)

  def _check_slots(self):
    part = self.rollouts_per_step // self.rollouts.microbatches
    require_prompts(self.sampler, "group_size × prompts_per_step / sampler.microbatches", part)
    require_prompts(self.sampler, "eval.batch_size", self.eval.batch_size)

  def _check_objective(self):
    objective, said = self.objective, self.objective.name
    if getattr(objective, "temperature", 0) is None:  # scores are made as rollouts were sampled
      temperature = self.sampler.temperature
      require(temperature > 0, "sampler.temperature", f"must be above 0 for {said}, which scores what was drawn")
      objective = dataclasses.replace(objective, temperature=temperature)
      object.__setattr__(self, "objective", objective)
    require(objective.num_mc is not None or self.distillation.num_mc is None, "objective.num_mc",
            f"{said} has a number of views of its own; unset it by --config.objective.num_mc=None")
    require(not (self.async_rollouts and self.distillation.redraws), "objective.redraws",
            "must be 0 with async_rollouts, whose next rollouts are on the device already")
    require(self.num_mc <= MOST_SAMPLES, "objective.num_mc", f"{self.num_mc}, which is {said}'s own, is more than"
            f" {MOST_SAMPLES}; each sample takes two passes over every rollout")
    own_views = objective.masks is None
    require(not own_views or (self.masks.kind, self.masks.block_length, self.masks.remasking) == (None, None, None),
            "masks.kind", f"{said} draws masks of its own; unset it by --config.masks.kind=None")
    require(objective.advantages is not None or self.distillation.advantages is None, "objective.advantages",
            f"{said} makes what it needs of the rewards; unset it by --config.objective.advantages=None")
    require(not self.distillation.scale_rewards or self.advantages == "leave_one_out", "objective.scale_rewards",
            f"divides leave-one-out advantages, and they are {self.advantages}; z_score is divided already")
    self.log.check_trajectory(objective, self.sampler)
    remembered = set() if self.sampler.is_own else {"steps", "logp", "entropy"}
    if not self.sampler.is_own and self.sampler.top_k is not None:
      remembered.add("kept")
    if self.sampler.edits:
      require(not objective.needs, "sampler.editing_threshold", f"must be None with {said}, which goes through the"
              " states of a rollout: it remembers when each token was written last, and not what it replaced")
    if self.sampler.predicts_all:
      remembered.add("predictions")
    lacking = objective.needs - remembered
    unset = {"kept": " without sampler.top_k",
             "predictions": " with sampler.cache, threshold, factor, early_stop or slots"}
    require(not lacking, "objective.name",
            f"{said} needs rollouts that remember {', '.join(sorted(lacking))}, which {self.sampler.kind}'s do not"
            + "".join("" if self.sampler.is_own or name == "predictions" and self.sampler.kind == "block"
                      else unset.get(name, "") for name in sorted(lacking)))

  @property
  def learnt(self) -> frozenset[str]:
    """What rollouts must remember for the objective and the numbers of a step."""
    return self.objective.needs | ({"logp"} if self.log.trajectory else set())

  @property
  def remembered(self) -> frozenset[str]:
    """What rollouts remember: `learnt`, and what is kept of them for people to look at."""
    kept = self.log.keep_every > 0 and not self.sampler.is_own
    drawn = kept and self.sampler.temperature > 0
    told = {"steps": kept, "logp": drawn, "passes": self.sampler.slots is not None}
    return self.learnt | {name for name, is_told in told.items() if is_told}

  def scored_in_step(self, mesh: Mesh) -> bool:
    """Whether the update makes the student's scores itself: then nothing else knows them.

    TPU slices add up gradients each by itself, which is only done by scores that are known. An adapter's dropout is
    for the gradient alone: scores are made without it.
    """
    finely = rounds_finely(self.model.dtype, device_of(mesh).platform)
    can_be = self.objective.scored_in_step(self.distillation.num_iterations, finely) and count_slices(mesh) == 1
    return can_be and not self.log.trajectory and not (self.model.lora and self.model.lora.dropout)

  @property
  def num_mc(self) -> int:
    """Mask samples of the objective's views; 1 where it has a number of views of its own."""
    return self.distillation.num_mc or self.objective.num_mc or 1

  @property
  def advantages(self) -> str:
    """The kind of advantages, see `group_advantages`."""
    return self.distillation.advantages or self.objective.advantages or "minus_mean"

  @property
  def rollouts_per_step(self) -> int:
    return self.group_size * self.prompts_per_step

  @property
  def updates(self) -> int:
    """Updates of the whole run."""
    return self.steps * self.distillation.num_iterations


def require_prompts(sampler: SamplerConfig, field: str, count: int) -> None:
  """Raises ValueError where a sampler has more slots than the prompts that are sampled together, which a field says."""
  require((sampler.slots or 0) <= count, "sampler.slots",
          f"{sampler.slots} are more than the {count} prompts that are sampled together ({field})")


def evaluation_samplers(config: RunConfig) -> dict[int, SamplerConfig]:
  """Completion length -> the sampler of launch/evaluate.py, see `EvalConfig`."""
  return config.eval.samplers(config.sampler)
