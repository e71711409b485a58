"""The published models' tokenizer layouts, rebuilt small: Dream's (Qwen2 BPE, a class of its own) and LLaDA's."""

import dataclasses
import json
import re
import shutil
import unicodedata

from hypothesis import assume, example, given, strategies as st
import numpy as np
import pytest
import tokenizers
import transformers

from gdsd_jax.huggingface.tokenizer import (
  chat_prompt,
  decode_completions,
  encode_prompts,
  load_tokenizer,
  prompt_lengths,
  stop_token_ids,
)
from gdsd_jax.huggingface.tokenizer_export import write_tokenizer
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.supervised.pretraining import train_tokenizer

CORPUS = ["Tom doesn't have 1234 apples; he'd buy 56 more.\n\n    return x == 10  # Größe 数学 \u0635\n"] * 30
# Contractions in both cases, digits of several scripts, runs of blanks and line breaks, combining and invisible
# characters, marks glued to words.
AWKWARD = "I'M they'll  1234567 ١²½ \n\n\t x=1\r\n 'tis (foo)bar e\u0301é \u200d🙂 数学1 a  b   \n c "
DREAM_IDS = {
  "<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645, "<tool_call>": 151657,
  "<|beginoftext|>": 151665, "<|mask|>": 151666,
}
CHATML = (
  "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}"
  "{%- else %}{{- '<|im_start|>system\nFrom the files.<|im_end|>\n' }}{%- endif %}"
  "{%- for message in messages %}{%- if message.role != 'system' %}"
  "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
  "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


def write_json(file, fields):
  file.write_text(json.dumps(fields), "utf-8")


def edit_json(file, **fields):
  write_json(file, {**json.loads(file.read_text("utf-8")), **fields})


def config_of(vocab_size, mask, end, family):
  return DenoiserConfig(
    vocab_size=vocab_size, hidden_size=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, mlp_size=8,
    rope_theta=10000.0, norm_epsilon=1e-6, max_positions=64, mask_token_id=mask, eos_token_id=end, pad_token_id=end,
    family=family,
  )


@pytest.fixture(scope="module")
def dream_config():
  return config_of(152064, DREAM_IDS["<|mask|>"], DREAM_IDS["<|endoftext|>"], "dream")


@pytest.fixture(scope="module")
def dream_folder(tmp_path_factory):
  """Dream's files and ids with a small vocabulary: a wide gap before the added tokens, and gaps between them."""
  folder = tmp_path_factory.mktemp("dream")
  bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
  bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  bpe.train_from_iterator(CORPUS, tokenizers.trainers.BpeTrainer(
    vocab_size=400, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
  ))
  bpe.model.save(str(folder))
  added = {
    str(index): {"content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                 "special": token != "<tool_call>"}
    for token, index in DREAM_IDS.items()
  }
  write_json(folder / "tokenizer_config.json", {
    "add_prefix_space": False, "added_tokens_decoder": added,
    "additional_special_tokens": ["<|beginoftext|>", "<|mask|>"],
    "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
    "bos_token": "<|beginoftext|>", "clean_up_tokenization_spaces": False, "eos_token": "<|endoftext|>",
    "errors": "replace", "mask_token": "<|mask|>", "model_max_length": 131072, "pad_token": "<|endoftext|>",
    "split_special_tokens": False, "tokenizer_class": "DreamTokenizer", "unk_token": None,
  })
  write_json(folder / "special_tokens_map.json", {
    "additional_special_tokens": ["<|beginoftext|>", "<|mask|>"],
    "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "mask_token": "<|mask|>",
  })
  (folder / "tokenization_dream.py").write_text("raise SystemExit('code of the folder was run')\n")
  return folder


@pytest.fixture(scope="module")
def dream(dream_folder, dream_config):
  return load_tokenizer(dream_folder, dream_config)


@pytest.fixture(scope="module")
def qwen2(dream_folder, tmp_path_factory):
  """The reference: the library's own Qwen2 tokenizer over the same vocabulary and merges, without added tokens."""
  folder = tmp_path_factory.mktemp("qwen2")
  for name in ("vocab.json", "merges.txt"):
    shutil.copy(dream_folder / name, folder)
  return transformers.Qwen2TokenizerFast.from_pretrained(folder)


@pytest.fixture
def dream_copy(dream_folder, tmp_path):
  return shutil.copytree(dream_folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def llada_folder(tmp_path_factory):
  """LLaDA's layout: tokenizer.json whose mask token no file calls one, and no chat template, as in the base model."""
  folder = tmp_path_factory.mktemp("llada")
  train_tokenizer(iter(CORPUS), 400, ("[CLS]", "[gMASK]"), folder)
  (folder / "chat_template.jinja").unlink(missing_ok=True)
  fields = json.loads((folder / "tokenizer_config.json").read_text())
  for name in ("chat_template", "mask_token", "added_tokens_decoder"):
    fields.pop(name, None)
  write_json(folder / "tokenizer_config.json", fields | {
    "additional_special_tokens": ["<|mdm_mask|>"], "add_bos_token": False, "add_eos_token": False,
    "cls_token": "[CLS]", "gmask_token": "[gMASK]", "tokenizer_class": "PreTrainedTokenizerFast",
    "trust_remote_code": True,
  })
  return folder


@pytest.fixture(scope="module")
def llada_config(llada_folder):
  ids = {t["content"]: t["id"] for t in json.loads((llada_folder / "tokenizer.json").read_text())["added_tokens"]}
  return config_of(512, ids["<|mdm_mask|>"], ids["<|endoftext|>"], "llada")  # more rows than tokens, as published


@pytest.fixture(scope="module")
def llada(llada_folder, llada_config):
  return load_tokenizer(llada_folder, llada_config)


@pytest.fixture
def llada_copy(llada_folder, tmp_path):
  return shutil.copytree(llada_folder, tmp_path / "copy")


def tokens_of(tokenizer, text):
  return tokenizer.encode(text, add_special_tokens=False)


def user(text):
  return [{"role": "user", "content": text}]


@pytest.mark.parametrize("token, index", DREAM_IDS.items())
def test_dreams_added_tokens_have_their_stated_ids(dream, token, index):
  assert tokens_of(dream, f"a{token}b")[1:-1] == [index]


@given(st.text())
@example(AWKWARD)
@example(CORPUS[0])
def test_dreams_text_is_split_as_qwen2_does(dream, qwen2, text):
  assume(not any(token in text for token in DREAM_IDS))
  assert tokens_of(dream, text) == tokens_of(qwen2, text)


@pytest.mark.parametrize("text, pieces", [
  ("x1234", ["x", "1", "2", "3", "4"]),
  ("he'd I'LLx", ["he", "'d", " I", "'LL", "x"]),
  ("a  b", ["a", " ", " b"]),
  ("a\n\n b", ["a", "\n\n", " b"]),
  ("(foo)+bar!?\n", ["(foo", ")+", "bar", "!?\n"]),
])
def test_dreams_pieces_before_merging(dream, text, pieces):
  splits = dream.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
  assert [text[start:end] for _, (start, end) in splits] == pieces


@given(st.text())
@example(AWKWARD)
def test_dreams_text_round_trips_up_to_unicode_normal_form(dream, dream_config, text):
  assume(not any(token in text for token in DREAM_IDS))
  tokens = tokens_of(dream, text) + [dream_config.eos_token_id]
  assert decode_completions(dream, [tokens], (dream_config.eos_token_id,)) == [unicodedata.normalize("NFC", text)]


def test_dreams_begin_and_mask_are_what_the_files_call_so(dream):
  assert (dream.bos_token_id, dream.mask_token_id) == (151665, 151666)


def test_another_begin_of_text_in_the_files_wins(dream_copy, dream_config):
  edit_json(dream_copy / "tokenizer_config.json", bos_token="<|endoftext|>")
  assert load_tokenizer(dream_copy, dream_config).bos_token_id == 151643


def test_added_tokens_json_adds_what_the_decoder_lacks(dream_copy, dream_config):
  write_json(dream_copy / "added_tokens.json", {**DREAM_IDS, "<new>": 151700})
  assert tokens_of(load_tokenizer(dream_copy, dream_config), "1<new>1")[1] == 151700


@pytest.fixture
def dream_of_old(dream_copy, dream_config):
  """Its added tokens only in added_tokens.json, as older releases of the library wrote them."""
  file = dream_copy / "tokenizer_config.json"
  fields = json.loads(file.read_text())
  del fields["added_tokens_decoder"]
  write_json(file, fields)
  write_json(dream_copy / "added_tokens.json", DREAM_IDS)
  edit_json(dream_copy / "special_tokens_map.json", additional_special_tokens=["<|im_start|>", "<|im_end|>"])
  return load_tokenizer(dream_copy, dream_config)


def test_added_tokens_json_alone_gives_the_ids(dream_of_old):
  assert tokens_of(dream_of_old, "".join(DREAM_IDS)) == list(DREAM_IDS.values())


def test_special_tokens_map_tells_which_of_them_are_special(dream_of_old):
  assert decode_completions(dream_of_old, [tokens_of(dream_of_old, "1<|im_start|>2<tool_call>")], ()) == [
    "12<tool_call>"
  ]


def test_a_special_end_of_turn_stops_there_too(dream_of_old, dream_config):
  assert stop_token_ids(dream_of_old, dream_config) == (151643, 151645)


def test_dreams_tokenizer_saves_and_loads_as_tokenizer_json(dream, dream_config, tmp_path):
  dream.save_pretrained(tmp_path)
  again = load_tokenizer(tmp_path, dream_config)
  text = AWKWARD + "".join(DREAM_IDS) + AWKWARD
  assert tokens_of(again, text) == tokens_of(dream, text)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_dream_without_one_of_its_files_is_refused(dream_copy, dream_config, name):
  (dream_copy / name).unlink()
  with pytest.raises(FileNotFoundError) as caught:
    load_tokenizer(dream_copy, dream_config)
  assert str(caught.value) == f"model.path: {dream_copy} has neither tokenizer.json nor {name}"


def damage_merges(folder):
  (folder / "merges.txt").write_text("#version: 0.2\nnot in vocabulary\n")


def repeat_id(folder):
  write_json(folder / "added_tokens.json", {"<new>": 5})


@pytest.mark.parametrize("damage", [
  damage_merges, repeat_id,
  lambda folder: (folder / "vocab.json").write_text("{"),
  lambda folder: (folder / "added_tokens.json").write_text("{"),
])
def test_damaged_dream_files_are_refused_in_one_line(dream_copy, dream_config, damage):
  damage(dream_copy)
  with pytest.raises(ValueError) as caught:
    load_tokenizer(dream_copy, dream_config)
  assert str(caught.value).startswith(f"model.path: {dream_copy} has no readable") and "\n" not in str(caught.value)


def test_an_added_token_beyond_the_models_rows_is_refused_with_the_numbers(dream_folder, dream_config):
  smaller = dataclasses.replace(dream_config, vocab_size=151666, mask_token_id=0)
  with pytest.raises(ValueError) as caught:
    load_tokenizer(dream_folder, smaller)
  assert str(caught.value) == f"model.path: {dream_folder}: 151667 tokens do not fit the model's 151666"


def test_a_mask_token_that_config_json_contradicts_is_refused(dream_folder, dream_config):
  with pytest.raises(ValueError) as caught:
    load_tokenizer(dream_folder, dataclasses.replace(dream_config, mask_token_id=151665))
  assert str(caught.value) == (
    f"model.path: {dream_folder}: the mask token is 151666 in the tokenizer's files, 151665 in config.json or"
    " model.mask_token_id"
  )


def test_a_mask_token_that_only_config_json_knows_is_the_tokenizers(llada):
  assert llada.mask_token == "<|mdm_mask|>"


def test_dreams_preset_is_the_published_format(dream):
  assert chat_prompt(dream, user(" How many? ")) == (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n How many? <|im_end|>\n<|im_start|>assistant\n"
  )


def test_a_system_message_replaces_dreams_default(dream):
  assert chat_prompt(dream, [{"role": "system", "content": "Be brief."}, *user("Hi")]) == (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
  )


def test_lladas_preset_is_the_published_format(llada):
  messages = [{"role": "system", "content": "Be brief."}, *user("Hi")]
  assert chat_prompt(llada, messages) == (
    "<|startoftext|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
  )


def published_table(goldens):
  file = goldens.parent / "models.md"
  if not file.is_file():
    pytest.skip(f"{file} is missing")
  row = next(line for line in file.read_text().splitlines() if line.startswith("| chat format"))
  return [cell.replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row)[2:4]]


def test_the_presets_are_made_of_the_tokens_of_the_published_table(goldens, llada, dream):
  for tokenizer, cell in zip((llada, dream), published_table(goldens)):
    turn = next(text for text in re.findall("`([^`]*)`", cell) if "ROLE" in text).replace("\\n", "\n")
    messages = [{"role": "system", "content": "S"}, *user("U")]
    turns = "".join(turn.replace("ROLE", m["role"]).replace("TEXT", m["content"]) for m in messages)
    begin = "<|startoftext|>" if "`<|startoftext|>`" in cell else ""
    assistant = turn.partition("TEXT")[0].replace("ROLE", "assistant")
    assert chat_prompt(tokenizer, messages) == begin + turns + assistant


PLAIN = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"


@pytest.mark.parametrize("write", [
  lambda folder: edit_json(folder / "tokenizer_config.json", chat_template=PLAIN),
  lambda folder: (folder / "chat_template.jinja").write_text(PLAIN),
  lambda folder: write_json(folder / "chat_template.json", {"chat_template": PLAIN}),
  lambda folder: edit_json(folder / "tokenizer_config.json", chat_template=[
    {"name": "tool_use", "template": "tools"}, {"name": "default", "template": PLAIN},
  ]),
  lambda folder: edit_json(folder / "tokenizer_config.json", chat_template=[{"name": "rag", "template": PLAIN}]),
], ids=["config", "jinja", "json", "named", "only one, named"])
@pytest.mark.parametrize("family", ["dream", "llada"])
def test_a_template_of_the_folder_wins_over_the_preset(request, family, write):
  folder, config = request.getfixturevalue(f"{family}_copy"), request.getfixturevalue(f"{family}_config")
  write(folder)
  assert chat_prompt(load_tokenizer(folder, config), user("Hi")) == "[Hi]"


def test_named_templates_without_a_default_are_refused(dream_copy, dream_config):
  templates = [{"name": "rag", "template": PLAIN}, {"name": "tool_use", "template": PLAIN}]
  edit_json(dream_copy / "tokenizer_config.json", chat_template=templates)
  with pytest.raises(ValueError) as caught:
    load_tokenizer(dream_copy, dream_config)
  assert str(caught.value) == (
    f"model.path: {dream_copy} has chat templates rag, tool_use, but none named default"
  )


def test_a_template_that_does_not_render_is_refused_in_one_line(dream_copy, dream_config):
  (dream_copy / "chat_template.jinja").write_text("{% for m in messages %}")
  with pytest.raises(ValueError) as caught:
    load_tokenizer(dream_copy, dream_config)
  assert str(caught.value).startswith(f"model.path: {dream_copy}: ") and "\n" not in str(caught.value)


def test_a_preset_whose_tokens_the_vocabulary_lacks_is_refused(llada_copy, llada_config):
  file = llada_copy / "tokenizer.json"
  file.write_text(file.read_text().replace("<|eot_id|>", "<|other|>"))
  with pytest.raises(ValueError) as caught:
    load_tokenizer(llada_copy, llada_config)
  assert str(caught.value) == (
    f"model.path: {llada_copy} has no chat template, and its vocabulary lacks <|eot_id|> of llada's format"
  )


def test_a_family_without_preset_needs_a_template(llada_folder, llada_config):
  with pytest.raises(ValueError, match="has no chat template"):
    load_tokenizer(llada_folder, dataclasses.replace(llada_config, family="another"))


def test_dream_stops_at_the_end_of_text_and_of_turn(dream, dream_config):
  assert stop_token_ids(dream, dream_config) == (151643, 151645)


def test_the_end_of_turn_is_found_in_a_template_of_the_files(dream_copy, dream_config):
  edit_json(dream_copy / "tokenizer_config.json", chat_template=CHATML)
  assert stop_token_ids(load_tokenizer(dream_copy, dream_config), dream_config) == (151643, 151645)


def test_the_end_of_turn_is_found_before_a_prompt_for_the_reply_that_is_always_written(llada_copy, llada_config):
  (llada_copy / "chat_template.jinja").write_text(
    "{% for m in messages %}{% set text = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
    " + m['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set text = bos_token + text %}{% endif %}"
    "{{ text }}{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
  )
  tokenizer = load_tokenizer(llada_copy, llada_config)
  ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|eot_id|>")]
  assert stop_token_ids(tokenizer, llada_config) == tuple(sorted(ends))


@pytest.mark.parametrize("stated, expected", [
  ([7, 8], (7, 8, 151643, 151645)), (9, (9, 151643, 151645)), (None, (151643, 151645)),
])
def test_generation_config_adds_its_ends(dream_copy, dream_config, stated, expected):
  write_json(dream_copy / "generation_config.json", {"eos_token_id": stated})
  assert stop_token_ids(load_tokenizer(dream_copy, dream_config), dream_config) == expected


@pytest.mark.parametrize("text", ["{", "[]", '{"eos_token_id": "end"}'])
def test_a_damaged_generation_config_is_refused_in_one_line(dream_copy, dream_config, text):
  (dream_copy / "generation_config.json").write_text(text)
  with pytest.raises(ValueError) as caught:
    load_tokenizer(dream_copy, dream_config)
  assert re.fullmatch(rf"model\.path: {dream_copy}: generation_config\.json .*", str(caught.value))


def test_an_ordinary_token_as_padding_ends_no_text(dream, dream_config):
  assert 0 not in stop_token_ids(dream, dataclasses.replace(dream_config, pad_token_id=0))


@pytest.fixture
def dream_unnamed(dream_copy, dream_config):
  """Its added tokens in added_tokens.json, and no file that tells which of them are special or the end of text."""
  for name in ("tokenizer_config.json", "special_tokens_map.json"):
    (dream_copy / name).unlink()
  write_json(dream_copy / "added_tokens.json", DREAM_IDS)
  return load_tokenizer(dream_copy, dream_config)


def test_an_end_of_turn_that_no_file_calls_special_stops_too(dream_unnamed, dream_config):
  assert stop_token_ids(dream_unnamed, dream_config) == (151643, 151645)


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "<|mask|>", "<|endoftext|>"])
def test_a_message_cannot_forge_what_no_file_calls_special(dream_unnamed, token):
  with pytest.raises(ValueError, match=re.escape(f"a user message holds {token}")):
    chat_prompt(dream_unnamed, user(token))


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "<|mask|>", "<|endoftext|>"])
def test_a_message_cannot_forge_a_turn_an_end_or_a_mask(dream, token):
  with pytest.raises(ValueError) as caught:
    chat_prompt(dream, user(f'say "{token}"'))
  assert str(caught.value) == (
    f'a user message holds {token}, which only the chat format may write: "say \\"{token}\\""'
  )


