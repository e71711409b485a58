"""Preferences as training examples: a prompt, the reply that was chosen, and the one that was rejected.

Rows are as TRL's: `prompt`, `chosen` and `rejected` as texts or lists of turns, or whole chats as `chosen` and
`rejected`, which are the same but for the assistant's last turn. ShareGPT's have `conversations` in place of `prompt`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from gdsd_jax.huggingface.tokenizer import token_ids
from gdsd_jax.supervised.chats import Chat, Fitting, from_sharegpt, read_parts, read_rows, split_turns, turns_of
from gdsd_jax.supervised.config import PreferenceRowsConfig
from gdsd_jax.tasks.sources import check_columns

_REPLIES = ("chosen", "rejected")


class Preference(NamedTuple):
  """A preference in tokens: `prompt` up to the assistant's last turn, and two such turns, each with its end."""

  prompt: list[int]
  chosen: list[int]
  rejected: list[int]

  @property
  def length(self) -> int:
    return max(len(self.chosen), len(self.rejected))

  @property
  def chats(self) -> tuple[Chat, Chat]:
    """(the chat with the chosen reply, that with the rejected one)."""
    return Chat(self.prompt, self.chosen), Chat(self.prompt, self.rejected)


def read_preferences(config: PreferenceRowsConfig, tokenizer) -> tuple[Fitting, Fitting | None]:
  """The preferences to learn and those to validate on, of a run's `data` section; None where it names none of these.

  Raises ValueError or OSError, one line naming the field, or the file and line of a row that is no preference.
  """

  def read(name: str) -> list[Preference]:
    texts = read_rows(config, name, lambda row: _texts_of(row, tokenizer))
    sides = (token_ids(tokenizer, [text[side] for text in texts]) for side in ("prompt", *_REPLIES))
    return [Preference(*ids) for ids in zip(*sides)]

  return read_parts(config, read, "preferences")


def _texts_of(row: Mapping[str, Any], tokenizer) -> dict[str, str]:
  """The texts of a row's prompt and of its two replies."""
  check_columns(row, _REPLIES)
  chats = {}
  for column in _REPLIES:
    try:
      chats[column] = split_turns(_chat_of(row, column), tokenizer)
    except ValueError as error:
      raise ValueError(f"`{column}`: {error}") from None
  chosen, rejected = (chats[column] for column in _REPLIES)
  if chosen["prompt"] != rejected["prompt"]:
    raise ValueError("`chosen` and `rejected` must be the same chat up to the assistant's last turn")
  if chosen["completion"] == rejected["completion"]:
    raise ValueError("`chosen` and `rejected` are the same, which is no preference")
  return {"prompt": chosen["prompt"], **{column: chats[column]["completion"] for column in _REPLIES}}


def _chat_of(row: Mapping[str, Any], column: str) -> list[Any]:
  """The whole chat that ends with the reply of a column."""
  reply = _turns(row, column, "assistant")
  # A whole chat, prompt and all.
  begun = isinstance(row[column], list) and reply != [] and not _is_reply(reply[0])
  source = next((name for name in ("prompt", "conversations") if row.get(name) is not None), None)
  if source is None:
    if not begun:
      raise ValueError("a reply alone needs a column `prompt`, or a whole chat has turns before it")
    return reply
  if begun and isinstance(row[source], str):  # as UltraFeedback has it, whose prompt is a copy of the first turn
    return reply
  if begun:
    raise ValueError(f"the chat begins in `{source}`, and must go on with the assistant's turn, not begin again")
  return [*_turns(row, source, "user"), *reply]


def _turns(row, column, role):
  """A column's turns, be they a text, a list of turns as chats have them or as ShareGPT does, or one such turn."""
  value = row[column]
  if isinstance(value, dict):
    row = {column: [value]}
  turns = turns_of(row, column, role)
  first = turns[0] if turns else None
  return from_sharegpt(row, column) if isinstance(first, dict) and "from" in first and "role" not in first else turns


def _is_reply(turn) -> bool:
  return isinstance(turn, dict) and turn.get("role") == "assistant"
