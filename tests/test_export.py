"""Exports: whole models and adapters that transformers, PEFT and this package open with nothing asked."""

import dataclasses
import json
import os
import stat

from conftest import slow
import jax
import numpy as np
import pytest
from test_huggingface import CONFIG, hugging_face_weights, random_params, write_hugging_face

import gdsd_jax
from gdsd_jax.huggingface.adapter_config import base_model_of
from gdsd_jax.huggingface.tokenizer import chat_prompt, load_tokenizer, stop_token_ids, token_ids
from gdsd_jax.models.lora import add_adapter, LoraConfig
from gdsd_jax.runs.export import write_model
from gdsd_jax.runs.model_config import ModelConfig

LORA = LoraConfig(2, 4.0, 0.0, ("q", "down"))
FILES = ["README.md", "chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json",
         "tokenizer_config.json"]
ADAPTER = ["README.md", "adapter_config.json", "adapter_model.safetensors"]
MESSAGES = [{"role": "user", "content": " How many? "}, {"role": "assistant", "content": "12"},
            {"role": "user", "content": "Sure?"}]


@pytest.fixture(scope="module")
def tiny():
  return gdsd_jax.load_pretrained("tiny")


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):
  folder = tmp_path_factory.mktemp("exported") / "model"
  recipe = {"task": {"name": "math"}, "objective": {"name": "gdsd"}, "steps": 100, "step": 50}
  write_model(folder, *tiny, ModelConfig(path="tiny"), made=recipe)
  return folder


def adapted(denoiser, params):
  denoiser, params = add_adapter(denoiser, params, LORA, jax.random.key(0))
  return denoiser, {**params, "lora": jax.tree.map(lambda leaf: np.asarray(leaf) + 0.01, params["lora"])}


def names_in(folder):
  return sorted(path.name for path in folder.iterdir())


def read(file):
  return json.loads(file.read_text())


def test_a_whole_model_is_all_that_it_takes(exported):
  assert names_in(exported) == FILES


def test_nothing_in_it_asks_for_code(exported):
  for name in ("config.json", "tokenizer_config.json"):
    assert "auto_map" not in read(exported / name) and "trust_remote_code" not in (exported / name).read_text()


def test_it_gives_back_every_bit(exported, tiny):
  denoiser, params = gdsd_jax.load_pretrained(exported)
  assert denoiser == tiny[0]
  jax.tree.map(np.testing.assert_array_equal, params, tiny[1])


def test_transformers_reads_its_config_and_makes_the_same_prompts(exported, tiny, monkeypatch):
  from transformers import AutoConfig, AutoTokenizer

  monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it was asked whether code may run"))
  config, tokenizer = AutoConfig.from_pretrained(exported), AutoTokenizer.from_pretrained(exported)
  ours = load_tokenizer("tiny", tiny[0].config)
  text = chat_prompt(ours, MESSAGES)
  assert tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True) == text
  assert tokenizer(text, add_special_tokens=False)["input_ids"] == token_ids(ours, [text])[0]
  assert tokenizer.mask_token_id == config.mask_token_id == tiny[0].config.mask_token_id
  assert (config.model_type, config.diffusion_family) == ("eurobert", "llada")


def test_its_card_says_what_it_is_and_how_to_load_it(exported):
  card = (exported / "README.md").read_text()
  for words in ("library_name: transformers", "A LLaDA masked diffusion language model",
                "(task.name math, objective.name gdsd, steps 100, step 50)", "`tiny`, whose licence holds",
                'AutoModelForMaskedLM.from_pretrained("model")', 'gdsd_jax.load_pretrained("model")'):
    assert words in card


def test_a_card_that_somebody_wrote_stays(exported, tiny, tmp_path):
  (tmp_path / "README.md").write_text("mine")
  write_model(tmp_path, *tiny, ModelConfig(path="tiny"))
  assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize("umask, mode", [(0o027, 0o640), slow(0o022, 0o644), slow(0o077, 0o600)])
def test_whoever_may_read_new_files_may_read_these(tiny, tmp_path, umask, mode):
  before = os.umask(umask)
  try:
    write_model(tmp_path / "model", *tiny, ModelConfig(path="tiny"))
    write_model(tmp_path / "adapter", *adapted(*tiny), ModelConfig(path="tiny", lora=LORA))
  finally:
    os.umask(before)
  files = [path for path in tmp_path.rglob("*") if path.is_file()]
  assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {mode} and len(files) > 10


def test_the_published_layout_is_written_where_it_is_asked_for(tiny, tmp_path):
  write_model(tmp_path, *tiny, ModelConfig(path="tiny"), layout="published")
  fields = read(tmp_path / "config.json")
  assert fields["model_type"] == "llada" and fields["auto_map"]["AutoModel"].startswith("GSAI-ML/LLaDA-8B-Instruct--")
  assert "trust_remote_code=True" in (tmp_path / "README.md").read_text()


def test_an_unknown_layout_is_refused(tiny, tmp_path):
  with pytest.raises(ValueError, match="--layout: 'onnx' is not one of transformers, published"):
    write_model(tmp_path / "out", *tiny, ModelConfig(path="tiny"), layout="onnx")
  assert not (tmp_path / "out").exists()