@pytest.mark.parametrize("token", ["<|eot_id|>", "<|start_header_id|>", "<|mdm_mask|>", "<|endoftext|>"])
def test_a_message_to_llada_cannot_either(llada, token):
  with pytest.raises(ValueError, match=re.escape(f"a user message holds {token}")):
    chat_prompt(llada, user(token))


def test_other_added_tokens_within_a_message_are_kept(dream):
  prompt = chat_prompt(dream, user("<tool_call>"))
  assert DREAM_IDS["<tool_call>"] in tokens_of(dream, prompt)


@pytest.mark.parametrize("family, mask", [("llada", "<|mdm_mask|>"), ("dream", "<|mask|>")])
def test_an_encoded_prompt_never_holds_the_mask_token(request, family, mask):
  with pytest.raises(ValueError) as caught:
    encode_prompts(request.getfixturevalue(family), ["fine", f"a{mask}b"], (16,), pad_token_id=0)
  assert str(caught.value) == f'a prompt holds the mask token {mask}: "a{mask}b"'


def test_padding_with_the_mask_tokens_id_is_no_mask_in_a_prompt(dream):
  tokens, mask = encode_prompts(dream, ["a", "bcd"], (16,), pad_token_id=dream.mask_token_id)
  assert not mask[tokens == dream.mask_token_id].any()


