"""A straightforward PyTorch version of the official loops, for comparison: LLaDA's network, its sampler, a GDSD update.

It does what the published code does (LLaDA's sampler, arXiv 2502.09992; GDSD's trainer, arXiv 2605.29398), written
anew: logits of every position at every denoising step, their softmax in float64, a loop over the rows to commit; scores
from float32 logits of the whole sequence, all of whose graphs wait for one backward pass. It reads the Hugging Face and
PEFT folders that this package writes.
"""

import contextlib
import copy
import math

from safetensors.torch import load_file
import torch
from torch import nn
import torch.nn.functional as F

from gdsd_jax.models.config import DenoiserConfig

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
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

  lora_scale = 0.0  # alpha / rank; 0 without an adapter, or with it switched off

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

  def __init__(self, config: DenoiserConfig, dtype: str):
    super().__init__()
    self.config, self.dtype = config, _DTYPES[dtype]
    self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
    self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
    self.ln_f = Norm(config.hidden_size, config.norm_epsilon)
    self.ff_out = Linear(config.hidden_size, config.vocab_size)

  def forward(self, tokens):
    x = self.wte(tokens).to(self.dtype)
    for block in self.blocks:
      x = block(x)
    return self.ff_out(self.ln_f(x)).float()

  @contextlib.contextmanager
  def base_model(self):
    """Switches the adapter off."""
    adapted = [module for module in self.modules() if isinstance(module, Linear) and module.lora_scale]
    scales = [module.lora_scale for module in adapted]
    for module in adapted:
      module.lora_scale = 0.0
    try:
      yield self
    finally:
      for module, scale in zip(adapted, scales):
        module.lora_scale = scale


def load(config: DenoiserConfig, model_folder, dtype: str, adapter_folder=None, lora_scale: float = 0.0,
         device: str = "cpu") -> Llada:
  """The network of a Hugging Face folder; with a PEFT folder adapted by it and otherwise frozen.

  Args:
    config: of the folder; a LLaDA layout without tied weights or biases.
    model_folder: with safetensors. Weights keep the type they have there.
    dtype: of matrix products, "float32" or "bfloat16".
    adapter_folder: PEFT folder, or None.
    lora_scale: alpha / rank of the adapter.
    device: PyTorch's name of it.
  """
  with torch.device("meta"):
    model = Llada(config, dtype)
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


@torch.no_grad()
def sample(model: Llada, prompt, completion_length: int, block_length: int, steps: int, temperature: float = 0.0):
  """LLaDA's published sampler with low-confidence remasking; the mask token is never chosen.

  Args:
    model: see `load`.
    prompt: int[B, P], without padding.
    completion_length, block_length, steps, temperature: as of `SamplerConfig`.

  Returns:
    int[B, L] tokens of the completions.
  """
  batch, prompt_length = prompt.shape
  mask_id = model.config.mask_token_id
  blank = torch.full((batch, completion_length), mask_id, device=prompt.device)
  x = torch.cat([prompt, blank], dim=1)
  num_blocks = completion_length // block_length
  for block in range(num_blocks):
    end = prompt_length + (block + 1) * block_length
    steps_of_block = steps // num_blocks
    for step in range(steps_of_block):
      commit = block_length // steps_of_block + (step < block_length % steps_of_block)
      masked = x == mask_id
      logits = model(x)
      probabilities = logits.double().softmax(dim=-1)
      logits[..., mask_id] = -math.inf
      predicted = _with_gumbel_noise(logits, temperature).argmax(dim=-1)
      confidence = probabilities.gather(-1, predicted[..., None]).squeeze(-1)
      confidence[:, end:] = -math.inf
      confidence = torch.where(masked, confidence, -math.inf)
      for row in range(batch):
        chosen = confidence[row].topk(commit).indices
        x[row, chosen] = predicted[row, chosen]
  return x[:, prompt_length:]


def _with_gumbel_noise(logits, temperature: float):
  """What has the largest entry where a token is drawn: in float64, since float32 noise worsens the samples."""
  if temperature == 0:
    return logits
  logits = logits.double()
  noise = -torch.log(torch.rand_like(logits))
  return logits.exp() / noise**temperature


