"""Ids of special tokens that config.json does not name, found in the tokenizer's files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gdsd_jax.checks import require
from gdsd_jax.huggingface.files import read_json_object

_FIELD = "model.path"
_NAMES = {"mask_token_id": "mask_token", "eos_token_id": "eos_token"}


def told_by_tokenizer(folder: Path, fields: Mapping[str, Any]) -> dict[str, int]:
  """`mask_token_id` and `eos_token_id`, as far as config.json's `fields` lack them and the tokenizer's files tell them.

  A token is named in tokenizer_config.json or special_tokens_map.json, and its id is that of the same text among the
  added tokens of tokenizer_config.json, tokenizer.json or added_tokens.json. A text that none of them has, as the mask
  of SDAR's dense models in one of these files, tells nothing. Raises ValueError, one line, where two ids are told.
  """
  lacking = {field: name for field, name in _NAMES.items() if fields.get(field) is None}
  if not lacking:
    return {}
  read = lambda name: read_json_object(folder / name, _FIELD) if (folder / name).is_file() else {}
  config, known = read("tokenizer_config.json"), {}
  sources = {"tokenizer_config.json": config, "special_tokens_map.json": read("special_tokens_map.json")}
  added = set(_added(config, read("added_tokens.json"), read("tokenizer.json")))
  for field, name in lacking.items():
    texts = {where: _text(source.get(name)) for where, source in sources.items()}
    found = [(where, index) for where, text in texts.items() for content, index in sorted(added) if content == text]
    ids = {index for _, index in found}
    require(len(ids) <= 1, _FIELD, f"{folder}: config.json has no {field}, and the tokenizer's files contradict each"
            f" other about it ({', '.join(f'{where}: {index}' for where, index in found)}); write the model's own into"
            " config.json")
    if ids:
      known[field] = ids.pop()
  return known


def _text(token: Any) -> str | None:
  return token.get("content") if isinstance(token, Mapping) else token


def _added(config: Mapping[str, Any], only_ids: Mapping[str, Any], whole: Mapping[str, Any]):
  """(text, id) of the added tokens; what is no such entry is left to who reads the tokenizer."""
  decoder, entries = config.get("added_tokens_decoder"), whole.get("added_tokens")
  for index, token in (decoder.items() if isinstance(decoder, Mapping) else ()):
    if index.isdecimal() and isinstance(_text(token), str):
      yield _text(token), int(index)
  for token in entries if isinstance(entries, list) else ():
    if isinstance(token, Mapping) and type(token.get("id")) is int and isinstance(_text(token), str):
      yield _text(token), token["id"]
  yield from ((text, index) for text, index in only_ids.items() if type(index) is int)
