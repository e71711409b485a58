"""Exported adapters in PEFT itself, on PyTorch models with the published module names; skips without torch and peft."""

import importlib

from conftest import slow
import jax
import numpy as np
import pytest

import gdsd_jax
from gdsd_jax.huggingface.adapters import load_adapter, save_adapter
from gdsd_jax.models.lora import add_adapter, LoraConfig, merge
from gdsd_jax.runs.export import write_model
from gdsd_jax.runs.model_config import ModelConfig

apply = jax.jit(gdsd_jax.Denoiser.apply, static_argnums=0)


# The PyTorch side is imported by the process that runs these tests alone: it takes long.
@pytest.fixture(scope="module")
def torch_published():
  pytest.importorskip("torch", reason="needs torch (and peft) to compare with")
  return importlib.import_module("torch_published")


@pytest.fixture(scope="module")
def peft(torch_published):
  return pytest.importorskip("peft", reason="needs peft to compare with")


def aligned(config, logits):
  return np.concatenate([logits[:, :1], logits[:, :-1]], axis=1) if config.shifted_output else logits


@pytest.fixture(params=["llada", "dream"])
def published(request, goldens, torch_published, peft):
  folder = goldens / f"{request.param}_tiny"
  denoiser, params = gdsd_jax.load_pretrained(folder / "hf")
  return denoiser, params, torch_published.load_torch(folder / "hf", denoiser.config), np.load(folder / "goldens.npz")


@pytest.mark.parametrize("targets", [("q", "k", "v", "o", "gate", "up", "down"), ("v", "down")])
def test_peft_computes_the_same_logits(published, torch_published, peft, tmp_path, targets):
  base, params, model, data = published
  tokens = data["forward/input_ids"]
  # The PyTorch model is the published one, or the comparison would mean nothing.
  np.testing.assert_allclose(torch_published.logits_of(model, tokens), data["forward/logits"], atol=2e-4)
  denoiser, params = add_adapter(base, params, LoraConfig(8, 16.0, 0.0, targets), jax.random.key(0))
  rng = np.random.default_rng(0)
  params["lora"] = jax.tree.map(lambda x: x + 0.05 * rng.normal(size=x.shape).astype(np.float32), params["lora"])
  save_adapter(tmp_path, denoiser, params, base_model="published")
  adapted = peft.PeftModel.from_pretrained(model, tmp_path)
  theirs = aligned(base.config, torch_published.logits_of(adapted, tokens))
  ours = apply(denoiser, params, tokens)
  assert np.abs(ours - aligned(base.config, data["forward/logits"])).max() > 0.1
  np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


def test_an_adapter_that_peft_made_loads_here(published, torch_published, peft, tmp_path):
  base, params, model, data = published
  names = model.names
  config = peft.LoraConfig(
    r=4, lora_alpha=6, target_modules=["q_proj", names["gate"], names["up"]], init_lora_weights=False
  )
  adapted = peft.get_peft_model(model, config)
  adapted.save_pretrained(tmp_path)
  denoiser, params = load_adapter(tmp_path, base, params)
  assert denoiser.lora.targets == ("q", "gate", "up") and denoiser.lora.scale == 1.5
  theirs = aligned(base.config, torch_published.logits_of(adapted, data["forward/input_ids"]))
  np.testing.assert_allclose(apply(denoiser, params, data["forward/input_ids"]), theirs, atol=1e-4, rtol=0)


def test_a_merged_export_is_the_adapted_model_in_pytorch(published, torch_published, tmp_path):
  base, params, _, data = published
  denoiser, params = add_adapter(base, params, LoraConfig(8, 16.0, 0.0), jax.random.key(0))
  params["lora"] = jax.tree.map(lambda x: x + 0.05, params["lora"])
  gdsd_jax.save_pretrained(tmp_path, base, merge(params, denoiser.lora))
  exported = torch_published.load_torch(tmp_path, base.config)
  theirs = aligned(base.config, torch_published.logits_of(exported, data["forward/input_ids"]))
  np.testing.assert_allclose(apply(denoiser, params, data["forward/input_ids"]), theirs, atol=2e-4, rtol=0)


@pytest.mark.parametrize("name, merged", [
  ("tiny", None), ("tiny", False), slow("tiny", True),
  *[slow(name, merged) for name in ("dream_tiny", "llada_tiny") for merged in (None, False, True)],
])
def test_transformers_and_peft_open_an_export_with_nothing_asked(request, peft, tmp_path, monkeypatch, name, merged):
  from transformers import AutoModelForMaskedLM

  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it was asked whether code may run"))
  path = name if name == "tiny" else str(request.getfixturevalue("goldens") / name / "hf")
  denoiser, params = gdsd_jax.load_pretrained(path)
  if merged is not None:
    denoiser, params = add_adapter(denoiser, params, LoraConfig(4, 8.0, 0.0), jax.random.key(0))
    params["lora"] = jax.tree.map(lambda x: x + 0.01, params["lora"])
  model = ModelConfig(path=path, lora=denoiser.lora)
  write_model(tmp_path / "out", denoiser, params, model, bool(merged), layout="transformers")
  if merged is False:
    loaded = peft.AutoPeftModel.from_pretrained(tmp_path / "out")
  else:
    loaded, report = AutoModelForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
  tokens = np.arange(40).reshape(2, 20)
  theirs = aligned(denoiser.config, logits_of_transformers(loaded, tokens))
  np.testing.assert_allclose(apply(denoiser, params, tokens), theirs, atol=1e-4, rtol=0)


def logits_of_transformers(model, tokens):
  import torch

  with torch.no_grad():
    return model.eval()(torch.from_numpy(tokens)).logits.numpy()
