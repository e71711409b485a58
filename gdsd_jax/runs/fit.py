"""Whether the config of a run fits the model that is sampled or trained, and the mesh."""

from collections.abc import Sequence
import itertools

from gdsd_jax.checks import require
from gdsd_jax.diffusion.config import KINDS, SamplerConfig
from gdsd_jax.diffusion.slots import batch_axis
from gdsd_jax.huggingface.families import SAMPLED_AS_LLADA
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.parallel.mesh import axis_of, CONTEXT, split_into
from gdsd_jax.runs.config import RunConfig


def validate_family(config: RunConfig, architecture: DenoiserConfig, model: str) -> None:
  """Raises ValueError where a model of one published family would be sampled as another is, unless one insists."""
  kind, family = config.sampler.kind, architecture.family
  config.sampler.require_same_attention(architecture, "model.path")
  own = "llada" if family in SAMPLED_AS_LLADA else family
  require({kind, own} != set(KINDS) or config.rollouts.other_family, "sampler.kind",
          f"{kind!r} is not how {model} is sampled, a model of the family {family}; give"
          f" --config.sampler.kind={own}, or --config.sampler.other_family=True if you mean it")


def validate_training(config: RunConfig, architecture: DenoiserConfig, model: str) -> None:
  """As `validate_family`, and also where the masks are not in the blocks of a block-causal model, or where all of a
  quantised one would be trained.
  """
  validate_family(config, architecture, model)
  config.model.check_trained()
  require(architecture.block_length is None or config.masks.kind != "blocks", "masks.kind",
          f"'blocks' is for models whose tokens all see each other; {model} is scored in its own blocks of"
          f" {architecture.block_length} tokens: give sampler or uniform")


def validate_mesh(config: RunConfig, mesh) -> None:
  """Checks that batches, and sequences, split evenly over the mesh. Raises ValueError with the numbers."""
  rollouts, sampler, axis = config.rollouts_per_step, config.sampler, batch_axis(config.sampler)
  require_rows(mesh, "batch", "group_size × prompts_per_step / optimizer.accumulation",
               rollouts // config.optimizer.accumulation)
  require_rows(mesh, axis, "group_size × prompts_per_step / sampler.microbatches",
               rollouts // config.rollouts.microbatches)
  require_rows(mesh, axis, "eval.batch_size", config.eval.batch_size)
  require_rows(mesh, axis, "sampler.slots", sampler.slots or 0, "slots")
  require_split(mesh, "sampler.prompt_buckets", config.rollouts.prompt_buckets, "sampler.completion_length",
                [sampler.completion_length])
  check_blocks(sampler, mesh)


def check_blocks(sampler: SamplerConfig, mesh) -> None:
  """Raises ValueError where the mesh would split sequences that end with a block in which no completion does."""
  parts = split_into("tokens", mesh)
  fits = sampler.kind != "block" or sampler.cache != "none" or sampler.block_length % parts == 0
  require(fits, "sampler.block_length", f"{sampler.block_length} must be a multiple of mesh.{CONTEXT}={parts} without a"
          " cache: the last block is sampled whole; give sampler.cache=exact")


def require_rows(mesh, axis: str, field: str, count: int, rows: str = "rollouts") -> None:
  """Raises ValueError where the mesh does not divide so many rows, named so, by a logical axis."""
  names = axis_of(axis, mesh)
  said = " × ".join(f"mesh.{name}" for name in names) + " (with a cache)" * (CONTEXT in names)
  require(count % split_into(axis, mesh) == 0, field,
          f"{count} {rows} cannot be split over {said} = {split_into(axis, mesh)} devices")


def require_split(mesh, field: str, prompts: Sequence[int], length_field: str, lengths: Sequence[int]) -> None:
  """Raises ValueError where the mesh does not divide sequences of these prompts and completions, in tokens."""
  parts = split_into("tokens", mesh)
  for prompt, length in itertools.product(prompts, lengths):
    require((prompt + length) % parts == 0, f"{field}, {length_field}", f"{prompt} + {length} tokens are no multiple of"
            f" mesh.{CONTEXT}={parts}, which splits each sequence; change one of them")
