"""Samplers: from prompts of real tokens and completions of masks to rollouts, as one compiled function.

LLaDA's sampler works block by block from left to right. Each denoising step predicts every masked token of the block
and commits the predictions it is most confident in; nothing returns to the host before the completion is whole.
"""

import dataclasses
import functools

from flax import struct
import jax
import jax.numpy as jnp

from gdsd_jax.models.denoiser import Denoiser

REMASKING = ("low_confidence", "random")
_KINDS = ("llada",)


@struct.dataclass
class Rollout:
  """Completions and how sure the denoiser was of them.

  Attributes:
    tokens: int32[B, L] completion tokens; the mask token is never among them.
    confidence: float32[B, L] probability (full softmax, without temperature, after guidance) that each token had when
      it was unmasked.
  """

  tokens: jax.Array
  confidence: jax.Array


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
  """How completions are sampled (LLaDA, arXiv 2502.09992, section 2.4 and its appendix).

  Attributes:
    kind: "llada", semi-autoregressive blocks.
    completion_length: tokens of a completion (L).
    steps: denoising steps of the whole completion, spread evenly over the blocks.
    block_length: tokens of a block (K); equal to completion_length for a single block.
    temperature: of the Gumbel noise on the logits; 0 is greedy.
    remasking: which predictions of a step are kept: "low_confidence" remasks the least confident, "random" any.
    cfg_scale: classifier-free guidance; 0 is off, otherwise a second pass with the prompt masked doubles the cost.
  """

  kind: str = "llada"
  completion_length: int = 256
  steps: int = 256
  block_length: int = 32
  temperature: float = 1.0
  remasking: str = "low_confidence"
  cfg_scale: float = 0.0

  def __post_init__(self):
    if self.kind not in _KINDS:
      raise ValueError(f"sampler.kind: {self.kind!r} is not one of {', '.join(_KINDS)}")
    if self.remasking not in REMASKING:
      raise ValueError(f"sampler.remasking: {self.remasking!r} is not one of {', '.join(REMASKING)}")
    for field in ("completion_length", "steps", "block_length"):
      if getattr(self, field) < 1:
        raise ValueError(f"sampler.{field}: must be at least 1, not {getattr(self, field)}")
    if self.completion_length % self.block_length:
      raise ValueError(
        f"sampler.block_length: {self.block_length} must divide completion_length, {self.completion_length}"
      )
    if self.steps % self.num_blocks:
      raise ValueError(
        f"sampler.steps: {self.steps} must be a multiple of the {self.num_blocks} blocks"
        " (completion_length / block_length)"
      )
    for field in ("temperature", "cfg_scale"):
      if getattr(self, field) < 0:
        raise ValueError(f"sampler.{field}: must not be negative, not {getattr(self, field)}")

  @property
  def num_blocks(self) -> int:
    return self.completion_length // self.block_length

  def commits_per_step(self) -> tuple[int, ...]:
    """Tokens that each denoising step of a block commits: evenly, the remainder on the first steps."""
    steps = self.steps // self.num_blocks
    each, remainder = divmod(self.block_length, steps)
    commits = (each + (step < remainder) for step in range(steps))
    return tuple(count for count in commits if count)  # a step that commits nothing changes nothing


@functools.partial(jax.jit, static_argnames=("denoiser", "config"))
def sample(denoiser: Denoiser, params, prompt, prompt_mask, key, config: SamplerConfig) -> Rollout:
  """Samples one completion for each prompt. Compiled once per shape, denoiser and config.

  Args:
    denoiser, params: as `load_pretrained` returns them.
    prompt: int[B, P], left-padded.
    prompt_mask: bool[B, P], False at padding; None when no prompt is padded.
    key: random key; ignored at temperature 0 with low_confidence remasking.
    config: lengths, steps, temperature and remasking.

  Returns:
    Rollout of int32[B, L] tokens and float32[B, L] confidence.
  """
  L, K = config.completion_length, config.block_length
  batch, prompt_length = prompt.shape
  if prompt_length + L > denoiser.config.max_positions:
    raise ValueError(
      f"prompt ({prompt_length}) and completion ({L}) exceed the model's {denoiser.config.max_positions} positions"
    )
  mask_id = denoiser.config.mask_token_id
  prompt = prompt.astype(jnp.int32)
  attention_mask = None
  if prompt_mask is not None:
    attention_mask = jnp.concatenate([prompt_mask.astype(bool), jnp.ones((batch, L), bool)], axis=1)
  commits = jnp.array(config.commits_per_step())

  def block_logits(completion, start):
    """Guided logits [B, K, V] of the block: only its positions go through the LM head."""

    def conditioned_on(prompt):
      hidden = denoiser.hidden(params, jnp.concatenate([prompt, completion], axis=1), attention_mask)
      return denoiser.logits(params, jax.lax.dynamic_slice_in_dim(hidden, prompt_length + start, K, axis=1))

    logits = conditioned_on(prompt)
    if config.cfg_scale > 0:
      unconditional = conditioned_on(jnp.full_like(prompt, mask_id))
      logits = unconditional + (config.cfg_scale + 1) * (logits - unconditional)
    return logits

  def denoising_step(carry, step):
    completion, confidence, start = carry
    commit, step_key = step
    gumbel_key, remasking_key = jax.random.split(step_key)
    logits = block_logits(completion, start)
    tokens, probability = _predict(logits, gumbel_key, mask_id, config.temperature)
    block = jax.lax.dynamic_slice_in_dim(completion, start, K, axis=1)
    priority = probability if config.remasking == "low_confidence" else jax.random.uniform(remasking_key, block.shape)
    masked = block == mask_id
    chosen = masked & (_descending_rank(jnp.where(masked, priority, -jnp.inf)) < commit)
    block_confidence = jax.lax.dynamic_slice_in_dim(confidence, start, K, axis=1)
    update = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=1)
    completion = update(completion, jnp.where(chosen, tokens, block))
    confidence = update(confidence, jnp.where(chosen, probability, block_confidence))
    return (completion, confidence, start), None

  def denoise_block(carry, block):
    start, block_key = block
    keys = jax.random.split(block_key, len(commits))
    (completion, confidence, _), _ = jax.lax.scan(denoising_step, (*carry, start), (commits, keys))
    return (completion, confidence), None

  blank = jnp.full((batch, L), mask_id, jnp.int32), jnp.zeros((batch, L), jnp.float32)
  blocks = jnp.arange(config.num_blocks) * K, jax.random.split(key, config.num_blocks)
  (tokens, confidence), _ = jax.lax.scan(denoise_block, blank, blocks)
  return Rollout(tokens, confidence)


def _predict(logits, key, mask_id: int, temperature: float):
  """Gumbel-max prediction at every position, never the mask token, and its probability under the full softmax."""
  perturbed = logits
  if temperature > 0:
    perturbed = logits + temperature * jax.random.gumbel(key, logits.shape, logits.dtype)
  tokens = jnp.argmax(perturbed.at[..., mask_id].set(-jnp.inf), axis=-1).astype(jnp.int32)
  chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
  return tokens, jnp.exp(chosen - jax.nn.logsumexp(logits, axis=-1))


def _descending_rank(x):
  """Rank of each entry of the last axis, 0 the largest; ties in order of position."""
  return jnp.argsort(jnp.argsort(-x, axis=-1, stable=True), axis=-1)
