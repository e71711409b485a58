"""Whether the config of a run fits the model that is sampled or trained, and the mesh."""

from gdsd_jax.checks import require
from gdsd_jax.diffusion.config import KINDS
from gdsd_jax.huggingface.families import SAMPLED_AS_LLADA
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.parallel.mesh import batch_shards
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
  """Checks that batches split evenly over the mesh. Raises ValueError with the numbers."""
  shards = batch_shards(mesh)
  rollouts = config.rollouts_per_step
  for name, size in (
    ("group_size × prompts_per_step / optimizer.accumulation", rollouts // config.optimizer.accumulation),
    ("group_size × prompts_per_step / sampler.microbatches", rollouts // config.rollouts.microbatches),
    ("eval.batch_size", config.eval.batch_size),
    ("sampler.slots", config.sampler.slots or 0),
  ):
    require(size % shards == 0, name, f"{size} rollouts cannot be split over mesh.data × mesh.fsdp"
            f"{' × mesh.expert' * (config.mesh.expert > 1)} = {shards} devices")
