"""Real rollouts for pictures: of the embedded model, or of what training made of it."""

import jax
import numpy as np

import gdsd_jax
from gdsd_jax.generation.tokens_told import told_tokens

SAMPLER = gdsd_jax.SamplerConfig(completion_length=16, steps=16, block_length=8)  # as the recipe gdsd_math:tiny has it
TASK = gdsd_jax.get_task("arithmetic")


class Model:
  """The model of a folder; "tiny" is the embedded one."""

  def __init__(self, path: str):
    self.denoiser, self.params = gdsd_jax.load_pretrained(path)
    self.tokenizer = gdsd_jax.load_tokenizer(path)

  def prompt(self, example):
    """A problem's int32[1, P] and bool[1, P], of one width for all, so that the sampler is compiled once."""
    prompt = gdsd_jax.chat_prompt(self.tokenizer, TASK.messages(example))
    return gdsd_jax.encode_prompts(self.tokenizer, [prompt], buckets=(36,))

  def answer(self, example, seed: int = 0):
    """(rollout of one completion, what `told_tokens` says of it)."""
    rollout = gdsd_jax.sample(self.denoiser, self.params, *self.prompt(example), jax.random.key(seed), SAMPLER)
    return rollout, told_tokens(self.tokenizer, rollout.tokens[0], rollout.steps[0], rollout.confidence[0])

  def distribution(self, example, completion):
    """float32[L, V], what the denoiser expects at each position of a completion int[L] that is masked in part."""
    (prompt, mask), completion = self.prompt(example), np.asarray(completion)[None]
    attended = np.concatenate([mask, np.ones(completion.shape, bool)], axis=1)
    logits = self.denoiser.apply(self.params, np.concatenate([prompt, completion], axis=1), attended)
    return np.asarray(jax.nn.softmax(logits[0, prompt.shape[1]:]))
