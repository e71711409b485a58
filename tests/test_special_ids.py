"""Ids of special tokens that config.json does not name: from the tokenizer's files, or else the family's own."""

import json

import pytest

from gdsd_jax.huggingface.folder import load_config

CONFIG = {
  "model_type": "sdar", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16,
  "num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 152000, "tie_word_embeddings": False,
  "max_position_embeddings": 64, "rope_theta": 10000.0, "rms_norm_eps": 1e-6,
}
DECODER = {"added_tokens_decoder": {"7": {"content": "<|MASK|>"}, "9": {"content": "<|end|>"}}}


def read(folder, tokenizer=None, special=None, added=None, whole=None, **fields):
  files = {"config.json": CONFIG | fields, "tokenizer_config.json": tokenizer, "special_tokens_map.json": special,
           "added_tokens.json": added, "tokenizer.json": whole}
  for name, content in files.items():
    if content is not None:
      (folder / name).write_text(json.dumps(content))
  config = load_config(folder)
  return config.mask_token_id, config.eos_token_id


@pytest.mark.parametrize("files, expected", [
  ({}, (151669, 151643)),
  ({"tokenizer": DECODER}, (151669, 151643)),  # no token is named there
  ({"tokenizer": DECODER | {"mask_token": "<|MASK|>"}}, (7, 151643)),
  ({"tokenizer": DECODER | {"mask_token": {"content": "<|MASK|>"}, "eos_token": "<|end|>"}}, (7, 9)),
  ({"special": {"mask_token": "<M>"}, "added": {"<M>": 8}}, (8, 151643)),
  ({"special": {"mask_token": "<M>"}, "whole": {"added_tokens": [{"id": 6, "content": "<M>"}]}}, (6, 151643)),
  ({"tokenizer": DECODER | {"mask_token": "<|MASK|>"}, "special": {"mask_token": "<M>"}}, (7, 151643)),
  ({"tokenizer": DECODER | {"mask_token": "<|MASK|>"}, "mask_token_id": 11, "eos_token_id": 12}, (11, 12)),
  ({"tokenizer": {"mask_token": 3, "added_tokens_decoder": []}, "whole": {"added_tokens": [1]}}, (151669, 151643)),
])
def test_ids_that_config_does_not_name_are_the_tokenizers_or_the_familys(tmp_path, files, expected):
  assert read(tmp_path, **files) == expected


def test_files_that_contradict_each_other_are_told_in_a_line(tmp_path):
  said = ("config.json has no mask_token_id, and the tokenizer's files contradict each other about it"
          " .tokenizer_config.json: 7, special_tokens_map.json: 8.; ")
  with pytest.raises(ValueError, match=f"^model.path: .*{said}") as found:
    read(tmp_path, DECODER | {"mask_token": "<|MASK|>"}, {"mask_token": "<M>"}, {"<M>": 8})
  assert "\n" not in str(found.value)


def test_a_damaged_file_of_the_tokenizer_is_named(tmp_path):
  (tmp_path / "tokenizer_config.json").write_text("{")
  with pytest.raises(ValueError, match="^model.path: .*tokenizer_config.json is not JSON"):
    read(tmp_path)
