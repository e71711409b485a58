"""Chats as training examples: what was said before the last turn is the prompt, the assistant's last turn is learnt."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from gdsd_jax.huggingface.tokenizer import chat_prompt
from gdsd_jax.supervised.config import ChatsConfig
from gdsd_jax.tasks import sources


@dataclasses.dataclass(frozen=True)
class Chat:
  """A chat in tokens: `prompt` up to the assistant's last turn, `completion` with the end of that turn."""

  prompt: list[int]
  completion: list[int]


def read_chats(config: ChatsConfig, tokenizer) -> tuple[list[Chat], int]:
  """The chats of a run's `data` section that fit its buckets, and how many do not.

  Raises:
    ValueError, OSError: one line naming the field, or the file and line of a row that is no chat.
  """
  field = "data.train_source"
  rows = sources.open_source(config.train_source, ["messages"], field=field, data_dir=config.data_dir)
  pairs = sources.examples_of(rows, lambda row: _split_turns(row, tokenizer), field=field)
  encode = lambda texts: tokenizer(texts, add_special_tokens=False)["input_ids"]
  prompts, completions = (encode([pair[side] for pair in pairs]) for side in ("prompt", "completion"))
  chats = [Chat(prompt, completion) for prompt, completion in zip(prompts, completions)]
  fitting = [chat for chat in chats if len(chat.prompt) <= config.prompt_buckets[-1]
             and len(chat.completion) <= config.completion_buckets[-1]]
  if not fitting:
    raise ValueError(
      f"data.prompt_buckets, data.completion_buckets: none of the {len(chats)} chats fits"
      f" {config.prompt_buckets[-1]} and {config.completion_buckets[-1]} tokens"
    )
  return fitting, len(chats) - len(fitting)


def _split_turns(row: Mapping[str, Any], tokenizer) -> dict[str, str]:
  messages = row["messages"]
  if not isinstance(messages, list) or not messages:
    raise ValueError("`messages` must be a list of turns")
  for message in messages:
    if not isinstance(message, dict) or not all(isinstance(message.get(name), str) for name in ("role", "content")):
      raise ValueError(f"a turn must have `role` and `content`, both text, not {message!r:.100}")
    if not message["role"].isidentifier():  # anything else could forge the format or hold a mask
      raise ValueError(f"a turn's role must be one word, such as user, not {message['role']!r:.100}")
  if messages[-1]["role"] != "assistant":
    raise ValueError(f"the last turn must be the assistant's, not of {messages[-1]['role']!r}")
  if len(messages) < 2:
    raise ValueError("`messages` must have a turn before the assistant's, which is the prompt")
  chat_prompt(tokenizer, messages)  # refuses a turn, the learnt one too, that forges the format or holds a mask
  prompt = chat_prompt(tokenizer, messages[:-1])
  # The template itself says how a turn ends.
  whole = tokenizer.apply_chat_template(messages, tokenize=False)
  if not whole.startswith(prompt):
    raise ValueError("the model's chat template does not continue its own prompt with the assistant's turn")
  return {"prompt": prompt, "completion": whole[len(prompt):]}


def batch_of(chats: Sequence[Chat], prompt_buckets, completion_buckets, pad_token_id: int, eos_token_id: int):
  """Chats as (tokens int32[B, P+L], maskable bool[B, P+L], attention_mask bool[B, P+L], P), in the smallest buckets.

  Prompts are padded on the left; completions are filled up with EOS, which is learnt like any token.
  """
  width = _bucket(prompt_buckets, (len(chat.prompt) for chat in chats))
  length = _bucket(completion_buckets, (len(chat.completion) for chat in chats))
  tokens = np.full((len(chats), width + length), eos_token_id, np.int32)
  attention_mask = np.ones(tokens.shape, bool)
  for row, chat in enumerate(chats):
    padding = width - len(chat.prompt)
    tokens[row, :padding], attention_mask[row, :padding] = pad_token_id, False
    tokens[row, padding:width] = chat.prompt
    tokens[row, width:width + len(chat.completion)] = chat.completion
  maskable = np.zeros(tokens.shape, bool)
  maskable[:, width:] = True
  return tokens, maskable, attention_mask, width


def _bucket(buckets: Sequence[int], lengths) -> int:
  longest = max(lengths)
  return next(bucket for bucket in buckets if bucket >= longest)
