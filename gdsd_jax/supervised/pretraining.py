"""Makes a small denoiser from nothing: its tokenizer, its data, and masked-diffusion training (the embedded model)."""

from collections.abc import Iterator
import dataclasses
import functools
import json
import logging
from pathlib import Path
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gdsd_jax.generation.held_out import evaluate
from gdsd_jax.generation.rollout import RolloutSampler
from gdsd_jax.huggingface.chat_format import PRESETS
from gdsd_jax.huggingface.tokenizer import encode_prompts, load_tokenizer
from gdsd_jax.huggingface.weights import save_pretrained
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.objectives.masked_cross_entropy import masked_cross_entropy
from gdsd_jax.runs.state import make_optimizer
from gdsd_jax.supervised.config import PretrainingConfig
from gdsd_jax.tasks import get_task

_log = logging.getLogger(__name__)

# LLaDA's chat format, so that the embedded model takes the same path as the published ones.
BEGIN, END, END_OF_TURN, MASK = "<|startoftext|>", "<|endoftext|>", "<|eot_id|>", "<|mdm_mask|>"
_SPECIAL_TOKENS = (BEGIN, END, "<|start_header_id|>", "<|end_header_id|>", END_OF_TURN, MASK)


def train_tokenizer(texts: Iterator[str], vocab_size: int, tags: tuple[str, ...], path: Path) -> None:
  """Trains a byte-level BPE tokenizer and writes it as Hugging Face files; digits and tags are single tokens."""
  import tokenizers
  from transformers import PreTrainedTokenizerFast

  bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
  bpe.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
    tokenizers.pre_tokenizers.Digits(individual_digits=True),
    tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
  ])
  bpe.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=vocab_size - len(_SPECIAL_TOKENS) - len(tags),
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  bpe.train_from_iterator(texts, trainer)
  bpe.add_tokens([tokenizers.AddedToken(tag, normalized=False) for tag in tags])
  bpe.add_special_tokens(list(_SPECIAL_TOKENS))
  tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=bpe, bos_token=BEGIN, eos_token=END, pad_token=END, mask_token=MASK,
    chat_template=PRESETS["llada"], clean_up_tokenization_spaces=False,
  )
  tokenizer.save_pretrained(path)


@functools.partial(jax.jit, static_argnames=("denoiser", "optimizer"), donate_argnames=("params", "opt_state"))
def _train_step(denoiser, optimizer, params, opt_state, key, tokens, maskable, attention_mask):
  loss_fn = functools.partial(masked_cross_entropy, denoiser)
  (loss, metrics), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params, key, tokens, maskable, attention_mask)
  updates, opt_state = optimizer.update(gradient, opt_state, params)
  return optax.apply_updates(params, updates), opt_state, {"loss": loss, **metrics}


def _encode_completions(tokenizer, texts, length: int) -> np.ndarray:
  """Texts as int32[N, length], each closed by the end of its turn and filled up with EOS."""
  completions = np.full((len(texts), length), tokenizer.eos_token_id, np.int32)
  for row, text in enumerate(texts):
    encoded = tokenizer.encode(text + END_OF_TURN, add_special_tokens=False)
    completions[row, :len(encoded)] = encoded
  return completions


def pretrain(config: PretrainingConfig, out: Path) -> dict[str, float]:
  """Pretrains the model that `config` describes (configs/pretrain_tiny.py) and writes its Hugging Face folder to `out`.

  Besides what every task has, config.task must offer `tags` (texts that become single tokens), `solution(example)` and
  `careless_solution(example, slips, rng)`.

  Returns:
    The last evaluation on held-out problems.
  """
  rng = np.random.default_rng(config.seed)
  task = get_task(config.task.name, **config.task.options)
  train = task.examples("train")
  texts = [f"{message['role']}\n\n{message['content']}" for example in train for message in task.messages(example)]
  texts += ["assistant\n\n"] * len(texts)
  with tempfile.TemporaryDirectory() as scratch:  # `out` keeps what it holds until there is something better
    train_tokenizer(iter(texts), config.model.vocab_size, task.tags, Path(scratch))
    special = json.loads((Path(scratch) / "tokenizer.json").read_text())["added_tokens"]
    token_ids = {token["content"]: token["id"] for token in special}
    model_config = dataclasses.replace(
      config.model, mask_token_id=token_ids[MASK], eos_token_id=token_ids[END], pad_token_id=token_ids[END]
    )
    tokenizer = load_tokenizer(scratch, model_config)
  denoiser = Denoiser(model_config, remat="full")  # also faster here: on a CPU, stacking residuals costs more
  params = denoiser.init(jax.random.key(config.seed))

  sampler = RolloutSampler(denoiser, tokenizer, task, config.sampler, (config.max_prompt_length,))
  prompts, prompt_mask = encode_prompts(
    tokenizer, sampler.prompts(train), sampler.prompt_buckets, model_config.pad_token_id
  )
  right = [task.solution(example) for example in train]
  careless = [task.careless_solution(example, config.slips, rng) for example in train]
  tokens = [
    np.concatenate([prompts, _encode_completions(tokenizer, texts, config.sampler.completion_length)], axis=1)
    for texts in (right, careless)
  ]
  attention_mask = np.concatenate([prompt_mask, np.ones((len(train), config.sampler.completion_length), bool)], axis=1)
  maskable = np.zeros(attention_mask.shape, bool)
  maskable[:, config.max_prompt_length:] = True

  # Constant after warm-up: `steps` then chooses a point of one and the same run.
  optimizer = make_optimizer(config.optimizer)
  opt_state = optimizer.init(params)
  test = task.examples("test")
  held_out = [test[i] for i in range(config.eval_examples)]
  start, result = time.monotonic(), {}
  for step in range(config.steps):
    rows = rng.integers(0, len(train), config.batch_size)
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    habit = int(step >= config.careless_after)
    params, opt_state, metrics = _train_step(
      denoiser, optimizer, params, opt_state, key, jnp.asarray(tokens[habit][rows]), jnp.asarray(maskable[rows]),
      jnp.asarray(attention_mask[rows]),
    )
    if (step + 1) % config.eval_every == 0 or step + 1 == config.steps:
      result = evaluate(sampler, params, held_out, jax.random.key(config.seed), config.eval_examples)
      seconds = time.monotonic() - start
      shown = "  ".join(f"{name} {float(value):.3f}" for name, value in {**metrics, **result}.items())
      _log.info("step %d/%d  %.0f s  %s", step + 1, config.steps, seconds, shown)
  save_pretrained(out, denoiser, params)
  tokenizer.save_pretrained(out)
  return result
