"""Qwen2's byte-level BPE from vocab.json and merges.txt, for models that ship it with a Python class of their own.

transformers' Qwen2 tokenizer reads the same files, but numbers the added tokens one after the other from the end of
vocab.json, whatever ids the files state: where these leave a gap, text would silently become other tokens. It also
leaves out what only added_tokens.json has. Hence this file.
"""

from collections.abc import Mapping
import json
from pathlib import Path
from typing import Any

FAMILIES = ("dream", "sdar", "sdar_moe")
# Pieces that BPE never joins: contractions, words with one leading mark or space, single digits, runs of other marks,
# line breaks, blanks. The models were trained on these: with any other rule the same text gives other tokens.
_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def load_backend(folder: Path):
  """Reads vocab.json, merges.txt and the added tokens in a folder's JSON files as a `tokenizers.Tokenizer`.

  Added tokens keep their stated ids. Raises ValueError where a file is damaged, or two tokens claim one id.
  """
  import tokenizers  # slow to import, and only text needs it

  try:
    vocab, merges = tokenizers.models.BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    added = _added_tokens(folder)
    # The added tokens join BPE's own vocabulary, since the library numbers all others itself, one after the other. No
    # merge leads to them, so text becomes one of them only where the library looks for added tokens.
    vocab.update({token.content: index for index, token in added.items()})
    if len(set(vocab.values())) < len(vocab):
      raise ValueError("an added token has the id of another token")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
  except Exception as error:  # the library raises bare Exception
    raise ValueError(f"model.path: {folder} has no readable vocab.json, merges.txt and added tokens: {error}") from None
  backend.normalizer = tokenizers.normalizers.NFC()
  cuts = tokenizers.pre_tokenizers
  split = cuts.Split(tokenizers.Regex(_SPLIT), behavior="isolated")
  backend.pre_tokenizer = cuts.Sequence([split, cuts.ByteLevel(add_prefix_space=False, use_regex=False)])
  backend.decoder = tokenizers.decoders.ByteLevel()
  backend.add_tokens([token for token in added.values() if not token.special])
  backend.add_special_tokens([token for token in added.values() if token.special])
  return backend


def _added_tokens(folder: Path) -> dict[int, Any]:
  """Added tokens by id: those in tokenizer_config.json, and those that only added_tokens.json has."""
  from tokenizers import AddedToken

  read = lambda name: json.loads((folder / name).read_text("utf-8")) if (folder / name).is_file() else {}
  config, special_map, only_ids = map(read, ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"))
  added = {int(index): AddedToken(**token) for index, token in config.get("added_tokens_decoder", {}).items()}
  special = _special_strings(config) | _special_strings(special_map)
  known = {token.content for token in added.values()}
  for content, index in only_ids.items():
    if content not in known and index not in added:  # SDAR's mask has another name there
      is_special = content in special
      added[index] = AddedToken(content, special=is_special, normalized=not is_special)
  return dict(sorted(added.items()))


def _special_strings(fields: Mapping[str, Any]) -> set[str]:
  """Strings that special_tokens_map.json or tokenizer_config.json names as special tokens."""
  values = [value for name, value in fields.items() if name.endswith("_token")]
  values += fields.get("additional_special_tokens") or []
  return {value["content"] if isinstance(value, dict) else value for value in values if isinstance(value, (dict, str))}
