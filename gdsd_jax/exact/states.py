"""The states of a completion whose vocabulary is small enough to write them all down.

A state is a row of digits, one a position: 0 … V−1 for the tokens, V for a mask. Its code is the number that they write
in base V + 1, the first position's digit being the lowest. Dimensions: V tokens that may be drawn, L positions, S
states, N = V^L completions.
"""

import dataclasses
import functools

import numpy as np

from gdsd_jax.checks import require
from gdsd_jax.models.config import DenoiserConfig

_MOST_STATES = 2**16  # with the logits of each in memory, and minutes to go through them


@dataclasses.dataclass(frozen=True)
class Space:
  """All states of completions of L positions, which hold V tokens of a denoiser's vocabulary, or masks."""

  token_ids: tuple[int, ...]  # the V tokens by their digits
  mask_id: int
  length: int

  def __post_init__(self):
    count = (len(self.token_ids) + 1) ** self.length
    require(count <= _MOST_STATES, "sampler.completion_length",
            f"{self.length} positions of {len(self.token_ids)} tokens or a mask have {count} states, too many to go"
            f" through; {_MOST_STATES} are the most")

  @classmethod
  def of(cls, config: DenoiserConfig, length: int) -> "Space":
    """The space of a denoiser's completions: all its tokens but the mask."""
    mask_id = config.mask_token_id
    return cls(tuple(token for token in range(config.vocab_size) if token != mask_id), mask_id, length)

  @property
  def size(self) -> int:
    """V."""
    return len(self.token_ids)

  @property
  def mask_digit(self) -> int:
    return self.size

  @property
  def place_values(self) -> np.ndarray:
    """What a digit of each position counts in a code, int64[L]."""
    return (self.size + 1) ** np.arange(self.length, dtype=np.int64)

  def code(self, digits) -> np.ndarray:
    """int64[...] codes of digits int[..., L]."""
    return np.asarray(digits, np.int64) @ self.place_values

  @functools.cached_property
  def states(self) -> np.ndarray:
    """Digits of every state by its code, int64[(V+1)^L, L]."""
    return np.arange((self.size + 1) ** self.length)[:, None] // self.place_values % (self.size + 1)

  @functools.cached_property
  def completions(self) -> np.ndarray:
    """Digits of every completion, int64[N, L]; row n is number n in base V, the first position's digit the lowest."""
    return all_digits(self.size, self.length)

  @functools.cached_property
  def masks(self) -> np.ndarray:
    """Every mask, bool[2^L, L]; row m is number m in base 2."""
    return all_digits(2, self.length).astype(bool)

  def tokens(self, digits) -> np.ndarray:
    """int32[...] token ids of digits int[...], the mask token for a mask."""
    return np.array([*self.token_ids, self.mask_id], np.int32)[digits]

  def number(self, tokens) -> np.ndarray:
    """int64[...], the rows of `completions` that tokens int[..., L] of whole completions are."""
    digits = np.searchsorted(self.token_ids, np.asarray(tokens))
    return digits @ self.size ** np.arange(self.length, dtype=np.int64)

  def masked(self, completions, masks) -> np.ndarray:
    """int64[...] codes of the states that completions, digits int[..., L], are under masks bool[..., L]."""
    return self.code(np.where(masks, self.mask_digit, completions))


def all_digits(base: int, length: int) -> np.ndarray:
  """Digits of every number of `length` digits, int64[base^length, length], the lowest first."""
  return np.arange(base**length)[:, None] // base ** np.arange(length) % base
