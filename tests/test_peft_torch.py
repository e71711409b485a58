"""Exported adapters in PEFT itself, on PyTorch models with the published module names; skips without torch and peft."""

import jax
import numpy as np
import pytest

import gdsd_jax
from gdsd_jax.huggingface.adapters import load_adapter, save_adapter
from gdsd_jax.models.lora import add_adapter, LoraConfig, merge

torch = pytest.importorskip("torch", reason="needs torch (and peft) to compare with")
peft = pytest.importorskip("peft", reason="needs peft to compare with")


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
  from safetensors.torch import load_file

  model = TorchDenoiser(config)
  weights = {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
  model.load_state_dict(weights)
  return model.eval()


def aligned(config, logits):
  logits = logits.detach().numpy()
  return np.concatenate([logits[:, :1], logits[:, :-1]], axis=1) if config.shifted_output else logits


@pytest.fixture(params=["llada", "dream"])
def published(request, goldens):
  folder = goldens / f"{request.param}_tiny"
  denoiser, params = gdsd_jax.load_pretrained(folder / "hf")
  return denoiser, params, load_torch(folder / "hf", denoiser.config), np.load(folder / "goldens.npz")


@pytest.mark.parametrize("targets", [("q", "k", "v", "o", "gate", "up", "down"), ("v", "down")])
def test_peft_computes_the_same_logits(published, tmp_path, targets):
  base, params, model, data = published
  tokens = data["forward/input_ids"]
  with torch.no_grad():  # the PyTorch model is the published one, or the comparison would mean nothing
    np.testing.assert_allclose(model(torch.from_numpy(tokens)).numpy(), data["forward/logits"], atol=2e-4)
  denoiser, params = add_adapter(base, params, LoraConfig(8, 16.0, 0.0, targets), jax.random.key(0))
  params["lora"] = jax.tree.map(
    lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape), params["lora"]
  )
  save_adapter(tmp_path, denoiser, params, base_model="published")
  adapted = peft.PeftModel.from_pretrained(model, tmp_path)
  with torch.no_grad():
    theirs = aligned(base.config, adapted(torch.from_numpy(tokens)))
  ours = denoiser.apply(params, tokens)
  assert np.abs(ours - aligned(base.config, torch.from_numpy(data["forward/logits"]))).max() > 0.1
  np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


def test_an_adapter_that_peft_made_loads_here(published, tmp_path):
  base, params, model, data = published
  names = LAYOUTS[base.config.family]
  config = peft.LoraConfig(
    r=4, lora_alpha=6, target_modules=["q_proj", names["gate"], names["up"]], init_lora_weights=False
  )
  adapted = peft.get_peft_model(model, config)
  adapted.save_pretrained(tmp_path)
  denoiser, params = load_adapter(tmp_path, base, params)
  assert denoiser.lora.targets == ("q", "gate", "up") and denoiser.lora.scale == 1.5
  with torch.no_grad():
    theirs = aligned(base.config, adapted(torch.from_numpy(data["forward/input_ids"])))
  np.testing.assert_allclose(denoiser.apply(params, data["forward/input_ids"]), theirs, atol=1e-4, rtol=0)


def test_a_merged_export_is_the_adapted_model_in_pytorch(published, tmp_path):
  base, params, _, data = published
  denoiser, params = add_adapter(base, params, LoraConfig(8, 16.0, 0.0), jax.random.key(0))
  params["lora"] = jax.tree.map(lambda x: x + 0.05, params["lora"])
  gdsd_jax.save_pretrained(tmp_path, base, merge(params, denoiser.lora))
  with torch.no_grad():
    theirs = aligned(base.config, load_torch(tmp_path, base.config)(torch.from_numpy(data["forward/input_ids"])))
  np.testing.assert_allclose(denoiser.apply(params, data["forward/input_ids"]), theirs, atol=2e-4, rtol=0)
