"""What a denoiser is: the sizes and special tokens that its config.json states."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class DenoiserConfig:
  """Architecture of a masked diffusion denoiser. Hashable, so it can be a static argument of `jax.jit`.

  Attributes:
    vocab_size: rows of the embedding and columns of the LM head (V).
    hidden_size: width of the residual stream.
    num_layers: transformer blocks.
    num_heads, num_kv_heads: query heads, and key/value heads (fewer: grouped-query attention).
    head_dim: width of one head.
    mlp_size: inner width of the SwiGLU MLP.
    rope_theta: base of the rotary frequencies.
    norm_epsilon: added to the mean square in RMSNorm.
    max_positions: longest prompt plus completion, in tokens.
    qkv_bias: whether the query, key and value projections have a bias.
    tied_head: whether the LM head is the transposed embedding.
    shifted_output: whether the network's output at position i predicts token i + 1, as in models that grew out of
      autoregressive ones; the denoiser undoes it, so its own output is aligned either way.
    positions_skip_padding: whether rotary positions count real tokens alone, instead of padding too.
    mask_token_id, eos_token_id, pad_token_id: special tokens.
    family: the Hugging Face layout it came from (`model_type` of config.json).
  """

  vocab_size: int
  hidden_size: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_size: int
  rope_theta: float
  norm_epsilon: float
  max_positions: int
  mask_token_id: int
  eos_token_id: int
  pad_token_id: int
  qkv_bias: bool = False
  tied_head: bool = False
  shifted_output: bool = False
  positions_skip_padding: bool = False
  family: str = "llada"

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.type is int and type(value) is not int:
        raise ValueError(f"{field.name} must be an integer, not {value!r}")
      if field.type is bool and type(value) is not bool:
        raise ValueError(f"{field.name} must be true or false, not {value!r}")
      if field.type is float:
        if type(value) not in (int, float) or not 0 < value < math.inf:
          raise ValueError(f"{field.name} must be a positive number, not {value!r}")
        object.__setattr__(self, field.name, float(value))  # JSON writes 1000000.0 as 1000000 too
    for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_size",
                 "max_positions"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
    if self.num_heads % self.num_kv_heads:
      raise ValueError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})")
    if self.head_dim % 2:
      raise ValueError(f"head_dim ({self.head_dim}) must be even for rotary positions")
    for name in ("mask_token_id", "eos_token_id", "pad_token_id"):
      if not 0 <= getattr(self, name) < self.vocab_size:
        raise ValueError(f"{name} ({getattr(self, name)}) must lie in the vocabulary of {self.vocab_size}")
