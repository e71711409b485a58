"""What a denoiser is: the sizes and special tokens that its config.json states."""

import dataclasses
import math

_MOST_LAYERS = 10_000  # no model has so many; each is looked for in the files
_KINDS = {int: "an integer", bool: "true or false", float: "a positive number"}


@dataclasses.dataclass(frozen=True)
class DenoiserConfig:
  """Architecture of a masked diffusion denoiser. Hashable, so it can be a static argument of `jax.jit`."""

  vocab_size: int  # rows of the embedding and columns of the LM head (V)
  hidden_size: int  # width of the residual stream
  num_layers: int  # transformer blocks
  num_heads: int  # query heads
  num_kv_heads: int  # key/value heads; fewer than query heads: grouped-query attention
  head_dim: int  # width of one head
  mlp_size: int  # inner width of the SwiGLU MLP
  rope_theta: float  # base of the rotary frequencies
  norm_epsilon: float  # added to the mean square in RMSNorm
  max_positions: int  # longest prompt plus completion, in tokens
  mask_token_id: int
  eos_token_id: int
  pad_token_id: int
  qkv_bias: bool = False  # whether the query, key and value projections have a bias
  tied_head: bool = False  # whether the LM head is the transposed embedding
  # Whether the network's output at position i predicts token i + 1, as in models that grew out of autoregressive ones.
  # The denoiser undoes it, so its own output is aligned either way.
  shifted_output: bool = False
  positions_skip_padding: bool = False  # whether rotary positions count real tokens alone, instead of padding too
  rope_factor: float = 1.0  # rotary frequencies are divided by it (linear scaling, for longer texts)
  family: str = "llada"  # whose kin it is, or a layout of one's own, FILE.py:NAME
  # How its files call things: as its family publishes them, or as a class of transformers' own does ("transformers").
  # That is no matter to what it computes.
  layout: str = dataclasses.field(default="published", compare=False)

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value, fits = getattr(self, field.name), type(getattr(self, field.name)) is field.type
      if field.type is float:
        fits = type(value) in (int, float) and 0 < value < math.inf
      if field.type in _KINDS and not fits:
        raise ValueError(f"{field.name} must be {_KINDS[field.type]}, not {value!r}")
      if field.type is float:
        object.__setattr__(self, field.name, float(value))  # JSON writes 1000000.0 as 1000000 too
    for name, value in vars(self).items():
      if type(value) is int and value < 1 and not name.endswith("_token_id"):
        raise ValueError(f"{name} must be at least 1, not {value}")
    if self.num_layers > _MOST_LAYERS:
      raise ValueError(f"num_layers must be at most {_MOST_LAYERS}, not {self.num_layers}")
    if self.num_heads % self.num_kv_heads:
      raise ValueError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})")
    if self.head_dim % 2:
      raise ValueError(f"head_dim ({self.head_dim}) must be even for rotary positions")
    for name in ("mask_token_id", "eos_token_id", "pad_token_id"):
      if not 0 <= getattr(self, name) < self.vocab_size:
        raise ValueError(f"{name} ({getattr(self, name)}) must lie in the vocabulary of {self.vocab_size}")

  @property
  def end_token_ids(self) -> tuple[int, ...]:
    """What fills a completion behind its text: end of text and padding, which are one in the published models."""
    return tuple(sorted({self.eos_token_id, self.pad_token_id} - {self.mask_token_id}))
