"""Between text and tokens: the tokenizer of a model's folder, left-padded prompts, completions cut at their end."""

from collections.abc import Sequence
import functools
import json
import os
from pathlib import Path

import numpy as np

from gdsd_jax.checks import require
from gdsd_jax.huggingface import chat_format, qwen2_bpe
from gdsd_jax.huggingface.files import refuse_pointer
from gdsd_jax.huggingface.folder import load_config, resolve_path, tokenizer_files
from gdsd_jax.models.config import DenoiserConfig

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def load_tokenizer(path_or_hub_name, config: DenoiserConfig | None = None, revision: str | None = None):
  """The tokenizer of a model's folder or hub name, from its files alone: no code in the folder is ever run.

  It reads tokenizer.json, or for Dream and SDAR vocab.json and merges.txt, and with them tokenizer_config.json,
  special_tokens_map.json, added_tokens.json and the chat template. A base model without a template gets its family's.
  Where the tokenizer's files name no `mask_token` or `eos_token`, the model's config says which it is: `config`, or
  that of the folder's config.json. `revision` is one of the hub's.

  Returns a transformers.PreTrainedTokenizerFast. Raises FileNotFoundError where a file is missing, ValueError where one
  is damaged or disagrees with `config`, or no chat template can be used.
  """
  from transformers import PreTrainedTokenizerFast  # slow to import, and only tokenizers need it

  path, backend, special = resolve_path(path_or_hub_name, revision), {}, []
  config = config or load_config(path)
  for file in tokenizer_files(path):
    refuse_pointer(file, "model.path")
  if not (path / "tokenizer.json").is_file():
    if config.family not in qwen2_bpe.FAMILIES:
      raise FileNotFoundError(f"model.path: {path} has no tokenizer.json")
    for name in ("vocab.json", "merges.txt"):
      if not (path / name).is_file():
        raise FileNotFoundError(f"model.path: {path} has neither tokenizer.json nor {name}")
    backend["tokenizer_object"] = qwen2_bpe.load_backend(path)
    special = [t for t in backend["tokenizer_object"].get_added_tokens_decoder().values() if t.special]
  try:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path, **backend)
    tokenizer.add_tokens(special, special_tokens=True)  # some releases forget what special_tokens_map.json says
  except BaseException as error:  # the library raises many kinds, bare Exception among them, and Rust's panics
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
      raise
    cause = " ".join(str(error).split())
    raise ValueError(f"model.path: {path}: the tokenizer's files cannot be read: {cause}") from None
  require(not tokenizer.split_special_tokens, "model.path", f"{path}: tokenizer_config.json has split_special_tokens,"
          " by which the chat format's own tokens would be read as text; set it to false")
  _agree(tokenizer, config, path)
  tokenizer.chat_template = chat_format.choose_template(path, tokenizer, config.family)
  try:
    tokenizer.stop_ids = stop_token_ids(tokenizer, config)  # for `decode_completions`
    chat_prompt(tokenizer, [{"role": "user", "content": "text"}])
  except Exception as error:  # Jinja's, and whatever a template raises by itself
    raise ValueError(f"model.path: {path}: {' '.join(str(error).split())}") from None
  return tokenizer


def _agree(tokenizer, config: DenoiserConfig, path: Path) -> None:
  """Refuses ids beyond the model's vocabulary and another mask token than the model's; names mask and end of text."""
  tokens, size = max(tokenizer.get_vocab().values()) + 1, config.vocab_size
  require(tokens <= size, "model.path", f"{path}: {tokens} tokens do not fit the model's {size}")
  told, mask_id = tokenizer.mask_token_id, config.mask_token_id
  require(told in (None, mask_id), "model.path",
          f"{path}: the mask token is {told} in the tokenizer's files, {mask_id} in config.json or model.mask_token_id")
  mask = tokenizer.convert_ids_to_tokens(mask_id)
  if mask is not None:  # None: no text can hold it
    tokenizer.add_special_tokens({"mask_token": mask})
  end = tokenizer.convert_ids_to_tokens(config.eos_token_id)
  if tokenizer.eos_token is None and end is not None:
    tokenizer.add_special_tokens({"eos_token": end})


def stop_token_ids(tokenizer, config: DenoiserConfig) -> tuple[int, ...]:
  """Ids of the tokens that end a completion, ascending: end of text, padding, and the chat format's end of turn.

  config.json, the tokenizer's files and generation_config.json may each name another end of text; all of them count.
  """
  stops = {config.eos_token_id, tokenizer.eos_token_id, *stated_stops(Path(tokenizer.name_or_path))}
  # Padding ends a text only where it is a special token: a model whose pad is an ordinary one may write that.
  stops |= {pad for pad in (config.pad_token_id, tokenizer.pad_token_id) if pad in tokenizer.all_special_ids}
  if (end_of_turn := chat_format.end_of_turn(tokenizer)) is not None:
    stops.add(tokenizer.convert_tokens_to_ids(end_of_turn))
  return tuple(sorted(stops - {None, config.mask_token_id}))


