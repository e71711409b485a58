"""Chats as training examples: what was said before the last turn is the prompt, the assistant's last turn is learnt."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gdsd_jax.checks import require
from gdsd_jax.huggingface.tokenizer import chat_prompt, left_padded, token_ids
from gdsd_jax.supervised.config import ChatsConfig
from gdsd_jax.tasks import sources


class Chat(NamedTuple):
  """A chat in tokens: `prompt` up to the assistant's last turn, `completion` with the end of that turn."""

  prompt: list[int]
  completion: list[int]


def read_chats(config: ChatsConfig, tokenizer) -> tuple[list[Chat], int]:
  """The chats of a run's `data` section that fit its buckets, and how many do not.

  Raises ValueError or OSError, one line naming the field, or the file and line of a row that is no chat.
  """
  field, width, length = "data.train_source", config.prompt_buckets[-1], config.completion_buckets[-1]
  rows = sources.open_source(config.train_source, ["messages"], field=field, data_dir=config.data_dir)
  pairs = sources.examples_of(rows, lambda row: _split_turns(row, tokenizer), field=field)
  sides = (token_ids(tokenizer, [pair[side] for pair in pairs]) for side in ("prompt", "completion"))
  chats = [Chat(*texts) for texts in zip(*sides)]
  fitting = [chat for chat in chats if len(chat.prompt) <= width and len(chat.completion) <= length]
  require(bool(fitting), "data.prompt_buckets, data.completion_buckets",
          f"none of the {len(chats)} chats fits {width} and {length} tokens")
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
  """Chats as what `joined` gives and P, with prompts and completions in the smallest buckets."""
  prompts, completions = zip(*chats)
  smallest = lambda buckets, texts: next(bucket for bucket in buckets if bucket >= max(map(len, texts)))
  width, length = smallest(prompt_buckets, prompts), smallest(completion_buckets, completions)
  return *joined(*left_padded(prompts, width, pad_token_id), completions, length, eos_token_id), width


def joined(prompts: np.ndarray, prompt_mask: np.ndarray, completions, length: int, eos_token_id: int):
  """Prompts, int32[B, P], with their completions' ids: (tokens int32, maskable bool, attention_mask bool), [B, P+L].

  Completions are filled up with EOS, which is learnt like any token.
  """
  filled = np.full((len(completions), length), eos_token_id, np.int32)
  for row, ids in zip(filled, completions):
    row[:len(ids)] = ids
  given, learnt = np.zeros(prompts.shape, bool), np.ones(filled.shape, bool)
  pairs = ((prompts, filled), (given, learnt), (prompt_mask, learnt))
  return tuple(np.concatenate(pair, axis=1) for pair in pairs)
