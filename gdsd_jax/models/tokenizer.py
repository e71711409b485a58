"""Between text and tokens: the tokenizer of a model's folder, left-padded prompts, completions cut at their end."""

from collections.abc import Sequence
import json
import os
from pathlib import Path

import numpy as np

from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.models.huggingface import resolve_path

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def load_tokenizer(path_or_hub_name, config: DenoiserConfig):
  """The fast tokenizer (tokenizer.json) of a model's folder, built from its files alone.

  Raises:
    FileNotFoundError, ValueError: a file is missing, has no chat template, or disagrees with the model's config.
  """
  from transformers import PreTrainedTokenizerFast  # slow to import, and only tokenizers need it

  path = Path(resolve_path(path_or_hub_name))
  if not (path / "tokenizer.json").is_file():
    raise FileNotFoundError(f"model.path: {path} has no tokenizer.json")
  try:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
  except Exception as error:  # the library raises many kinds, bare Exception among them
    raise ValueError(f"model.path: {path}/tokenizer.json cannot be read: {error}") from None
  if tokenizer.chat_template is None:
    raise ValueError(f"model.path: {path} has no chat template (tokenizer_config.json or chat_template.jinja)")
  if len(tokenizer) > config.vocab_size:
    raise ValueError(f"model.path: {path}: {len(tokenizer)} tokens do not fit the model's {config.vocab_size}")
  if tokenizer.mask_token_id not in (None, config.mask_token_id):
    raise ValueError(
      f"model.path: {path}: the mask token is {tokenizer.mask_token_id} in the tokenizer's files,"
      f" {config.mask_token_id} in config.json"
    )
  return tokenizer


def stop_token_ids(tokenizer, config: DenoiserConfig) -> tuple[int, ...]:
  """Tokens that end a completion: the model's EOS and the chat format's end of turn."""
  end_of_turn = [tokenizer.convert_tokens_to_ids(token) for token in ("<|eot_id|>", "<|im_end|>")]
  return tuple(sorted({config.eos_token_id, *(t for t in end_of_turn if t not in (None, tokenizer.unk_token_id))}))


def chat_prompt(tokenizer, messages: Sequence[dict[str, str]]) -> str:
  """Prompt text of chat messages, ready for the assistant's turn."""
  return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)


def encode_prompts(tokenizer, prompts: Sequence[str], buckets: Sequence[int], pad_token_id: int):
  """Prompts as left-padded tokens; the width is the smallest bucket that holds all of them.

  Args:
    tokenizer: see `load_tokenizer`.
    prompts: texts that hold their special tokens already.
    buckets: allowed widths, ascending. Few of them: every width is compiled once.
    pad_token_id: written before short prompts.

  Returns:
    (tokens int32[B, P], mask bool[B, P]), the mask False at padding.

  Raises:
    ValueError: a prompt is longer than the last bucket.
  """
  encoded = [tokenizer.encode(prompt, add_special_tokens=False) for prompt in prompts]
  longest = max(map(len, encoded))
  if longest > buckets[-1]:
    text = prompts[[len(tokens) for tokens in encoded].index(longest)]
    raise ValueError(
      f"sampler.prompt_buckets: a prompt has {longest} tokens, the largest bucket {buckets[-1]}:"
      f" {json.dumps(text[:200])}"
    )
  width = next(bucket for bucket in buckets if bucket >= longest)
  tokens = np.full((len(encoded), width), pad_token_id, np.int32)
  mask = np.zeros((len(encoded), width), bool)
  for row, prompt in enumerate(encoded):
    tokens[row, width - len(prompt):] = prompt
    mask[row, width - len(prompt):] = True
  return tokens, mask


def completion_lengths(tokens, stop_ids: Sequence[int]) -> np.ndarray:
  """Tokens of each completion before the first stop token. tokens: int[B, L]; returns int[B]."""
  stopped = np.isin(tokens, stop_ids)
  return np.where(stopped.any(axis=1), stopped.argmax(axis=1), tokens.shape[1])


def decode_completions(tokenizer, tokens, stop_ids: Sequence[int]) -> list[str]:
  """Text of each completion, cut at its first stop token, without special tokens."""
  tokens = np.asarray(tokens)
  lengths = completion_lengths(tokens, stop_ids)
  return [tokenizer.decode(row[:length].tolist(), skip_special_tokens=True) for row, length in zip(tokens, lengths)]
