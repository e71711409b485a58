"""What a denoiser is: the sizes and special tokens that its config.json states."""

import dataclasses
import math

from gdsd_jax.checks import require

_MOST_LAYERS = 10_000  # no model has so many; each is looked for in the files
_KINDS = {int: "an integer", bool: "true or false", float: "a positive number"}
ROUTERS = ("softmax", "sigmoid")


@dataclasses.dataclass(frozen=True)
class ExpertsConfig:
  """A mixture of experts in the place of the MLP: each token goes through a few of many small ones."""

  count: int  # experts of a layer (E)
  per_token: int  # experts that a token goes through
  size: int  # inner width of an expert's SwiGLU
  router: str = "softmax"  # an expert's score: its share in a softmax over all of them, or its own sigmoid
  normalised: bool = False  # whether the scores of a token's experts, their outputs' weights, are divided by their sum
  scale: float = 1.0  # the outputs' weights are multiplied by it
  selection_bias: bool = False  # whether a bias is added to the scores to choose experts, and only for that
  groups: int = 1  # equal parts of the experts, of which a token uses those with the largest sum of two scores
  groups_per_token: int = 1  # groups that a token's experts are chosen from
  shared_size: int = 0  # inner width of what every token goes through besides; 0 for nothing
  dense_layers: int = 0  # first layers, which have an MLP of `mlp_size` instead

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.type is float and type(value) in (int, float) and 0 < value < math.inf:
        object.__setattr__(self, field.name, float(value))
      elif type(value) is not field.type:
        raise ValueError(f"{field.name} of experts must be {_KINDS.get(field.type, 'a word')}, not {value!r}")
      if field.type is int and value < (field.name not in ("shared_size", "dense_layers")):
        raise ValueError(f"{field.name} of experts must not be {value}")
    if self.router not in ROUTERS:
      raise ValueError(f"the experts' router is {self.router!r}; known are {', '.join(ROUTERS)}")
    if self.count % self.groups or self.groups_per_token > self.groups:
      raise ValueError(f"{self.count} experts cannot be chosen from {self.groups_per_token} of {self.groups} equal"
                       " groups")
    choice = self.count // self.groups * self.groups_per_token
    if self.per_token > choice:
      raise ValueError(f"{self.per_token} experts of a token are more than the {choice} that it may choose from")


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
  # Tokens of a block (K). A token sees its own block and all earlier ones, blocks being counted from the first token
  # that is no padding, as positions are. None: every token sees every other.
  block_length: int | None = None
  qk_norm: bool = False  # whether queries and keys are RMS-normed, head by head, before they are rotated
  rotary_share: float = 1.0  # the first part of a head's width, which is rotated
  experts: ExpertsConfig | None = None  # None: an MLP in every layer
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
    if self.rotary_share > 1 or self.rotary_dim < 2 or self.rotary_dim % 2:
      raise ValueError(f"rotary_share ({self.rotary_share}) of head_dim ({self.head_dim}) must be an even number of"
                       " dimensions")
    self._check_blocks_and_experts()
    for name in ("mask_token_id", "eos_token_id", "pad_token_id"):
      if not 0 <= getattr(self, name) < self.vocab_size:
        raise ValueError(f"{name} ({getattr(self, name)}) must lie in the vocabulary of {self.vocab_size}")

  def _check_blocks_and_experts(self):
    if self.block_length is not None:
      if type(self.block_length) is not int:
        raise ValueError(f"block_length must be an integer, not {self.block_length!r}")
      if not self.positions_skip_padding:
        raise ValueError("block_length needs positions_skip_padding: blocks are counted from the first real token")
      if self.shifted_output:
        raise ValueError("block_length and shifted_output: a block's first token would be predicted from another block")
    if self.experts is not None and self.experts.dense_layers >= self.num_layers:
      raise ValueError(f"dense_layers ({self.experts.dense_layers}) must be fewer than num_layers ({self.num_layers})")

  def require_bidirectional(self, field: str, what: str) -> None:
    """Raises ValueError, one line naming the field, where `what` would compute another model than this one."""
    require(self.block_length is None, field, f"{what} knows models whose tokens all see each other; those of the"
            f" family {self.family} attend from block to block, for which there is none yet")

  @property
  def rotary_dim(self) -> int:
    """Dimensions of a head that are rotated."""
    return int(self.head_dim * self.rotary_share)

  @property
  def end_token_ids(self) -> tuple[int, ...]:
    """What fills a completion behind its text: end of text and padding, which are one in the published models."""
    return tuple(sorted({self.eos_token_id, self.pad_token_id} - {self.mask_token_id}))
