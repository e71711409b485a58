"""LLaDA's network in plain PyTorch (arXiv 2502.09992), written anew, for comparison.

It reads the Hugging Face and PEFT folders that this package writes.
"""

from safetensors.torch import load_file
import torch
from torch import nn
import torch.nn.functional as F

from gdsd_jax.models.config import DenoiserConfig

_MODULE = "model.transformer."


class Norm(nn.Module):
  """Root-mean-square norm in float32."""

  def __init__(self, size: int, epsilon: float):
    super().__init__()
    self.weight, self.epsilon = nn.Parameter(torch.ones(size)), epsilon

  def forward(self, x):
    x32 = x.float()
    x32 = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.epsilon)
    return (x32 * self.weight.float()).to(x.dtype)


class Linear(nn.Linear):
  """A projection in its input's dtype, whatever its weight is held in, and the low-rank update where there is one."""

  lora_scale = 0.0  # alpha / rank; 0 without an adapter

  def __init__(self, inputs: int, outputs: int):
    super().__init__(inputs, outputs, bias=False)

  def adapt(self, a, b, scale: float) -> None:
    self.lora_a, self.lora_b, self.lora_scale = nn.Parameter(a), nn.Parameter(b), scale

  def forward(self, x):
    projected = F.linear(x, self.weight.to(x.dtype))
    if self.lora_scale:
      low = F.linear(x, self.lora_a.to(x.dtype))
      projected = projected + self.lora_scale * F.linear(low, self.lora_b.to(x.dtype))
    return projected


class Block(nn.Module):
  """Attention over all tokens and a SwiGLU MLP, under the published names."""

  def __init__(self, config: DenoiserConfig):
    super().__init__()
    self.config = config
    D, F_, H = config.hidden_size, config.mlp_size, config.head_dim
    self.attn_norm, self.ff_norm = Norm(D, config.norm_epsilon), Norm(D, config.norm_epsilon)
    self.q_proj, self.attn_out = Linear(D, config.num_heads * H), Linear(config.num_heads * H, D)
    self.k_proj, self.v_proj = Linear(D, config.num_kv_heads * H), Linear(D, config.num_kv_heads * H)
    self.ff_proj, self.up_proj, self.ff_out = Linear(D, F_), Linear(D, F_), Linear(F_, D)

  def forward(self, x):
    normed = self.attn_norm(x)
    query, key, value = (
      projection(normed).unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)  # [B, heads, T, H]
      for projection in (self.q_proj, self.k_proj, self.v_proj)
    )
    query, key = (rotate(y, self.config.rope_theta) for y in (query, key))
    grouped = self.config.num_kv_heads != self.config.num_heads
    attended = F.scaled_dot_product_attention(query, key, value, enable_gqa=grouped)
    x = x + self.attn_out(attended.transpose(1, 2).flatten(2))
    normed = self.ff_norm(x)
    return x + self.ff_out(F.silu(self.ff_proj(normed)) * self.up_proj(normed))


def rotate(x, theta: float):
  """Rotary positions in float32 (half-split layout). x: [B, heads, T, H]."""
  half = x.shape[-1] // 2
  frequencies = theta ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
  angles = torch.arange(x.shape[2], device=x.device, dtype=torch.float32)[:, None] * frequencies
  cos, sin = angles.cos(), angles.sin()
  first, second = x.float().chunk(2, dim=-1)
  return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


class Llada(nn.Module):
  """LLaDA's network: int[B, T] tokens to float32[B, T, V] logits of every position."""

  def __init__(self, config: DenoiserConfig, dtype: torch.dtype):
    super().__init__()
    self.config, self.dtype = config, dtype
    self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
    self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
    self.ln_f = Norm(config.hidden_size, config.norm_epsilon)
    self.ff_out = Linear(config.hidden_size, config.vocab_size)

  def forward(self, tokens):
    x = self.wte(tokens).to(self.dtype)
    for block in self.blocks:
      x = block(x)
    return self.ff_out(self.ln_f(x)).float()

  def base_model(self) -> "Llada":
    """The network without its adapter; the other weights are shared."""
    with torch.device("meta"):
      base = Llada(self.config, self.dtype)
    base.load_state_dict(self.state_dict(), strict=False, assign=True)
    return base.requires_grad_(False)


def random(config: DenoiserConfig, dtype: str, device: str) -> Llada:
  """The network with random weights, made where they stay and held in `dtype`."""
  with torch.device("meta"):
    model = Llada(config, getattr(torch, dtype))
  model = model.to(getattr(torch, dtype)).to_empty(device=device)
  with torch.no_grad():
    for weight in model.parameters():
      if weight.ndim == 1:
        weight.fill_(1.0)
      else:
        weight.normal_(std=weight.shape[1] ** -0.5)
  return model.eval().requires_grad_(False)


def adapt_all(model: Llada, rank: int, scale: float) -> None:
  """A random adapter of all projections of the blocks, which alone is trained; held in float32."""
  for block in model.blocks:
    for linear in (module for module in block.modules() if isinstance(module, Linear)):
      make = lambda *shape, like=linear.weight: 0.01 * torch.randn(shape, device=like.device)
      linear.adapt(make(rank, linear.in_features), make(linear.out_features, rank), scale)


def load(config: DenoiserConfig, model_folder, dtype: str, adapter_folder=None, lora_scale: float = 0.0,
         device: str = "cpu") -> Llada:
  """The network of a Hugging Face folder; with a PEFT folder adapted by it and otherwise frozen.

  Matrices are multiplied in `dtype`, "float32" or "bfloat16"; weights keep the type they have in the folder.
  """
  with torch.device("meta"):
    model = Llada(config, getattr(torch, dtype))
  state = {}
  for file in sorted(model_folder.glob("*.safetensors")):
    loaded = load_file(file, device=device)
    # Cloned: otherwise the weights of a CPU are the file's own pages, read when they are first used.
    state |= {name.removeprefix(_MODULE): weight.clone() for name, weight in loaded.items()}
  model.load_state_dict(state, assign=True)
  if adapter_folder is not None:
    model.requires_grad_(False)
    factors = load_file(adapter_folder / "adapter_model.safetensors", device=device)
    for name, a in factors.items():
      if name.endswith(".lora_A.weight"):
        path = name.partition(_MODULE)[2].removesuffix(".lora_A.weight")
        model.get_submodule(path).adapt(a, factors[name.replace("lora_A", "lora_B")], lora_scale)
  return model.eval()
