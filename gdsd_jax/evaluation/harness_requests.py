"""What the harness asks for a completion, as a sampler: what it cannot have is refused or told, never ignored."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
from typing import Any

from gdsd_jax.checks import require, require_at_least, require_one_of
from gdsd_jax.diffusion.config import ALGORITHMS, BLOCK_LENGTH, KINDS, SamplerConfig

_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # one setting under four names
_KNOWN = {*_LIMITS, "until", "do_sample", "temperature", "top_p", "top_k"}
_FIELD = "generation_kwargs"


@dataclasses.dataclass(frozen=True)
class GenerationDefaults:
  """How completions are sampled where a task does not say, and what replaces the task's settings."""

  max_gen_toks: int = 256  # longest completion
  steps_per_token: float = 0.5  # denoising steps for each token
  block_length: int | None = None  # tokens of a block; None: 32 with llada, one block with dream
  kind: str = "llada"  # which sampler, "llada" or "dream"
  # These replace what tasks ask for, most of which are written for greedy models; None leaves it to the task.
  temperature: float | None = None
  top_p: float | None = None
  alg: str | None = None  # of Dream
  eos_penalty: float = 0.0  # as in `SamplerConfig`

  def __post_init__(self):
    require_at_least(self, "", max_gen_toks=1, eos_penalty=0)
    require(self.block_length is None or self.block_length >= 1, "block_length",
            f"must be at least 1, not {self.block_length}")
    share = self.steps_per_token
    require(0 < share <= 1, "steps_per_token", f"must lie in (0, 1], not {share}")
    require_one_of("kind", self.kind, KINDS)
    require(self.temperature is None or 0 <= self.temperature < math.inf, "temperature",
            f"must be a number and not negative, not {self.temperature}")
    require(self.top_p is None or 0 < self.top_p <= 1, "top_p", f"must lie in (0, 1], not {self.top_p}")
    require_one_of("alg", self.alg or ALGORITHMS[0], ALGORITHMS)
    for name in ("top_p", "alg"):
      require(getattr(self, name) is None or self.kind == "dream", name, "only kind=dream has it")

  def sampler(self, gen_kwargs: Mapping[str, Any], tell: Callable[[str], None] = lambda said: None) -> SamplerConfig:
    """The sampler of a request. Without do_sample and a temperature it is greedy.

    `tell` is called with a line for each setting that has no effect. Raises ValueError.
    """
    limit = self._limit(gen_kwargs, tell)
    block = min(self.block_length or (BLOCK_LENGTH if self.kind == "llada" else limit), limit)
    blocks = limit // block  # the limit is a limit: never rounded up
    temperature, top_p, top_k = self._sampling(gen_kwargs, tell)
    for name in sorted(set(gen_kwargs) - _KNOWN):
      tell(f"{name}={gen_kwargs[name]!r} has no effect on a denoiser")
    algorithm = {"alg": self.alg} if self.alg else {}
    try:
      return SamplerConfig(
        kind=self.kind, completion_length=blocks * block, steps=blocks * max(round(block * self.steps_per_token), 1),
        temperature=temperature, block_length=block, top_p=top_p, top_k=top_k,
        eos_penalty=self.eos_penalty, **algorithm,
      )
    except ValueError as error:
      raise ValueError(f"{_FIELD}: {str(error).removeprefix('sampler.')}") from None

  def _limit(self, gen_kwargs, tell) -> int:
    given = {name: _number(gen_kwargs, name, whole=True) for name in _LIMITS if gen_kwargs.get(name) is not None}
    name, limit = next(iter(given.items()), ("max_gen_toks", self.max_gen_toks))
    require(limit >= 1, f"{_FIELD}: {name}", f"must be at least 1, not {limit:g}")
    for other, value in given.items():
      if value != limit:
        tell(f"{other}={value:g} has no effect beside {name}={limit:g}")
    return int(limit)

  def _sampling(self, gen_kwargs, tell) -> tuple[float, float | None, int | None]:
    """(temperature, top_p, top_k), None for what is off."""
    do_sample, temperature = gen_kwargs.get("do_sample"), _number(gen_kwargs, "temperature")
    require(do_sample in (None, True, False), f"{_FIELD}: do_sample", f"must be true or false, not {do_sample!r}")
    if self.temperature is not None:
      if temperature not in (None, 0, self.temperature):
        tell(f"temperature={temperature:g} has no effect beside --model_args temperature={self.temperature:g}")
      temperature = self.temperature
    elif do_sample is False and temperature:
      tell(f"temperature={temperature:g} has no effect where do_sample is false (--gen_kwargs do_sample=true)")
      temperature = 0.0
    elif do_sample and temperature == 0:
      tell("do_sample=true has no effect at temperature=0")
    elif temperature is None:
      temperature = 1.0 if do_sample else 0.0
    top_p, top_k = _number(gen_kwargs, "top_p"), _number(gen_kwargs, "top_k", whole=True)
    top_p = top_p if self.top_p is None else self.top_p
    cuts = {"top_p": None if top_p == 1 else top_p, "top_k": int(top_k) if top_k and top_k > 0 else None}
    if not temperature:  # To a greedy request they mean nothing, yet Dream's confidence would depend on them.
      for name, value in cuts.items():
        if value is not None:
          tell(f"{name}={value:g} has no effect without a temperature")
      return 0.0, None, None
    return temperature, cuts["top_p"], cuts["top_k"]


def _number(gen_kwargs: Mapping[str, Any], name: str, whole: bool = False) -> float | None:
  value = gen_kwargs.get(name)
  try:
    number = None if value is None else float(value)
  except (TypeError, ValueError):
    number = math.nan
  fits = number is None or not isinstance(value, bool) and math.isfinite(number) and not (whole and number % 1)
  require(fits, f"{_FIELD}: {name}", f"must be a {'whole ' if whole else ''}number, not {value!r}")
  return number


def stops_of(gen_kwargs: Mapping[str, Any]) -> Sequence[str]:
  """The texts that a completion ends before. Raises ValueError."""
  until = gen_kwargs.get("until") or []
  stops = [until] if isinstance(until, str) else until
  fits = isinstance(stops, Sequence) and all(isinstance(stop, str) for stop in stops)
  require(fits, f"{_FIELD}: until", f"must be a text or a list of texts, not {until!r}")
  return stops


def cut_at(text: str, stops: Sequence[str]) -> str:
  """The text before the first of the strings."""
  for stop in filter(None, stops):
    text = text.partition(stop)[0]
  return text
