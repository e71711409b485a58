"""A completion token by token, as people read it: pieces of text, and when and how surely each was unmasked."""

import codecs
from collections.abc import Sequence
import functools
import itertools
import re
from typing import Any

import numpy as np

from gdsd_jax.huggingface.tokenizer import token_ids

_NO_CHARACTER = "\N{REPLACEMENT CHARACTER}"  # what decoders write in the place of bytes that are no character
_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")  # SentencePiece's name of the token of a single byte


def told_tokens(tokenizer, ids, steps=None, confidence=None, logp=None) -> dict[str, Any]:
  """The tokens of one completion as rollouts.jsonl has them.

  Args:
    tokenizer: the model's (`load_tokenizer`).
    ids: int[L], those behind the end of text included.
    steps, confidence, logp: [L] each, as in `Rollout`; None where they are not known.

  Returns:
    `tokens`, the L pieces of `token_pieces`; `unmasked`, the denoising step of each, from 0; `confidence` and `logp`.
    What is not known is None.
  """
  listed = lambda numbers: None if numbers is None else [rounded(number) for number in np.asarray(numbers).tolist()]
  return {
    "tokens": token_pieces(tokenizer, ids),
    "unmasked": None if steps is None else np.asarray(steps).tolist(),
    "confidence": listed(confidence),
    "logp": listed(logp),
  }


def rounded(number: float) -> float | None:
  """A number by its 4 significant digits; None for what is no finite number."""
  return float(f"{number:.4g}") if np.isfinite(number) else None


def token_pieces(tokenizer, ids: Sequence[int]) -> list[str]:
  """The text of each of the tokens, int[L]; together they are what the tokenizer decodes, special tokens by their name.

  A character whose bytes are spread over several tokens is the piece of the one that completes it, those before it are
  empty. So are the pieces of ids that stand for no token. The time grows as L does.
  """
  ids = np.asarray(ids).tolist()
  names = {token: tokenizer.convert_ids_to_tokens(token) for token in set(ids)}
  places = [place for place, token in enumerate(ids) if names[token] is not None]
  pieces, decoder = [""] * len(ids), codecs.getincrementaldecoder("utf-8")("replace")
  for place, part in zip(places, _as_bytes(tokenizer, [ids[place] for place in places], names)):
    pieces[place] = decoder.decode(part)
  if places:
    pieces[places[-1]] += decoder.decode(b"", final=True)
  return pieces


def _as_bytes(tokenizer, ids: list[int], names: dict[int, str]) -> list[bytes]:
  """What each token adds to the text, in UTF-8: less than a character where the token is no more than that."""
  decode = functools.partial(tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
  letter = token_ids(tokenizer, ["a"])[0]
  behind_letter = len(decode(letter))
  behind = {token: decode([*letter, token])[behind_letter:] for token in set(ids)}
  texts = [behind[token] for token in ids]
  # Decoders may treat the beginning of a text in a way of its own: most drop a blank there.
  opening = next((count for count in range(1, len(ids) + 1) if decode(ids[:count])), len(ids))
  texts[:opening] = [""] * (opening - 1) + [decode(ids[:opening])] * bool(ids)
  found = [_spelled(names[token], text) for token, text in zip(ids, texts)]
  # SentencePiece reads a run of single bytes as a whole, and none of them where they are not all of characters.
  is_byte = lambda place: bool(_BYTE.fullmatch(names[ids[place]])) and behind[ids[place]] != names[ids[place]]
  for of_bytes, run in itertools.groupby(range(len(ids)), is_byte):
    run = list(run)
    if of_bytes and not _is_text(b"".join(found[run[0]:run[-1] + 1])):
      found[run[0]:run[-1] + 1] = [_NO_CHARACTER.encode()] * len(run)
  return found


def _is_text(content: bytes) -> bool:
  try:
    return content.decode() is not None
  except UnicodeDecodeError:
    return False


def _spelled(name: str, text: str) -> bytes:
  """The bytes of a token, from its name and from the text that it is read as by itself."""
  if _NO_CHARACTER in text:
    if single := _BYTE.fullmatch(name):
      return bytes.fromhex(single[1])
    if all(character in _byte_alphabet() for character in name):
      return bytes(_byte_alphabet()[character] for character in name)
  return text.encode()


@functools.cache
def _byte_alphabet() -> dict[str, int]:
  """The characters by which byte-level BPE writes bytes (GPT-2's): itself, if it is visible, or one from 256 on."""
  visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
  others = [byte for byte in range(256) if byte not in visible]
  return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(others)}