class Updater:
  """One update on freshly sampled rollouts, as the official trainer makes it; mu is 1.

  Args:
    model: see `load`. Of an adapted one the reference is the base model, otherwise a copy.
    objective: `Objective` of GDSD or GDSD-TLC, `center_gradient` off.
    optimizer: a run's `optimizer` section, without warm-up.
    accumulation: microbatches of the update.
    reference_norm: factor of the final norm's weights in the copy.
  """

  def __init__(self, model: Llada, objective, optimizer, accumulation: int = 1, reference_norm: float = 1.0):
    self.model, self.objective = model, objective
    self.clip, self.accumulation = optimizer.clip, accumulation
    self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    self.reference = None
    if len(self.trained) == len(list(model.parameters())) and objective.beta:
      self.reference = copy.deepcopy(model).requires_grad_(False)
      self.reference.ln_f.weight.mul_(reference_norm)
    self.optimizer = torch.optim.AdamW(
      self.trained, lr=optimizer.learning_rate, betas=(optimizer.b1, optimizer.b2), weight_decay=optimizer.weight_decay
    )

  def __call__(self, tokens, masks, advantages) -> dict[str, float]:
    """Updates the model.

    Args:
      tokens: int[N, P+L].
      masks: bool[N, M, L], the first of each pair.
      advantages: float[N].

    Returns:
      loss, grad_norm (before the clip), and the mean old score.
    """
    parts = [(tokens[i::self.accumulation], masks[i::self.accumulation], advantages[i::self.accumulation])
             for i in range(self.accumulation)]
    with torch.no_grad():
      old = [self._scores(self.model, *part[:2]) for part in parts]
      references = [self._reference_scores(*part[:2]) for part in parts]
    losses = []
    for part, previous, reference in zip(parts, old, references):
      loss = self._loss(self._scores(self.model, *part[:2]), previous, reference, part[2], part[1].shape[-1])
      (loss / self.accumulation).backward()
      losses.append(loss.item())
    grad_norm = nn.utils.clip_grad_norm_(self.trained, self.clip)
    self.optimizer.step()
    self.optimizer.zero_grad()
    score = torch.cat([_policy(scores) for scores in old]).mean()
    return {"loss": sum(losses) / len(losses), "grad_norm": grad_norm.item(), "score": score.item()}

  def _reference_scores(self, tokens, masks):
    if not self.objective.beta:
      return None
    if self.reference is not None:
      return self._scores(self.reference, tokens, masks)
    with self.model.base_model() as base:
      return self._scores(base, tokens, masks)

  def _scores(self, model: Llada, tokens, masks):
    """(plain, centered): float32[N, M] each; centered is None of plain GDSD."""
    samples = [self._scores_of_sample(model, tokens, masks[:, m]) for m in range(masks.shape[1])]
    plain, centered = zip(*samples)
    return torch.stack(plain, dim=1), None if centered[0] is None else torch.stack(centered, dim=1)

  def _scores_of_sample(self, model: Llada, tokens, mask):
    batch, length = mask.shape
    prompt, completion = tokens[:, :-length], tokens[:, -length:]
    noised = [torch.where(masked, model.config.mask_token_id, completion) for masked in (mask, ~mask)]
    logits = model(torch.cat([torch.cat([prompt, part], dim=1) for part in noised]))  # [2N, P+L, V]
    log_probs = logits[:, -length:].log_softmax(dim=-1)
    plain = log_probs.gather(-1, completion.repeat(2, 1)[..., None]).squeeze(-1)
    masked = mask.sum(dim=1, keepdim=True)
    weights = torch.ones_like(mask, dtype=torch.float32)
    if self.objective.weighted:
      weights = (length + 1) / torch.where(mask, masked, length - masked).clamp(min=1)
    score = lambda values: 0.5 * (weights * torch.where(mask, values[:batch], values[batch:])).sum(dim=1)
    if self.objective.center_top_k is None:
      return score(plain), None
    k = min(self.objective.center_top_k, log_probs.shape[-1])
    center = log_probs.detach().topk(k, dim=-1).values.mean(dim=-1)
    return score(plain), score(plain - center)

  def _loss(self, scores, old, reference, advantages, length: int):
    objective = self.objective
    log_ratio = _policy(scores) - _policy(old)
    log_ratio = log_ratio.clamp(math.log1p(-objective.epsilon), math.log1p(objective.epsilon))
    loss = (log_ratio / length - objective.psi * advantages[:, None]).square().sum() / len(advantages)
    if reference is not None:
      loss = loss + objective.beta * 0.5 * (scores[0] - reference[0]).square().mean() / length
    return loss


def _policy(scores):
  plain, centered = scores
  return plain if centered is None else centered
