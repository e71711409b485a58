"""A layout of the user's own: read, written, and what its mistakes say."""

import dataclasses
import json
import re

from conftest import REPOSITORY
import jax
import numpy as np
import pytest
from safetensors import safe_open

import gdsd_jax
from gdsd_jax.huggingface.adapters import save_adapter
from gdsd_jax.huggingface.folder import load_config
from gdsd_jax.models.lora import LoraConfig
from gdsd_jax.parallel.mesh import make_mesh
from gdsd_jax.runs.model_config import ModelConfig
from gdsd_jax.runs.weights import load_model

EXAMPLE = REPOSITORY / "examples" / "own_layout.py"
GPT = f"{EXAMPLE}:GptNames"


@pytest.fixture
def saved(tiny_denoiser, tiny_params, tmp_path):
  """Folder of a model in the example's layout."""
  config = dataclasses.replace(tiny_denoiser.config, family=GPT)
  gdsd_jax.save_pretrained(tmp_path / "model", dataclasses.replace(tiny_denoiser, config=config), tiny_params)
  return tmp_path / "model"


def test_a_model_of_an_own_layout_is_written_and_read_by_its_names(saved, tiny_denoiser, tiny_params):
  fields = json.loads((saved / "config.json").read_text())
  assert (fields["model_type"], fields["n_embd"], fields["torch_dtype"]) == ("gpt_diffusion", 32, "float32")
  with safe_open(saved / "model.safetensors", "np") as tensors:
    assert {"wte.weight", "lm_head.weight", "h.0.attn.q.weight", "h.1.mlp.w2.weight"} <= set(tensors.keys())
    np.testing.assert_array_equal(tensors.get_tensor("h.1.mlp.w2.weight"), tiny_params["blocks"]["down"][1].T)
  denoiser, params = gdsd_jax.load_pretrained(saved, layout=GPT)
  assert denoiser.config == dataclasses.replace(tiny_denoiser.config, family=GPT)
  jax.tree.map(np.testing.assert_array_equal, params, tiny_params)
  with pytest.raises(ValueError, match="model_type 'gpt_diffusion'; known are dream, .*, sdar_moe; one of your own is"):
    gdsd_jax.load_pretrained(saved)


def test_a_run_starts_from_it_and_adapters_have_its_names(saved, tmp_path):
  config = ModelConfig(str(saved), layout=GPT, lora=LoraConfig(2))
  denoiser, params = load_model(config, 0, make_mesh(1, 1, 1, jax.devices()[:1]))
  save_adapter(tmp_path / "adapter", denoiser, params, str(saved))
  with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "np") as tensors:
    assert "base_model.model.h.0.attn.q.lora_A.weight" in tensors.keys()


@pytest.mark.parametrize("old, new, message", [
  ("class GptNames(gdsd_jax.Layout)", "class GptNames", "own.py:GptNames must be a gdsd_jax.Layout, not <class"),
  ("fields[theirs] for", "fields[theirs + '_'] for", "own.py, line 25: KeyError: 'vocab_size_'"),
  ('"num_heads",', '"heads",', "line 25: TypeError: DenoiserConfig.__init__() got an unexpected"),
  ("    return gdsd_jax.Den", "    return fields or gdsd_jax.Den", "line 24: GptNames.parse_config must give"),
  ('    return {"model', '    values["n_positions"] = 7\n    return {"model',
   "line 27: GptNames.format_config has no place for this model's max_positions"),
  ("  def format_config", "  def write_config", "NotImplementedError: GptNames must have `format_config`"),
  ("  weight_names = ", "  names = ", "GptNames must have `weight_names`, a dict of names"),
  ("h.{layer}", "h.layer", "the names of blocks.attention_norm, blocks.query, "),
  ('embedding="wte"', 'embeddings="wte"', "own.py, line 19: TypeError: weight_names() missing 1 required"),
])
def test_mistakes_are_one_line_with_file_and_line(saved, tmp_path, monkeypatch, old, new, message):
  monkeypatch.chdir(tmp_path)
  text = EXAMPLE.read_text()
  assert old in text
  (tmp_path / "own.py").write_text(text.replace(old, new))
  with pytest.raises(ValueError, match=re.escape(message)) as caught:
    load_config(saved, "own.py:GptNames")
  assert len(str(caught.value).splitlines()) == 1 and str(caught.value).startswith("model.layout: ")
