"""What a sample is told: the fields of a recipe that say which model answers, and how."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from ml_collections import ConfigDict

from gdsd_jax.checks import require, require_seed
from gdsd_jax.diffusion.config import KINDS, SamplerConfig
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.runs.chosen_model import ChosenModel
from gdsd_jax.runs.config import MeshConfig, RolloutConfig, TaskConfig
from gdsd_jax.runs.config_dict import check_numbers, check_recipe, made
from gdsd_jax.runs.eval_config import EvalConfig
from gdsd_jax.runs.model_config import ModelConfig

_SECTIONS = ("model.", "task.", "sampler.", "mesh.")
_OF_BATCHES = ("sampler.microbatches", "sampler.slots")
_USED = ("seed", "eval.prompt", "eval.prefill", "eval.test_size")
_LENGTH, _SHARE = 256, 16  # tokens of a completion where nobody says how many, and as a share of the positions at most
_DREAMS_OWN = {"temperature": 0.2, "top_p": 0.95}  # as Dream's model card has it


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
  """What of a recipe counts for a sample; the other fields may have any values."""

  seed: int
  model: ModelConfig
  task: TaskConfig
  sampler: SamplerConfig
  rollouts: RolloutConfig = dataclasses.field(metadata={"section": "sampler"})
  eval: EvalConfig  # how problems of the test split are asked
  mesh: MeshConfig

  def __post_init__(self):
    require_seed("seed", self.seed)


def sample_config(
  recipe: ConfigDict, given: Mapping[str, Any], chosen: ChosenModel, is_alone: bool = False
) -> SampleConfig:
  """The typed fields of a recipe with the flags `given`, path -> value.

  A blockwise sampler stops early unless the flags say otherwise: a text up to its end is the same either way. Where the
  model `is_alone`, the recipe is `model_alone.py`'s, and made to fit the model. Raises ValueError or OSError, one line
  that names the field, also for a flag that does nothing here.
  """
  for path in given:
    fits = path.startswith(_SECTIONS) and path not in _OF_BATCHES or path in _USED
    require(fits, f"--config.{path}", "does nothing in a sample; its fields are those of the sections"
            f" {', '.join(section.removesuffix('.') for section in _SECTIONS)}, and {', '.join(_USED)}")
  if is_alone:
    base, _ = chosen.base(made(ModelConfig, recipe.model.to_dict()))
    _fit_to_model(recipe, given, base.architecture)
  check_recipe(recipe)
  fields = recipe.to_dict()
  check_numbers(fields)
  config = made(SampleConfig, fields)
  sampler = dataclasses.replace(config.sampler, slots=None)
  if sampler.is_blockwise and "sampler.early_stop" not in given:
    sampler = dataclasses.replace(sampler, early_stop=True)
  return dataclasses.replace(config, sampler=sampler)


def _fit_to_model(recipe: ConfigDict, given: Mapping[str, Any], model: DenoiserConfig) -> None:
  """Sets what no flag gives: the family's sampler, and a length that fits."""
  sampler = recipe.sampler

  def default(name, value):
    if f"sampler.{name}" not in given:
      sampler[name] = value

  blocks = model.block_length
  default("kind", "block" if blocks else model.family if model.family in KINDS else KINDS[0])
  length = min(_LENGTH, 1 << max(model.max_positions // _SHARE, 1).bit_length() - 1)
  default("completion_length", length + -length % (blocks or 1))
  default("steps", sampler.completion_length)
  if sampler.kind == "block":
    default("block_length", blocks)
    default("cache", "exact")
  elif sampler.completion_length < 32:
    default("block_length", sampler.completion_length)
  if sampler.kind == "dream":
    for name, value in _DREAMS_OWN.items():
      default(name, value)
