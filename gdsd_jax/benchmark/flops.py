"""FLOPs that sampling and training need: the matrix products of the exact algorithm, whoever computes it and how.

Nothing is counted that an implementation does besides, such as logits that nobody reads or activations computed twice.
A multiplication and its addition are two.
"""

from collections.abc import Sequence

from gdsd_jax.diffusion.commits import commit_plan
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.models.config import DenoiserConfig


def _projection_shapes(config: DenoiserConfig) -> list[tuple[int, int]]:
  """(inputs, outputs) of each projection of a block."""
  D, F = config.hidden_size, config.mlp_size
  queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
  return [(D, queries), (D, keys), (D, keys), (queries, D), (D, F), (D, F), (F, D)]


def projection_flops(config: DenoiserConfig, tokens: int) -> float:
  """The projections of all blocks, forward."""
  return 2.0 * tokens * config.num_layers * sum(inputs * outputs for inputs, outputs in _projection_shapes(config))


def adapter_flops(config: DenoiserConfig, tokens: int, lora_rank: int) -> float:
  """The low-rank products of an adapter of all projections, forward; none at rank 0."""
  return 2.0 * tokens * config.num_layers * lora_rank * sum(map(sum, _projection_shapes(config)))


def attention_flops(config: DenoiserConfig, sequences: int, length: int) -> float:
  """Attention of all blocks, forward: queries with keys, and weights with values."""
  return 4.0 * sequences * length**2 * config.num_layers * config.num_heads * config.head_dim


def head_flops(config: DenoiserConfig, positions: int) -> float:
  """The LM head at so many positions, forward."""
  return 2.0 * positions * config.hidden_size * config.vocab_size


def masked_tokens(sampler: SamplerConfig) -> list[int]:
  """For each denoising step of an exact sampler, the tokens of a completion that it may commit."""
  commits = commit_plan(sampler).tolist()
  return [sum(commits[step:]) for step in range(len(commits))] * sampler.num_blocks


def sampling_flops(config: DenoiserConfig, batch: int, length: int, masked: Sequence[int], lora_rank: int = 0) -> float:
  """A batch of completions: each step runs all `length` tokens, and the head only where it may commit a token.

  `length` counts prompt and completion; `masked` has, for each denoising step, the tokens that it may commit. Layers
  are counted whole, the last one, too, of which a step needs less.
  """
  tokens, steps = batch * length, len(masked)
  step = projection_flops(config, tokens) + adapter_flops(config, tokens, lora_rank)
  step += attention_flops(config, batch, length)
  return steps * step + head_flops(config, batch * sum(masked))


def training_flops(config: DenoiserConfig, batch: int, prompt_length: int, completion_length: int, num_mc: int,
                   with_old: bool, with_reference: bool, lora_rank: int = 0) -> float:
  """One update of freshly sampled rollouts: the student's scores and their gradient, old scores and the reference's.

  The last two where they are asked for: the student's are the old ones of the only update on its rollouts.

  A rollout is scored by `num_mc` pairs of passes, and each pair predicts every token of the completion once. With an
  adapter the gradient is its own alone: the frozen weights' products only pass the activations' gradient back.
  """
  sequences, length = 2 * num_mc * batch, prompt_length + completion_length
  frozen = projection_flops(config, sequences * length) + head_flops(config, num_mc * batch * completion_length)
  adapter = adapter_flops(config, sequences * length, lora_rank)
  attention = attention_flops(config, sequences, length)
  student = frozen + adapter + attention
  reference = (frozen + attention) * with_reference
  backward = frozen * (1 if lora_rank else 2) + 2 * adapter + 2 * attention
  return (1 + with_old) * student + reference + backward