def test_an_adapter_of_an_embedded_model_brings_its_base_along(tiny, tmp_path):
  denoiser, params = adapted(*tiny)
  write_model(tmp_path, denoiser, params, ModelConfig(path="tiny", lora=LORA))
  assert names_in(tmp_path) == sorted([*ADAPTER, "base_model"])
  fields = read(tmp_path / "adapter_config.json")
  assert fields["base_model_name_or_path"] == str(tmp_path / "base_model")
  assert fields["auto_mapping"]["base_model_class"] == "EuroBertForMaskedLM"
  jax.tree.map(np.testing.assert_array_equal, gdsd_jax.load_pretrained(tmp_path / "base_model")[1], tiny[1])
  card = (tmp_path / "README.md").read_text()
  assert "Its base model is `tiny`" in card and f'from_pretrained("{tmp_path.name}/base_model")' in card


def test_a_base_that_came_along_is_found_where_both_are_moved(tiny, tmp_path):
  write_model(tmp_path / "here", *adapted(*tiny), ModelConfig(path="tiny", lora=LORA))
  assert base_model_of(tmp_path / "here") == (str(tmp_path / "here" / "base_model"), None)
  (tmp_path / "here").rename(tmp_path / "there")
  assert base_model_of(tmp_path / "there") == (str(tmp_path / "there" / "base_model"), None)


def test_the_adapter_alone_is_enough_of_the_parameters(tiny, tmp_path):
  denoiser, params = adapted(*tiny)
  write_model(tmp_path / "whole", denoiser, params, ModelConfig(path="tiny", lora=LORA))
  write_model(tmp_path / "alone", denoiser, {"lora": params["lora"]}, ModelConfig(path="tiny", lora=LORA))
  for name in ("adapter_model.safetensors", "base_model/model.safetensors"):
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


@pytest.mark.parametrize("layout, module", [(None, "model.transformer.blocks"), ("transformers", "model.layers")])
def test_an_adapter_fits_the_layout_of_its_base(tmp_path, layout, module):
  folder = write_hugging_face(tmp_path / "base", CONFIG, hugging_face_weights(CONFIG))
  denoiser, params = adapted(*gdsd_jax.load_pretrained(folder))
  write_model(tmp_path / "out", denoiser, params, ModelConfig(path=str(folder), lora=LORA), layout=layout)
  fields = read(tmp_path / "out" / "adapter_config.json")
  assert module in fields["target_modules"].replace("\\", "")
  base = folder if layout is None else tmp_path / "out" / "base_model"
  assert fields["base_model_name_or_path"] == str(base.resolve())


def test_an_adapter_over_a_hub_model_names_it_and_its_licence(tmp_path, monkeypatch):
  folder = write_hugging_face(tmp_path / "hub", CONFIG, hugging_face_weights(CONFIG))
  monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(folder))
  denoiser, params = adapted(*gdsd_jax.load_pretrained("organisation/name"))
  write_model(tmp_path / "out", denoiser, params, ModelConfig(path="organisation/name", revision="v1", lora=LORA))
  fields, card = read(tmp_path / "out" / "adapter_config.json"), (tmp_path / "out" / "README.md").read_text()
  assert (fields["base_model_name_or_path"], fields["revision"]) == ("organisation/name", "v1")
  assert "base_model: organisation/name\nbase_model_relation: adapter" in card
  assert "[organisation/name](https://huggingface.co/organisation/name), whose licence" in card


def test_a_model_without_its_tokenizer_is_exported_without_one(tmp_path):
  folder = write_hugging_face(tmp_path / "base", CONFIG, hugging_face_weights(CONFIG))
  write_model(tmp_path / "out", *gdsd_jax.load_pretrained(folder), ModelConfig(path=str(folder)))
  assert names_in(tmp_path / "out") == ["README.md", "config.json", "model.safetensors"]


def test_all_ends_of_text_come_along(tiny, tmp_path):
  base, out = tmp_path / "base", tmp_path / "out"
  gdsd_jax.save_pretrained(base, *tiny)
  fields = read(base / "config.json")
  (base / "config.json").write_text(json.dumps(fields | {"eos_token_id": [fields["eos_token_id"], 7]}))
  (base / "generation_config.json").write_text('{"eos_token_id": 8, "temperature": 0.5}')
  denoiser, params = gdsd_jax.load_pretrained(base)
  before = stop_token_ids(load_tokenizer(base, denoiser.config), denoiser.config)
  write_model(out, denoiser, params, ModelConfig(path=str(base)))
  assert {7, 8} < set(before) and stop_token_ids(load_tokenizer(out), denoiser.config) == before
  assert read(out / "generation_config.json")["temperature"] == 0.5


def test_a_network_that_transformers_class_lacks_is_published_by_default(tmp_path):
  config = dataclasses.replace(CONFIG, num_heads=6, num_kv_heads=2, head_dim=4, family="dream", qkv_bias=True,
                               shifted_output=True, positions_skip_padding=True)
  denoiser = gdsd_jax.Denoiser(config)
  base = ModelConfig(path=str(write_hugging_face(tmp_path / "base", CONFIG, {"x": np.zeros(1, np.float32)})))
  write_model(tmp_path / "out", denoiser, random_params(denoiser), base)
  assert read(tmp_path / "out" / "config.json")["model_type"] == "Dream"
  with pytest.raises(ValueError, match="--layout: transformers has no class of this network"):
    write_model(tmp_path / "other", denoiser, random_params(denoiser), base, layout="transformers")


def test_a_layout_of_ones_own_stays(tiny, tmp_path):
  own = dataclasses.replace(tiny[0], config=dataclasses.replace(tiny[0].config, family="mine.py:Layout"))
  with pytest.raises(ValueError, match="--layout: the model has its own, mine.py:Layout"):
    write_model(tmp_path, own, tiny[1], ModelConfig(path="tiny"), layout="published")
