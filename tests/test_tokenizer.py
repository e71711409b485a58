"""Prompts in, completions out: LLaDA's chat format, left padding, buckets, stop tokens, and bad folders."""

import dataclasses
import json
import shutil

from hypothesis import assume, example, given, strategies as st
import numpy as np
import pytest

from gdsd_jax.huggingface.tokenizer import (
  chat_prompt,
  completion_ids,
  decode_completions,
  encode_prompts,
  load_tokenizer,
  stop_token_ids,
)
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.supervised.pretraining import END, END_OF_TURN, MASK, train_tokenizer

VOCAB_SIZE = 270
TAGS = ("<answer>", "</answer>")
# Runs of blanks, digits of other scripts, combining and invisible characters, a space before punctuation.
AWKWARD = "  a\n\n\tb  ١²½ e\u0301é \u200d🙂 1234.50 , it 's\r\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("tokenizer")
  train_tokenizer(iter(["Tom has 12 apples and buys 7 more."] * 20), VOCAB_SIZE, TAGS, path)
  return path


@pytest.fixture(scope="module")
def config(folder):
  added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
  ids = {token["content"]: token["id"] for token in added}
  return DenoiserConfig(
    vocab_size=VOCAB_SIZE, hidden_size=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, mlp_size=8,
    rope_theta=10000.0, norm_epsilon=1e-5, max_positions=64,
    mask_token_id=ids[MASK], eos_token_id=ids[END], pad_token_id=ids[END],
  )


@pytest.fixture(scope="module")
def tokenizer(folder, config):
  return load_tokenizer(folder, config)


@pytest.fixture
def copied(folder, tmp_path):
  """A copy of the folder, to be damaged."""
  return shutil.copytree(folder, tmp_path / "copy")


def special(tokenizer, token):
  return tokenizer.convert_tokens_to_ids(token)


def user(text):
  return [{"role": "user", "content": text}]


def rename_token(folder, old, new):
  file, config_file = folder / "tokenizer.json", folder / "tokenizer_config.json"
  file.write_text(file.read_text().replace(old, new))
  fields = json.loads(config_file.read_text())
  fields.pop("added_tokens_decoder", None)  # some releases of transformers repeat the added tokens here
  config_file.write_text(json.dumps(fields))


def test_chat_prompt_is_lladas(tokenizer):
  assert chat_prompt(tokenizer, user("How many?")) == (
    "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nHow many?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
  )


def test_messages_that_the_template_refuses_are_one_line(tokenizer, monkeypatch):
  monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('a system message is not known') }}")
  with pytest.raises(ValueError, match="^the model's chat template refuses it: a system message is not known$"):
    chat_prompt(tokenizer, user("one"))


def test_chat_prompt_begins_once_whatever_the_number_of_turns(tokenizer):
  messages = [*user(" one "), {"role": "assistant", "content": "two\n"}, *user("three")]
  assert chat_prompt(tokenizer, messages) == (
    "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\none<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\ntwo<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nthree<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
  )


@pytest.mark.parametrize("token", ["<|startoftext|>", END, END_OF_TURN, MASK, *TAGS, "0", "7"])
def test_special_tokens_tags_and_digits_are_single_tokens(tokenizer, token):
  assert tokenizer.encode(token, add_special_tokens=False) == [special(tokenizer, token)]


def test_digits_are_never_merged(tokenizer):
  assert len(tokenizer.encode("12", add_special_tokens=False)) == 2


def test_the_vocabulary_has_the_size_asked_for(tokenizer):
  assert len(tokenizer) == VOCAB_SIZE


@given(st.text())
@example(AWKWARD)
def test_any_text_round_trips(tokenizer, config, text):
  assume(not any(token.special and token.content in text for token in tokenizer.added_tokens_decoder.values()))
  tokens = tokenizer.encode(text + END, add_special_tokens=False)
  assert decode_completions(tokenizer, [tokens], (config.eos_token_id,)) == [text]


def test_prompts_are_padded_on_the_left(tokenizer):
  tokens, mask = encode_prompts(tokenizer, ["12", "1"], [4], pad_token_id=9)
  one, two = special(tokenizer, "1"), special(tokenizer, "2")
  assert tokens.tolist() == [[9, 9, one, two], [9, 9, 9, one]]
  assert mask.tolist() == [[False, False, True, True], [False, False, False, True]]


def test_encoded_prompts_are_int32_and_bool(tokenizer):
  tokens, mask = encode_prompts(tokenizer, ["12"], [4], pad_token_id=9)
  assert (tokens.dtype, mask.dtype) == (np.int32, bool)


