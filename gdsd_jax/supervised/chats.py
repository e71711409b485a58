"""Chats as training examples: what was said before the last turn is the prompt, the assistant's last turn is learnt.

Rows have the turns as `messages`, as `prompt` and `completion`, or, as ShareGPT does, as `conversations`.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
import logging
from typing import Any, NamedTuple

import numpy as np

from gdsd_jax.checks import require
from gdsd_jax.huggingface.chat_format import render
from gdsd_jax.huggingface.tokenizer import chat_prompt, left_padded, token_ids
from gdsd_jax.supervised.config import ChatsConfig
from gdsd_jax.tasks import sources
from gdsd_jax.tasks.base import is_message

_log = logging.getLogger(__name__)

# What turns may have beside their words; templates write it or leave it out.
_BESIDE_WORDS = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}  # its other roles have the names that chats have


class Chat(NamedTuple):
  """A chat in tokens: `prompt` up to the assistant's last turn, `completion` with the end of that turn."""

  prompt: list[int]
  completion: list[int]

  @property
  def length(self) -> int:
    return len(self.completion)


class Fitting(NamedTuple):
  """The examples of a source that fit the buckets, and how many do not."""

  fitting: list
  too_long: int


def read_chats(config: ChatsConfig, tokenizer) -> tuple[Fitting, Fitting | None]:
  """The chats to learn and those to validate on, of a run's `data` section; None where it names none of these.

  Raises ValueError or OSError, one line naming the field, or the file and line of a row that is no chat.
  """
  return read_parts(config, lambda name: _read(config, name, tokenizer), "chats")


def read_parts(config: ChatsConfig, read: Callable[[str], list], what: str) -> tuple[Fitting, Fitting | None]:
  """As `read_chats`, of examples with `prompt` and `length` that are called `what`.

  `read` gives all those of "train_source" or "validation_source".
  """
  train, size = read("train_source"), config.validation_size
  if config.validation_source:
    return _fitting(train, config, what), _fitting(read("validation_source"), config, what)
  if not size:
    return _fitting(train, config, what), None
  require(size < len(train), "data.validation_size", f"{size} of the {len(train)} {what} leave none to learn")
  return tuple(_fitting(part, config, what) for part in (train[:-size], train[-size:]))


def read_rows(config: ChatsConfig, name: str, read_row: Callable[[Mapping[str, Any]], dict]) -> list[dict]:
  """`read_row` of every row of a source; its ValueErrors are told with the file and line."""
  options = {"data_dir": config.data_dir, "names": config.columns or "", "bad_rows": config.bad_rows}
  rows = sources.open_source(getattr(config, name), (), field=f"data.{name}", **options)
  return sources.examples_of(rows, read_row, field=f"data.{name}")


def _read(config, name, tokenizer) -> list[Chat]:
  field, pairs = f"data.{name}", read_rows(config, name, lambda row: _pair_of(row, tokenizer))
  empty = sum(pair["empty"] for pair in pairs)
  require(empty < len(pairs), field, f"the assistant's last turn is empty in all {len(pairs)} chats: nothing to learn")
  if empty:
    _log.warning("WARNING: %s: the assistant's last turn is empty in %d of %d chats, which teach to say nothing", field,
                 empty, len(pairs))
  if unsaid := collections.Counter(what for pair in pairs for what in pair["unsaid"]):
    _log.warning("WARNING: %s: the model is shown nothing of what some of the %d chats have beside their words: %s",
                 field, len(pairs), ", ".join(f"`{what}` ({count})" for what, count in sorted(unsaid.items())))
  sides = (token_ids(tokenizer, [pair[side] for pair in pairs]) for side in ("prompt", "completion"))
  return [Chat(*texts) for texts in zip(*sides)]


def _pair_of(row: Mapping[str, Any], tokenizer) -> dict[str, Any]:
  """`split_turns` of a row, and what else it has that is `unsaid`: `tools`, and what the chat template leaves out."""
  messages = _messages(row)
  pair = split_turns(messages, tokenizer)
  beside = sorted({name for message in messages for name in _BESIDE_WORDS if message.get(name)})
  if beside:
    words = [{"role": message["role"], "content": message["content"]} for message in messages]
    if render(tokenizer, words, for_reply=False) != pair["prompt"] + pair["completion"]:
      beside = []
  return {**pair, "unsaid": [*beside, *(["tools"] if row.get("tools") not in (None, "", "[]", []) else [])]}


def _fitting(examples, config, what):
  width, length = config.prompt_buckets[-1], config.completion_buckets[-1]
  fitting = [example for example in examples if len(example.prompt) <= width and example.length <= length]
  require(bool(fitting), "data.prompt_buckets, data.completion_buckets",
          f"none of the {len(examples)} {what} fits {width} and {length} tokens")
  return Fitting(fitting, len(examples) - len(fitting))


def _messages(row: Mapping[str, Any]) -> Any:
  """The turns of a row, as a list of `role` and `content`, whichever of the known columns it has."""
  if "messages" in row:
    return row["messages"]
  if "conversations" in row:
    return from_sharegpt(row, "conversations")
  if not {"prompt", "completion"} <= row.keys():
    raise ValueError("no column `messages`, nor `prompt` and `completion`, nor `conversations`; "
                     f"it has {', '.join(map(repr, row)) or 'none'}")
  return [*turns_of(row, "prompt", "user"), *turns_of(row, "completion", "assistant")]


def from_sharegpt(row: Mapping[str, Any], column: str) -> list[dict[str, Any]]:
  """The turns of a column, of `from` and `value` or `role` and `content`. ValueError where it is no list of turns."""
  turns = row[column]
  if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
    raise ValueError(f"`{column}` must be a list of turns, each with `from` and `value`")
  said = [(turn["role"], turn.get("content")) if turn.get("from") is None and "role" in turn else
          (turn.get("from"), turn.get("value")) for turn in turns]
  return [{"role": _SHAREGPT_ROLES.get(str(role), role), "content": text} for role, text in said]


def turns_of(row: Mapping[str, Any], column: str, role: str) -> list[Any]:
  """The turns of a column, where a text is one turn of that `role`. Raises ValueError where it is none of both."""
  value = row[column]
  if isinstance(value, str):
    return [{"role": role, "content": value}]
  if not isinstance(value, list):
    raise ValueError(f"column {column!r} must be text or a list of turns, not {value!r:.80}")
  return value


def split_turns(messages: Any, tokenizer) -> dict[str, str | bool]:
  """The text of a chat up to the assistant's last turn, that of the turn, and whether nothing is said in it.

  Raises ValueError, one line, where it is no chat that ends with the assistant's turn, or forges the chat format.
  """
  if not isinstance(messages, list) or not messages:
    raise ValueError("`messages` must be a list of turns")
  for message in messages:
    if not is_message(message):
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
  whole = render(tokenizer, messages, for_reply=False)
  if not whole.startswith(prompt):
    raise ValueError("the model's chat template does not continue its own prompt with the assistant's turn")
  return {"prompt": prompt, "completion": whole[len(prompt):], "empty": not messages[-1]["content"].strip()}


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
