"""A problem whose completions can all be written down: a pattern with a coupling between positions, and its model.

The prompt is one token c. Right is the completion c, c + 1, c + 2, … modulo the V tokens. The reward is a share of
tokens that are right, and a share of tokens that follow the one before by 1, whatever that is:

  R(x) = (1 − w) mean_i [x_i = c + i] + w mean_{i > 0} [x_i = x_{i−1} + 1]

By the second part, what a token is worth depends on its neighbours. There is no end of text.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gdsd_jax.checks import require, require_at_least
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.exact.states import Space
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.objectives.masked_cross_entropy import masked_cross_entropy

_PRETRAINING_RATE, _PRETRAINING_BATCH = 3e-3, 64


@dataclasses.dataclass(frozen=True)
class Problem:
  """The problem's sizes, and how its model is made and sampled."""

  tokens: int = 3  # V
  length: int = 6  # L
  block_length: int = 3  # of the sampler
  denoising_steps: int = 6  # of the sampler, for a whole completion
  temperature: float = 1.0  # of the sampler
  coupling: float = 0.5  # w
  order: float = 0.5  # probability that a token of the pretraining data follows the one before by 1
  pretraining: int = 300  # steps

  def __post_init__(self):
    require_at_least(self, "--", tokens=2, length=2, block_length=1, denoising_steps=1, pretraining=0)
    for name in ("coupling", "order"):
      value = getattr(self, name)
      require(0 <= value <= 1, f"--{name}", f"must lie between 0 and 1, not {value}")
    require(self.temperature > 0, "--temperature", f"must be positive, not {self.temperature}")
    try:
      _ = self.sampler, self.space
    except ValueError as error:
      raise ValueError(_as_flag(str(error))) from None

  @property
  def denoiser(self) -> Denoiser:
    """Two layers in LLaDA's layout. The mask token stands for the end of text, too, so that no text ends."""
    mask = self.tokens
    return Denoiser(DenoiserConfig(
      vocab_size=self.tokens + 1, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=16, mlp_size=64,
      rope_theta=10000.0, norm_epsilon=1e-5, max_positions=self.length + 1, mask_token_id=mask, eos_token_id=mask,
      pad_token_id=mask))

  @property
  def space(self) -> Space:
    return _space(self.denoiser.config, self.length)

  @property
  def sampler(self) -> SamplerConfig:
    return SamplerConfig(completion_length=self.length, steps=self.denoising_steps, block_length=self.block_length,
                         temperature=self.temperature)

  @property
  def prompts(self) -> np.ndarray:
    """Every prompt, int32[V, 1]."""
    return np.arange(self.tokens, dtype=np.int32)[:, None]

  @property
  def rewards(self) -> np.ndarray:
    """R of each completion to each prompt, float64[V, N]."""
    digits, right = self.space.completions, self.prompts + np.arange(self.length)
    of_tokens = np.mean(digits == right[:, None] % self.tokens, axis=-1)
    of_neighbours = np.mean((digits[:, 1:] - digits[:, :-1]) % self.tokens == 1, axis=-1)
    return (1 - self.coupling) * of_tokens + self.coupling * of_neighbours

  def draw_data(self, key, count: int):
    """int32[count, 1 + L], prompts and completions as the model is pretrained on: in order now and then."""
    of_prompt, of_order, of_others = jax.random.split(key, 3)
    prompt = jax.random.randint(of_prompt, (count,), 0, self.tokens)
    shape = self.length, count
    in_order = jax.random.uniform(of_order, shape) < self.order
    # A first token that is right is the prompt's own; others differ from those in order.
    others = jax.random.randint(of_others, shape, 1, self.tokens)

    def follow(before, drawn):
      token = (before + 1 + jnp.where(drawn[0], 0, drawn[1])) % self.tokens
      return token, token

    _, completion = jax.lax.scan(follow, prompt - 1, (in_order, others))
    return jnp.concatenate([prompt[:, None], completion.T], axis=1).astype(jnp.int32)

  def pretrained(self, seed: int):
    """Parameters of the model after masked-diffusion pretraining, which depend on the seed alone."""
    return _pretrained(self, jax.random.key(seed))


@functools.cache
def _space(config: DenoiserConfig, length: int) -> Space:
  return Space.of(config, length)  # which keeps its lists of states


@functools.partial(jax.jit, static_argnames=("problem",))
def _pretrained(problem: Problem, key):
  denoiser, optimizer = problem.denoiser, optax.adam(_PRETRAINING_RATE)
  of_weights, of_steps = jax.random.split(key)
  params = denoiser.init(of_weights)
  maskable = jnp.broadcast_to(jnp.arange(problem.length + 1) > 0, (_PRETRAINING_BATCH, problem.length + 1))

  def step(carry, key):
    params, state = carry
    of_data, of_masks = jax.random.split(key)
    tokens = problem.draw_data(of_data, _PRETRAINING_BATCH)
    loss = lambda params: masked_cross_entropy(denoiser, params, of_masks, tokens, maskable, prompt_length=1)[0]
    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return (optax.apply_updates(params, updates), state), None

  carry = params, optimizer.init(params)
  (params, _), _ = jax.lax.scan(step, carry, jax.random.split(of_steps, problem.pretraining))
  return params


def _as_flag(message: str) -> str:
  """What the sampler says of its fields, of the flags that they come from."""
  field, _, said = message.partition(": ")
  flags = {"sampler.completion_length": "--length", "sampler.steps": "--denoising_steps"}
  return f"{flags.get(field, field.replace('sampler.', '--'))}: {said}"