def test_nothing_is_added_to_a_prompt(tokenizer):
  tokens, mask = encode_prompts(tokenizer, ["<|startoftext|>1"], [2], pad_token_id=9)
  assert tokens.tolist() == [[special(tokenizer, "<|startoftext|>"), special(tokenizer, "1")]]


@pytest.mark.parametrize("lengths, width", [([1], 3), ([3], 3), ([1, 4], 6), ([6, 2], 6), ([7], 9), ([9], 9)])
def test_the_width_is_the_smallest_bucket_that_holds_every_prompt(tokenizer, lengths, width):
  tokens, _ = encode_prompts(tokenizer, ["1" * length for length in lengths], (3, 6, 9), pad_token_id=9)
  assert tokens.shape == (len(lengths), width)


def test_a_prompt_beyond_the_last_bucket_is_refused_with_its_field_and_text(tokenizer):
  with pytest.raises(ValueError) as caught:
    encode_prompts(tokenizer, ["1", "1\n" * 5, "2"], (4, 9), pad_token_id=9)
  assert str(caught.value) == (
    'sampler.prompt_buckets: a prompt has 10 tokens, the largest bucket 9: "1\\n1\\n1\\n1\\n1\\n"'
  )


@pytest.mark.parametrize("row, length", [
  ([1, 2, 3, 4], 4), ([1, 7, 3, 4], 1), ([8, 7, 7, 7], 0), ([1, 2, 3, 8], 3), ([1, 2, 8, 1], 2),
])
def test_a_completion_is_as_long_as_what_precedes_its_first_stop_token(row, length):
  assert [len(ids) for ids in completion_ids(np.array([row]), (7, 8))] == [length]


def test_completions_are_cut_at_their_first_stop_token(tokenizer):
  one, end, turn = (special(tokenizer, token) for token in ("1", END, END_OF_TURN))
  rows = [[one, turn, one, end], [one, one, end, one], [end] * 4, [one] * 4]
  assert decode_completions(tokenizer, rows, (end, turn)) == ["1", "11", "", "1111"]


def test_special_tokens_within_a_completion_are_no_text(tokenizer):
  one, start = special(tokenizer, "1"), special(tokenizer, "<|startoftext|>")
  assert decode_completions(tokenizer, [[one, start, one]], (special(tokenizer, END),)) == ["11"]


def test_tags_within_a_completion_are_text(tokenizer):
  tokens = tokenizer.encode("<answer>1</answer>", add_special_tokens=False)
  assert decode_completions(tokenizer, [tokens], (special(tokenizer, END),)) == ["<answer>1</answer>"]


def test_end_of_text_and_end_of_turn_stop_a_completion(tokenizer, config):
  assert stop_token_ids(tokenizer, config) == tuple(
    sorted([special(tokenizer, END), special(tokenizer, END_OF_TURN)])
  )


def test_an_end_of_turn_that_the_vocabulary_lacks_stops_nothing(folder, config, copied):
  rename_token(copied, END_OF_TURN, "<|other|>")
  assert stop_token_ids(load_tokenizer(copied, config), config) == (config.eos_token_id,)


def panic(file):
  """Writes what the library's Rust code does not foresee: it raises what is no Exception in Python."""
  fields = json.loads(file.read_text())
  fields["model"]["continuing_subword_prefix"] = "zzz"
  file.write_text(json.dumps(fields))


def remove(name):
  return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize("damage, error, words", [
  (remove("tokenizer.json"), FileNotFoundError, "has no tokenizer.json"),
  (lambda folder: (folder / "tokenizer.json").write_text("{"), ValueError, "cannot be read"),
  (lambda folder: panic(folder / "tokenizer.json"), ValueError, "cannot be read"),
])
def test_a_damaged_folder_is_refused_in_one_line_that_names_it(copied, config, damage, error, words):
  damage(copied)
  with pytest.raises(error) as caught:
    load_tokenizer(copied, config)
  message = str(caught.value)
  assert message.startswith(f"model.path: {copied}") and words in message and "\n" not in message


def test_a_vocabulary_larger_than_the_models_is_refused_with_the_numbers(folder, config):
  smaller = dataclasses.replace(config, vocab_size=269, mask_token_id=0, eos_token_id=0, pad_token_id=0)
  with pytest.raises(ValueError) as caught:
    load_tokenizer(folder, smaller)
  assert str(caught.value) == f"model.path: {folder}: 270 tokens do not fit the model's 269"


def test_a_missing_folder_is_refused(config, tmp_path):
  with pytest.raises(FileNotFoundError, match=r"^model\.path: .*missing"):
    load_tokenizer(tmp_path / "missing", config)
