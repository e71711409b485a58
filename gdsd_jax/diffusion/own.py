"""A sampler of the user's own: what it returns is checked, and mistakes are told with their file and line."""

import jax
import jax.numpy as jnp
import numpy as np

from gdsd_jax import own_code
from gdsd_jax.checks import require
from gdsd_jax.diffusion.config import Rollout, SamplerConfig
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.models.denoiser import Denoiser


def sample(denoiser: Denoiser, params, prompt, prompt_mask, key, config: SamplerConfig) -> Rollout:
  """What the user's sampler gives. Raises ValueError, one line with its file and line, as it is traced."""
  function = own_code.load(config.kind, "sampler.kind")
  if prompt_mask is None:
    prompt_mask = jnp.ones(prompt.shape, bool)
  try:
    rollout = function(denoiser, params, prompt.astype(jnp.int32), prompt_mask, key, config, **dict(config.own))
  except own_code.RAISED as error:  # the user's own
    raise ValueError(f"sampler.kind: {own_code.described_briefly(error, function)}") from error
  said, shape = f"{own_code.at(function)}{config.kind}", (len(prompt), config.completion_length)
  require(isinstance(rollout, Rollout), "sampler.kind", f"{said} must give a gdsd_jax.Rollout, not {rollout!r:.80}")
  for name, dtype in (("tokens", jnp.int32), ("confidence", jnp.float32)):
    array = getattr(rollout, name)
    found = f"{array.dtype}{list(array.shape)}" if isinstance(array, jax.Array) else f"{array!r:.80}"
    require(isinstance(array, jax.Array) and array.shape == shape and array.dtype == dtype, "sampler.kind",
            f"{said} must give {name} that are {jnp.dtype(dtype).name}{list(shape)}, not {found}")
  return rollout


def check_tokens(tokens: np.ndarray, config: SamplerConfig, model: DenoiserConfig) -> None:
  """Raises ValueError where an own sampler's tokens, int[B, L], hold a mask or what is no token; ours never do."""
  if not config.is_own:
    return
  wrong = (tokens < 0) | (tokens >= model.vocab_size) | (tokens == model.mask_token_id)
  if wrong.any():
    token, at = tokens[wrong][0], own_code.at(own_code.load(config.kind, "sampler.kind"))
    said = "the mask, of which none may be left" if token == model.mask_token_id else f"none of {model.vocab_size}"
    raise ValueError(f"sampler.kind: {at}{config.kind} gave the token {token}, {said}")


def try_out(denoiser: Denoiser, config: SamplerConfig, rows: int, width: int) -> None:
  """Traces an own sampler for so many prompts of so many tokens; nothing is compiled. Raises as `sample`."""
  if config.is_own:
    array = lambda dtype: jax.ShapeDtypeStruct((rows, width), dtype)
    traced = lambda params, *arguments: sample(denoiser, params, *arguments, config)
    key = jax.eval_shape(lambda: jax.random.key(0))
    jax.eval_shape(traced, denoiser.abstract_params(), array(jnp.int32), array(bool), key)