def stated_stops(folder: Path) -> list[int]:
  """Ids in eos_token_id of config.json and generation_config.json, one or a list in each; none without the files."""
  found = []
  for name in ("config.json", "generation_config.json"):
    try:
      stops = json.loads((folder / name).read_text("utf-8")).get("eos_token_id") if (folder / name).is_file() else None
    except (ValueError, AttributeError) as error:
      raise ValueError(f"{name} is not a JSON object: {error}") from None
    stops = [] if stops is None else stops if isinstance(stops, list) else [stops]
    if not all(type(stop) is int for stop in stops):
      raise ValueError(f"{name} has eos_token_id {stops!r}, which are no token ids")
    found += [stop for stop in stops if stop not in found]
  return found


def chat_prompt(tokenizer, messages: Sequence[dict[str, str]]) -> str:
  """The prompt's text for chat messages, ready for the assistant's turn.

  Special tokens within a message are encoded as such, as in the published models' own code. Raises ValueError where a
  message holds the mask token, an end, or a token that the chat format itself writes.
  """
  for message in messages:
    role, content = message["role"], message["content"]
    for token in _reserved_tokens(tokenizer):
      if token in content:
        shown = json.dumps(content[:200])
        raise ValueError(f"a {role} message holds {token}, which only the chat format may write: {shown}")
  return chat_format.render(tokenizer, messages, for_reply=True)


@functools.lru_cache(maxsize=8)
def _reserved_tokens(tokenizer) -> tuple[str, ...]:
  others = {tokenizer.eos_token, tokenizer.pad_token, tokenizer.mask_token} - {None}
  return tuple(sorted(chat_format.format_tokens(tokenizer) | others))


def prompt_lengths(tokenizer, prompts: Sequence[str]) -> np.ndarray:
  """How many tokens each prompt has, int[B]; `encode_prompts` takes those that fit its last bucket."""
  return np.array([len(tokens) for tokens in token_ids(tokenizer, prompts)], int)


def token_ids(tokenizer, texts: Sequence[str]) -> list[list[int]]:
  """Token ids for texts that hold their special tokens already; never cut or padded, whatever the files ask for."""
  off = dict.fromkeys(("add_special_tokens", "padding", "truncation", "return_attention_mask", "verbose"), False)
  return tokenizer(list(texts), **off)["input_ids"] if len(texts) else []


def left_padded(prompts: Sequence[Sequence[int]], width: int, pad_token_id: int) -> tuple[np.ndarray, np.ndarray]:
  """Token ids of prompts as (tokens int32[B, width], mask bool[B, width]), the mask False at padding."""
  tokens, mask = np.full((len(prompts), width), pad_token_id, np.int32), np.zeros((len(prompts), width), bool)
  for row, ids in enumerate(prompts):
    tokens[row, width - len(ids):], mask[row, width - len(ids):] = ids, True
  return tokens, mask


def encode_prompts(tokenizer, prompts: Sequence[str], buckets: Sequence[int] = (), pad_token_id: int | None = None):
  """Prompts, which hold their special tokens already (`chat_prompt`), as `left_padded` tokens and mask.

  The width is the smallest of the `buckets`, ascending, that holds all; without buckets that of the longest prompt. Few
  of them: every width is compiled once. Padding is the tokenizer's own unless it is given; what it is changes nothing.
  Raises ValueError where a prompt is longer than the last bucket, or holds the mask token.
  """
  encoded = token_ids(tokenizer, prompts)
  lengths = [len(ids) for ids in encoded]
  longest = max(lengths)
  buckets = buckets or (longest,)
  if pad_token_id is None:
    pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
  if longest > buckets[-1]:
    text = json.dumps(prompts[lengths.index(longest)][:200])
    raise ValueError(f"sampler.prompt_buckets: a prompt has {longest} tokens, the largest bucket {buckets[-1]}: {text}")
  for text, ids in zip(prompts, encoded):
    if tokenizer.mask_token_id in ids:  # the sampler would take it for a position to be filled
      raise ValueError(f"a prompt holds the mask token {tokenizer.mask_token}: {json.dumps(text[:200])}")
  return left_padded(encoded, next(bucket for bucket in buckets if bucket >= longest), pad_token_id)


def completion_ids(tokens: np.ndarray, stop_ids: Sequence[int]) -> list[list[int]]:
  """The tokens of each completion before its first stop token. tokens: int[B, L]."""
  stopped = np.isin(tokens, stop_ids)
  lengths = np.where(stopped.any(axis=1), stopped.argmax(axis=1), tokens.shape[1])
  return [row[:length].tolist() for row, length in zip(tokens, lengths)]


def decode_completions(tokenizer, tokens, stop_ids: Sequence[int] | None = None) -> list[str]:
  """The text of each completion, cut at its first stop token, without special tokens and ids that stand for no token.

  A model can write such ids if its embedding has more rows than its tokenizer has tokens. tokens: int[B, L]; stop_ids:
  those of the tokenizer's model (`stop_token_ids`) unless they are given.
  """
  if stop_ids is None:
    stop_ids = tokenizer.stop_ids
  return texts_of(tokenizer, completion_ids(np.asarray(tokens), stop_ids))


def texts_of(tokenizer, ids: Sequence[Sequence[int]]) -> list[str]:
  """The text of token ids, as `decode_completions` has it of those before the first stop token."""
  return tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
