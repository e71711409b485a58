"""What a sampler would draw in every state and how sure it would be, by the sampler's own functions."""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gdsd_jax.checks import require
from gdsd_jax.diffusion import block_step
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.diffusion.trajectory import drawn
from gdsd_jax.exact.states import Space
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.objectives.scores import scores_of_hidden
from gdsd_jax.objectives.token_scores import PLAIN


class SamplerTable(NamedTuple):
  """For every state, position and token, [S, L, V] each."""

  logp: np.ndarray  # float64, log-probability with which the sampler draws the token; it sums to 1 over the tokens
  confidence: np.ndarray  # float32, what the sampler orders its commits by if it has drawn it


def check_enumerable(config: SamplerConfig) -> None:
  """Raises ValueError for a sampler whose draws have no probabilities here."""
  require(not config.is_own, "sampler.kind", f"{config.kind} is one of your own, whose distribution is not known here")
  require(config.kind != "block", "sampler.kind", "block's draws are not enumerated here: choose llada or dream")
  require(config.cache == "none", "sampler.cache",
          "must be none: with a cache, what a step computes depends on earlier states, too")
  require(not config.early_stop, "sampler.early_stop", "must be False: it depends on the other rows of a batch")
  require(config.noise == "exact", "sampler.noise", "must be exact: the official noise is drawn from no softmax")


def sampler_table(denoiser: Denoiser, params, prompt, space: Space, config: SamplerConfig) -> SamplerTable:
  """The table of one prompt, int[P], without padding.

  Raises:
    ValueError: see `check_enumerable`.
  """
  check_enumerable(config)
  logp, confidence = _sampler_table(denoiser, params, _prompts(prompt, space), space.tokens(space.states), config,
                                    space.token_ids)
  logp = np.asarray(logp, np.float64)
  with np.errstate(divide="ignore"):
    total = np.log(np.sum(np.exp(logp), axis=-1, keepdims=True))  # 0 up to float32's rounding, which so is left out
  require(np.max(np.abs(total)) < 1e-3, "sampler", "its probabilities of the vocabulary's tokens do not add up to 1")
  return SamplerTable(logp - total, np.asarray(confidence))


def token_table(denoiser: Denoiser, params, prompt, space: Space) -> np.ndarray:
  """Scores of every token in every state as objectives see them, float32[S, L, V]: log p without temperature."""
  table = _token_table(denoiser, params, _prompts(prompt, space), space.tokens(space.states), space.token_ids)
  return np.asarray(table)


def _prompts(prompt, space: Space) -> np.ndarray:
  return np.broadcast_to(np.asarray(prompt, np.int32), (len(space.states), len(prompt)))


@functools.partial(jax.jit, static_argnames=("denoiser", "config", "token_ids"))
def _sampler_table(denoiser: Denoiser, params, prompt, states, config: SamplerConfig, token_ids):
  params = denoiser.cast(params)
  hidden, unconditional = _hidden(denoiser, params, prompt, states), None
  if config.cfg_scale > 0:
    unconditional = _hidden(denoiser, params, jnp.full_like(prompt, denoiser.config.mask_token_id), states)
  given = denoiser, params, hidden, unconditional
  greedy, _ = block_step.predict(*given, jax.random.key(0), config) if config.temperature == 0 else (None, None)

  def of_token(tokens):
    if greedy is not None:
      logp = jnp.where(tokens == greedy, 0.0, -jnp.inf)
    else:
      logp, _ = drawn(*given, tokens, config)
    return logp, block_step.predict(*given, jax.random.key(0), config, given=tokens)[1]

  return _of_tokens(of_token, states, token_ids)


@functools.partial(jax.jit, static_argnames=("denoiser", "token_ids"))
def _token_table(denoiser: Denoiser, params, prompt, states, token_ids):
  params = denoiser.cast(params)
  hidden, head = _hidden(denoiser, params, prompt, states), denoiser.head(params)
  return _of_tokens(lambda tokens: scores_of_hidden(head, hidden, tokens, PLAIN).plain, states, token_ids)


def _hidden(denoiser: Denoiser, params, prompt, states):
  return denoiser.hidden(params, jnp.concatenate([prompt, states], axis=1))[:, prompt.shape[1]:]


def _of_tokens(compute: Callable, states, token_ids):
  """compute(tokens int32[S, L]) with one token everywhere, for each of the V: a tree of [S, L, V]."""
  found = jax.lax.map(lambda token: compute(jnp.full(states.shape, token)), jnp.array(token_ids, jnp.int32))
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), found)