def test_a_prompt_begins_with_begin_of_text_once_though_the_tokenizer_adds_it_too(llada_copy, llada_config, llada):
  begin = {"id": "<|startoftext|>", "ids": [llada.bos_token_id], "tokens": ["<|startoftext|>"]}
  one = [{"SpecialToken": {"id": "<|startoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
  edit_json(llada_copy / "tokenizer.json", post_processor={
    "type": "TemplateProcessing", "single": one, "pair": [*one, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<|startoftext|>": begin},
  })
  edit_json(llada_copy / "tokenizer_config.json", add_bos_token=True)
  tokenizer = load_tokenizer(llada_copy, llada_config)
  tokens, mask = encode_prompts(tokenizer, [chat_prompt(tokenizer, user("Hi"))], (32,), pad_token_id=0)
  assert (tokens[mask] == llada.bos_token_id).sum() == 1


def test_prompt_lengths_are_those_of_encoded_prompts(dream):
  prompts = ["", "1234", AWKWARD]
  _, mask = encode_prompts(dream, prompts, (256,), pad_token_id=0)
  np.testing.assert_array_equal(prompt_lengths(dream, prompts), mask.sum(axis=1))


def test_prompt_lengths_of_no_prompts(dream):
  assert prompt_lengths(dream, []).shape == (0,)


def test_truncation_and_padding_stored_in_the_files_do_not_change_prompts(llada_copy, llada_config):
  edit_json(
    llada_copy / "tokenizer.json",
    truncation={"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
    padding={"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
             "pad_type_id": 0, "pad_token": "<|endoftext|>"},
  )
  assert prompt_lengths(load_tokenizer(llada_copy, llada_config), ["12345", "1"]).tolist() == [5, 1]


@pytest.mark.parametrize("family, last", [("llada", 511), ("dream", 152063)])
def test_masks_and_ids_without_a_token_decode_to_nothing(request, family, last):
  tokenizer, config = request.getfixturevalue(family), request.getfixturevalue(f"{family}_config")
  one, = tokens_of(tokenizer, "1")
  row = [one, config.mask_token_id, one, 450, last, one]
  assert decode_completions(tokenizer, [row], stop_token_ids(tokenizer, config)) == ["111"]


def test_spaces_before_marks_stay_whatever_the_files_ask_for(dream_copy, dream_config):
  edit_json(dream_copy / "tokenizer_config.json", clean_up_tokenization_spaces=True)
  tokenizer = load_tokenizer(dream_copy, dream_config)
  assert decode_completions(tokenizer, [tokens_of(tokenizer, "it 's 1 , 2 .")], ()) == ["it 's 1 , 2 ."]


def test_settings_that_would_split_the_chat_formats_own_tokens_are_refused(dream_copy, dream_config):
  edit_json(dream_copy / "tokenizer_config.json", split_special_tokens=True)
  with pytest.raises(ValueError, match=f"^model.path: {dream_copy}: tokenizer_config.json has split_special_tokens"):
    load_tokenizer(dream_copy, dream_config)


@pytest.mark.parametrize("name, value", [
  ("add_bos_token", True), ("padding_side", "right"), ("truncation_side", "left"), ("model_max_length", 5),
])
def test_settings_for_plain_text_do_not_change_chats(dream, dream_copy, dream_config, name, value):
  edit_json(dream_copy / "tokenizer_config.json", **{name: value})
  other = load_tokenizer(dream_copy, dream_config)
  prompts = [chat_prompt(tokenizer, user("Hi")) for tokenizer in (dream, other)]
  ours, theirs = (encode_prompts(dream, [prompt], (64,), pad_token_id=0) for prompt in prompts)
  np.testing.assert_array_equal(ours, theirs)
  assert not any("longer" in warned for warned in other.deprecation_warnings)  # nothing is cut to model_max_length


@pytest.mark.parametrize("name", ["tokenizer_config.json", "vocab.json", "merges.txt"])
def test_a_git_lfs_pointer_among_the_tokenizers_files_is_told_as_one(dream_copy, dream_config, name):
  (dream_copy / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n")
  with pytest.raises(ValueError, match=f"{dream_copy / name} is a Git LFS pointer"):
    load_tokenizer(dream_copy, dream_config)


@pytest.mark.parametrize("family", ["dream", "llada"])
def test_transformers_opens_what_is_exported_and_makes_the_same_tokens(request, family, tmp_path, monkeypatch):
  folder, config, ours = (request.getfixturevalue(f"{family}{name}") for name in ("_folder", "_config", ""))
  monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it was asked whether code may run"))
  write_tokenizer(lambda name: tmp_path / name, config, source=folder)
  assert not any("auto_map" in file.read_text() for file in tmp_path.iterdir())
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  prompt = chat_prompt(ours, user("Hi"))
  text = AWKWARD + "".join(DREAM_IDS) + prompt
  assert tokens_of(theirs, text) == tokens_of(ours, text)
  assert theirs.apply_chat_template(user("Hi"), tokenize=False, add_generation_prompt=True) == prompt
  assert theirs.mask_token_id == config.mask_token_id


CHATML = ("{% for message in messages %}"
          "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def test_sdars_mask_is_known_by_its_id_whatever_its_files_call_it(dream_folder, dream_config, tmp_path):
  folder = tmp_path / "sdar"
  folder.mkdir()
  for name in ("vocab.json", "merges.txt"):
    shutil.copy(dream_folder / name, folder)
  ids = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645, "<|MASK|>": 151669}
  added = {str(index): {"content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                        "special": True} for token, index in ids.items()}
  write_json(folder / "tokenizer_config.json", {
    "added_tokens_decoder": added, "chat_template": CHATML, "eos_token": "<|endoftext|>", "mask_token": "<|MASK|>",
    "pad_token": "<|endoftext|>", "tokenizer_class": "Qwen2Tokenizer"})
  write_json(folder / "added_tokens.json", {**{k: v for k, v in ids.items() if k != "<|MASK|>"}, "<MASK>": 151669})
  write_json(folder / "special_tokens_map.json", {"mask_token": "<MASK>", "eos_token": "<|endoftext|>"})
  config = dataclasses.replace(dream_config, family="sdar", mask_token_id=151669)
  tokenizer = load_tokenizer(folder, config)
  assert (tokenizer.mask_token, tokenizer.mask_token_id) == ("<|MASK|>", 151669)
  assert stop_token_ids(tokenizer, config) == (151643, 151645)
  prompt = chat_prompt(tokenizer, [{"role": "user", "content": "one two"}])
  assert prompt == "<|im_start|>user\none two<|im_end|>\n<|im_start|>assistant\n"
  assert tokenizer.encode(prompt)[0] == 151644


LLADA2_CHAT = (
  "{%- set system = messages[0]['content'] + '\n' if messages[0]['role'] == 'system' else '' %}"
  "{{- '<role>SYSTEM</role>' + system + 'detailed thinking off<|role_end|>' }}"
  "{%- for message in messages if message['role'] != 'system' %}"
  "{{- '<role>' + ('HUMAN' if message['role'] == 'user' else 'ASSISTANT') + '</role>' + message['content']"
  " + '<|role_end|>' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<role>ASSISTANT</role>' }}{%- endif %}")


def test_llada2s_chat_is_that_of_its_files_and_its_turns_end_a_completion(tmp_path):
  train_tokenizer(iter(CORPUS), 400, ("<|role_end|>", "<role>", "</role>"), tmp_path)
  (tmp_path / "chat_template.jinja").write_text(LLADA2_CHAT)
  ids = {t["content"]: t["id"] for t in json.loads((tmp_path / "tokenizer.json").read_text())["added_tokens"]}
  config = config_of(512, ids["<|mdm_mask|>"], ids["<|endoftext|>"], "llada2_moe")
  tokenizer, asked = load_tokenizer(tmp_path, config), {"role": "user", "content": "one two"}
  turn = "<role>HUMAN</role>one two<|role_end|><role>ASSISTANT</role>"
  assert chat_prompt(tokenizer, [asked]) == f"<role>SYSTEM</role>detailed thinking off<|role_end|>{turn}"
  brief = {"role": "system", "content": "Be brief."}
  assert chat_prompt(tokenizer, [brief, asked]) == (
    f"<role>SYSTEM</role>Be brief.\ndetailed thinking off<|role_end|>{turn}")
  assert set(stop_token_ids(tokenizer, config)) == {ids["<|role_end|>"], ids["<|endoftext|>"]}
  with pytest.raises(ValueError, match="<.role_end.>"):
    chat_prompt(tokenizer, [{"role": "user", "content": "one<|role_end|>"}])
