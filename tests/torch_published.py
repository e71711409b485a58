"""The published denoisers in PyTorch, under the module names that PEFT finds them by. Imported where torch is there."""

import numpy as np
from safetensors.torch import load_file
import torch


class Norm(torch.nn.Module):
  def __init__(self, size, epsilon):
    super().__init__()
    self.weight, self.epsilon = torch.nn.Parameter(torch.ones(size)), epsilon

  def forward(self, x):
    return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon)


def rotate(x, theta):  # x: [B, heads, T, H]
  half = x.shape[-1] // 2
  angles = torch.arange(x.shape[2])[:, None] * theta ** (-torch.arange(half) / half)
  cos, sin = angles.cos(), angles.sin()
  first, second = x[..., :half], x[..., half:]
  return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


# Module names of each layout: (attention, output, gate, up, down, norms).
LAYOUTS = {
  "llada": dict(prefix="model.transformer.blocks", attention="", output="attn_out", mlp="", gate="ff_proj",
                up="up_proj", down="ff_out", norms=("attn_norm", "ff_norm"), embedding="model.transformer.wte",
                final="model.transformer.ln_f", head="model.transformer.ff_out"),
  "dream": dict(prefix="model.layers", attention="self_attn.", output="o_proj", mlp="mlp.", gate="gate_proj",
                up="up_proj", down="down_proj", norms=("input_layernorm", "post_attention_layernorm"),
                embedding="model.embed_tokens", final="model.norm", head="lm_head"),
}


class TorchDenoiser(torch.nn.Module):
  """A plain PyTorch denoiser under the module names of a published layout; its logits are those of the raw network."""

  def __init__(self, config):
    super().__init__()
    c, names = config, LAYOUTS[config.family]
    self.denoiser_config, self.names = c, names
    linear = lambda i, o, bias=False: torch.nn.Linear(i, o, bias=bias)
    self.place(names["embedding"], torch.nn.Embedding(c.vocab_size, c.hidden_size))
    for layer in range(c.num_layers):
      block = f"{names['prefix']}.{layer}."
      for name, heads in (("q_proj", c.num_heads), ("k_proj", c.num_kv_heads), ("v_proj", c.num_kv_heads)):
        self.place(f"{block}{names['attention']}{name}", linear(c.hidden_size, heads * c.head_dim, c.qkv_bias))
      self.place(f"{block}{names['attention']}{names['output']}", linear(c.num_heads * c.head_dim, c.hidden_size))
      for name in ("gate", "up"):
        self.place(f"{block}{names['mlp']}{names[name]}", linear(c.hidden_size, c.mlp_size))
      self.place(f"{block}{names['mlp']}{names['down']}", linear(c.mlp_size, c.hidden_size))
      for name in names["norms"]:
        self.place(f"{block}{name}", Norm(c.hidden_size, c.norm_epsilon))
    self.place(names["final"], Norm(c.hidden_size, c.norm_epsilon))
    self.place(names["head"], linear(c.hidden_size, c.vocab_size))

  def place(self, path, module):
    *parents, name = path.split(".")
    owner = self
    for parent in parents:
      if not hasattr(owner, parent):
        owner.add_module(parent, torch.nn.Module())
      owner = getattr(owner, parent)
    owner.add_module(name, module)

  def forward(self, tokens):
    c, names = self.denoiser_config, self.names
    get = self.get_submodule
    x = get(names["embedding"])(tokens)
    split = lambda y, heads: y.view(*y.shape[:2], heads, c.head_dim).transpose(1, 2)
    for layer in range(c.num_layers):
      block = f"{names['prefix']}.{layer}."
      attention, mlp = block + names["attention"], block + names["mlp"]
      y = get(block + names["norms"][0])(x)
      query = rotate(split(get(attention + "q_proj")(y), c.num_heads), c.rope_theta)
      key, value = (split(get(attention + name)(y), c.num_kv_heads) for name in ("k_proj", "v_proj"))
      key = rotate(key, c.rope_theta)
      repeats = c.num_heads // c.num_kv_heads
      key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
      y = torch.nn.functional.scaled_dot_product_attention(query, key, value)
      x = x + get(attention + names["output"])(y.transpose(1, 2).flatten(2))
      y = get(block + names["norms"][1])(x)
      gated = torch.nn.functional.silu(get(mlp + names["gate"])(y)) * get(mlp + names["up"])(y)
      x = x + get(mlp + names["down"])(gated)
    return get(names["head"])(get(names["final"])(x))


def load_torch(folder, config):
  model = TorchDenoiser(config)
  weights = {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
  model.load_state_dict(weights)
  return model.eval()


def logits_of(model, tokens):
  """float32[B, T, V] of the raw network, from int[B, T] in NumPy."""
  with torch.no_grad():
    return model(torch.from_numpy(np.asarray(tokens))).numpy()
