"""The pieces of a completion's tokens, of any tokenizer: together what it decodes, and no character in parts."""

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers
import transformers

from gdsd_jax.generation.tokens_told import _byte_alphabet, token_pieces, told_tokens
from gdsd_jax.huggingface.tokenizer import load_tokenizer

# Families of emoji, flags, right-to-left text with its marks, combining characters, blanks, markup.
AWKWARD = "👩‍👩‍👧 a 🇩🇪 שלום \u202bمرحبا\u202c e\u0301 数学  \n\t<b>\ufffd 𝔘 <0x41>"
NO_CHARACTER = "\ufffd"


def _fast(model, decoder, added=()):
  backend = tokenizers.Tokenizer(model)
  backend.decoder = decoder
  tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
  tokenizer.add_tokens(list(added))
  tokenizer.add_special_tokens({"eos_token": "<|end of text|>"})
  return tokenizer


def _vocabulary(tokens):
  return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


@pytest.fixture(scope="module")
def kinds():
  """Tokenizers by their kind, small ones."""
  byte_level = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġa", "ðŁĺ", "ï¿½", "<0x41>", "Ã©"]
  pieces = ["<unk>", "▁", "▁▁", "▁a", "a", "▁שלום", "é", NO_CHARACTER, *(f"<0x{byte:02X}>" for byte in range(256))]
  llama = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
  words = ["[UNK]", "a", "##b", ".", "'", "שלום", "🙂", NO_CHARACTER]
  return {
    "embedded": load_tokenizer("tiny"),
    "byte-level": _fast(models.BPE(_vocabulary(byte_level), []), decoders.ByteLevel(), ["é", "数学", "Ð"]),
    "sentencepiece": _fast(models.BPE(_vocabulary(pieces), [], byte_fallback=True), decoders.Sequence(llama)),
    "metaspace": _fast(models.Unigram([(piece, 0.0) for piece in pieces], 0), decoders.Metaspace()),
    "words": _fast(models.WordPiece(_vocabulary(words), unk_token="[UNK]"), decoders.WordPiece()),
    "joined": _fast(models.WordLevel(_vocabulary(["<unk>", "a", "🙂", "."]), "<unk>"), None),
  }


def decoded(tokenizer, ids):
  return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


KINDS = ("embedded", "byte-level", "sentencepiece", "metaspace", "words", "joined")


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(data=st.data())
def test_the_pieces_of_any_tokens_are_what_the_tokenizer_decodes(kinds, kind, data):
  tokenizer = kinds[kind]
  ids = data.draw(st.lists(st.integers(0, len(tokenizer) + 1), max_size=12))  # the last are of no token
  pieces = token_pieces(tokenizer, ids)
  assert len(pieces) == len(ids)
  assert "".join(pieces) == decoded(tokenizer, ids)


@pytest.mark.parametrize("kind", ["embedded", "byte-level", "sentencepiece"])
def test_a_character_of_several_tokens_is_the_piece_of_the_last(kinds, kind):
  names = {byte: name for name, byte in _byte_alphabet().items()}
  spelled = [f"<0x{byte:02X}>" if kind == "sentencepiece" else names[byte] for byte in AWKWARD.encode()]
  pieces = token_pieces(kinds[kind], kinds[kind].convert_tokens_to_ids(spelled))
  assert [piece for piece in pieces if piece] == list(AWKWARD)
  ends = np.cumsum([len(character.encode()) for character in AWKWARD]) - 1
  assert [place for place, piece in enumerate(pieces) if piece] == ends.tolist()


@pytest.mark.parametrize("kind,tokens,pieces", [
  ("byte-level", ["ðŁĺ", "Ģ", "<|end of text|>", "Ġa", "<0x41>"], ["", "😀", "<|end of text|>", " a", "<0x41>"]),
  ("byte-level", ["ðŁĺ", "Ġa", "ðŁĺ"], ["", f"{NO_CHARACTER} a", NO_CHARACTER]),
  ("sentencepiece", ["▁", "▁a", "<0xC3>", "<0xA9>", "▁▁"], ["", " a", "", "é", "  "]),
])
def test_pieces(kinds, kind, tokens, pieces):
  assert token_pieces(kinds[kind], kinds[kind].convert_tokens_to_ids(tokens)) == pieces


def test_a_long_completion_is_decoded_a_few_times(kinds, monkeypatch):
  tokenizer, lengths = kinds["byte-level"], []
  decode = type(tokenizer).decode

  def counted(self, ids, **how):
    lengths.append(len(ids))
    return decode(self, ids, **how)

  monkeypatch.setattr(type(tokenizer), "decode", counted)
  ids = np.random.default_rng(0).integers(0, len(tokenizer), 8000)
  pieces = token_pieces(tokenizer, ids)
  assert "".join(pieces) == decode(tokenizer, ids.tolist())
  assert sum(lengths) < 2 * 8000


def test_numbers_have_four_digits_and_none_where_there_is_none(kinds):
  told = told_tokens(kinds["joined"], [1, 1, 3], np.array([2, 0, 1], np.int32),
                     np.array([0.123456, np.nan, 1], np.float32), np.array([-1.23456e-7, -np.inf, 0], np.float32))
  assert told == {"tokens": ["a", " a", " ."], "unmasked": [2, 0, 1], "confidence": [0.1235, None, 1.0],
                  "logp": [-1.235e-7, None, 0.0]}


def test_what_is_not_known_is_none(kinds):
  assert told_tokens(kinds["joined"], [1]) == {"tokens": ["a"], "unmasked": None, "confidence": None, "logp": None}
