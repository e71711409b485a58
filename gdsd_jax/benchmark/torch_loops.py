"""The official loops in plain PyTorch, for comparison: LLaDA's sampler and one GDSD update.

They do what the published code does (LLaDA's sampler, arXiv 2502.09992; GDSD's trainer, arXiv 2605.29398), written
anew. Every denoising step has logits of every position, their softmax in float64 and a loop over the rows to commit.
Scores come from float32 logits of the whole sequence, all of whose graphs wait for one backward pass.
"""

import copy
import math

import torch
from torch import nn

from gdsd_jax.benchmark.torch_llada import Llada
from gdsd_jax.diffusion.config import SamplerConfig


@torch.no_grad()
def sample(model: Llada, prompt, sampler: SamplerConfig):
  """LLaDA's published sampler with low-confidence remasking; the mask token is never chosen.

  Takes prompts int[B, P] without padding; returns the completions' tokens int[B, L].
  """
  batch, prompt_length = prompt.shape
  mask_id, block_length = model.config.mask_token_id, sampler.block_length
  x = torch.cat([prompt, torch.full((batch, sampler.completion_length), mask_id, device=prompt.device)], dim=1)
  steps_of_block = sampler.steps // sampler.num_blocks
  for block in range(sampler.num_blocks):
    end = prompt_length + (block + 1) * block_length
    for step in range(steps_of_block):
      commit = block_length // steps_of_block + (step < block_length % steps_of_block)
      logits = model(x)
      probabilities = logits.double().softmax(dim=-1)
      logits[..., mask_id] = -math.inf
      predicted = _with_gumbel_noise(logits, sampler.temperature).argmax(dim=-1)
      confidence = probabilities.gather(-1, predicted[..., None]).squeeze(-1)
      confidence[:, end:] = -math.inf
      confidence = torch.where(x == mask_id, confidence, -math.inf)
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
    model: the network. The reference is the base model where it has an adapter, otherwise a copy.
    objective: `Gdsd` or `GdsdTlc`, with `center_gradient` off.
    optimizer: an `OptimizerConfig` without warm-up.
    reference_norm: what the final norm's weights are multiplied by in the copy.
  """

  def __init__(self, model: Llada, objective, optimizer, accumulation: int = 1, reference_norm: float = 1.0):
    self.model, self.objective = model, objective
    self.clip, self.accumulation = optimizer.clip, accumulation
    self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    self.reference = None
    if objective.beta and len(self.trained) < len(list(model.parameters())):
      self.reference = model.base_model()
    elif objective.beta:
      self.reference = copy.deepcopy(model).requires_grad_(False)
      self.reference.ln_f.weight.mul_(reference_norm)
    self.optimizer = torch.optim.AdamW(
      self.trained, lr=optimizer.learning_rate, betas=(optimizer.b1, optimizer.b2), weight_decay=optimizer.weight_decay
    )

  def __call__(self, tokens, masks, advantages) -> dict[str, float]:
    """Updates the model on tokens int[N, P+L], masks bool[N, M, L] (the first of each pair) and advantages float[N].

    Returns loss, grad_norm (before the clip) and the mean old score.
    """
    parts = [[array[i::self.accumulation] for array in (tokens, masks, advantages)] for i in range(self.accumulation)]
    with torch.no_grad():
      old = [self._scores(self.model, *part[:2]) for part in parts]
      references = [self._scores(self.reference, *part[:2]) if self.reference else None for part in parts]
    losses = []
    for part, previous, reference in zip(parts, old, references):
      loss = self._loss(self._scores(self.model, *part[:2]), previous, reference, part[2], part[1].shape[-1])
      (loss / self.accumulation).backward()
      losses.append(loss.item())
    grad_norm = nn.utils.clip_grad_norm_(self.trained, self.clip)
    self.optimizer.step()
    self.optimizer.zero_grad()
    score = torch.cat([policy for _, policy in old]).mean()
    return {"loss": sum(losses) / len(losses), "grad_norm": grad_norm.item(), "score": score.item()}

  def _scores(self, model: Llada, tokens, masks):
    """[plain scores, those of the policy]: float32[N, M] each; they differ by the centre, where there is one."""
    samples = [self._scores_of_sample(model, tokens, masks[:, m]) for m in range(masks.shape[1])]
    return [torch.stack(scores, dim=1) for scores in zip(*samples)]

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
    if self.objective.scoring.center_top_k is None:
      return (score(plain),) * 2
    k = min(self.objective.scoring.center_top_k, log_probs.shape[-1])
    center = log_probs.detach().topk(k, dim=-1).values.mean(dim=-1)
    return score(plain), score(plain - center)

  def _loss(self, scores, old, reference, advantages, length: int):
    objective = self.objective
    log_ratio = scores[1] - old[1]
    log_ratio = log_ratio.clamp(math.log1p(-objective.epsilon), math.log1p(objective.epsilon))
    loss = (log_ratio / length - objective.psi * advantages[:, None]).square().sum() / len(advantages)
    if reference is not None:
      loss = loss + objective.beta * 0.5 * (scores[0] - reference[0]).square().mean() / length
    return loss
