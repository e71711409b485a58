"""The benchmark: its PyTorch version computes what this package computes, and its command reports what it measures."""

import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys

from commands import run_command
from conftest import REPOSITORY, slow
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdsd_jax
from gdsd_jax.benchmark import measure as benchmark, ours as benchmark_ours
from gdsd_jax.benchmark.flops import attention_flops, head_flops, projection_flops, sampling_flops, training_flops
from gdsd_jax.benchmark.setting import setting
from gdsd_jax.benchmark.views import compiled_memory
from gdsd_jax.parallel.mesh import make_mesh
from gdsd_jax.planning.hlo_cost import program_cost

SMALL = dict(batch=4, prompt_length=12, completion_length=16, block_length=8, steps=8)


def command(*arguments):
  return ["launch/benchmark.py", "--model=tiny", *(f"--{name}={value}" for name, value in SMALL.items()), *arguments]


def run_afresh(*arguments):
  """In an interpreter of its own, whose memory is what it measures."""
  environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
  return subprocess.run([sys.executable, *command(*arguments)], cwd=REPOSITORY, env=environment, capture_output=True,
                        text=True, timeout=600)


def torch_side():
  torch = pytest.importorskip("torch", reason="needs torch to compare with")
  torch.set_num_threads(1)  # at these sizes threads cost more than they save
  from gdsd_jax.benchmark import reference as benchmark_reference

  return benchmark_reference


def prepared(folder, **fields):
  small = setting("tiny", **{**SMALL, **fields})
  benchmark_ours.prepare(folder, small)
  return small


# The PyTorch version.


def test_reference_logits_are_ours(tmp_path, tiny_config, tiny_denoiser, tiny_params):
  torch = pytest.importorskip("torch", reason="needs torch to compare with")
  from gdsd_jax.benchmark import torch_llada

  gdsd_jax.save_pretrained(tmp_path, tiny_denoiser, tiny_params)
  tokens = np.random.default_rng(0).integers(0, tiny_config.vocab_size, (3, 10))
  with torch.no_grad():
    logits = torch_llada.load(tiny_config, tmp_path, "float32")(torch.from_numpy(tokens))
  np.testing.assert_allclose(logits.numpy(), tiny_denoiser.apply(tiny_params, tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_reference_samples_the_same_tokens(tmp_path, lora_rank):
  reference = torch_side()
  small = prepared(tmp_path, lora_rank=lora_rank)
  ours = benchmark_ours.sampling(tmp_path, small)
  theirs = reference.sampling(tmp_path, small, "cpu")
  np.testing.assert_array_equal(ours["tokens"], theirs["tokens"])


def test_reference_samples_at_a_temperature_without_the_mask_token(tmp_path):
  reference = torch_side()
  small = prepared(tmp_path, temperature=1.0)
  tokens = reference.sampling(tmp_path, small, "cpu")["tokens"]
  assert tokens.shape == (4, 16)
  assert small.architecture.mask_token_id not in tokens


@pytest.mark.parametrize("fields", [
  dict(objective="gdsd"),
  dict(objective="gdsd_tlc", center_top_k=64),
  dict(objective="gdsd_tlc", lora_rank=4),
  dict(objective="gdsd", accumulation=2),
], ids=["gdsd", "tlc64", "lora", "accumulation"])
def test_reference_update_has_our_scores_loss_and_gradient_norm(tmp_path, fields):
  reference = torch_side()
  small = prepared(tmp_path, **fields)
  ours, theirs = benchmark_ours.training(tmp_path, small), reference.training(tmp_path, small, "cpu")
  for name in ("score", "loss", "grad_norm"):
    assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name


def test_reference_without_torch_is_refused_in_one_line(monkeypatch):
  find = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
  with pytest.raises(ValueError, match="^--reference: PyTorch is not installed; pip install torch"):
    setting("tiny", reference=True)


def test_a_block_causal_model_is_sampled_with_its_exact_cache_beside_the_plain_way():
  chosen = setting("100m_block")
  assert (chosen.sampler.kind, chosen.sampler.cache, chosen.fast_sampler.cache) == ("block", "none", "exact")
  with pytest.raises(ValueError, match="^--only: must be sampling with --model=100m_block"):
    setting("100m_block", only=("sampling", "training"))


# FLOPs.


def test_forward_flops_are_those_of_the_compiled_program(tiny_config, tiny_denoiser):
  tokens = jax.ShapeDtypeStruct((3, 10), jnp.int32)
  compiled = jax.jit(tiny_denoiser.apply).lower(tiny_denoiser.abstract_params(), tokens).compile()
  needed = projection_flops(tiny_config, 30) + attention_flops(tiny_config, 3, 10) + head_flops(tiny_config, 30)
  assert program_cost(compiled.as_text()).flops == needed


def test_sampling_counts_the_head_only_where_a_token_may_be_committed(tiny_config):
  body = projection_flops(tiny_config, 20) + attention_flops(tiny_config, 2, 10)
  assert sampling_flops(tiny_config, 2, 10, [4, 2]) == 2 * body + head_flops(tiny_config, 2 * 6)


def test_an_adapter_saves_the_gradient_of_the_frozen_weights(tiny_config):
  arguments = tiny_config, 4, 12, 16, 2, True, True
  frozen = projection_flops(tiny_config, 4 * 4 * 28) + head_flops(tiny_config, 2 * 4 * 16)
  without_adapter = training_flops(*arguments)
  of_rank_one = training_flops(*arguments, lora_rank=1)
  of_rank_two = training_flops(*arguments, lora_rank=2)
  assert 2 * of_rank_one - of_rank_two == without_adapter - frozen  # at rank 0, extrapolated


@pytest.mark.parametrize("model, block_length, masked", [
  ("tiny", 8, [8, 6, 4, 2, 8, 6, 4, 2]),
  ("8b_dream", None, [16, 15, 13, 11, 9, 7, 5, 3]),
  ("8b_dream", 8, [8, 7, 5, 3, 8, 7, 5, 3]),
])
def test_masked_tokens_are_those_that_the_sampler_has_left(model, block_length, masked):
  assert setting(model, **SMALL | {"block_length": block_length}).masked_tokens == masked


# The command.


@pytest.mark.slow
def test_command_ends_with_a_line_of_json(tmp_path):
  finished = run_afresh("--only=sampling,training", f"--out={tmp_path / 'result.json'}",
                         f"--profile={tmp_path / 'trace'}", "--cache=dual")
  assert finished.returncode == 0, finished.stderr
  result = json.loads(finished.stdout.splitlines()[-1])
  assert result == json.loads((tmp_path / "result.json").read_text())
  for name in ("sampling", "training"):
    assert {"seconds", "tokens_per_second", "bytes_peak", "utilisation"} <= result[name]["ours"].keys()
    assert list((tmp_path / "trace" / name).rglob("*.pb"))
  assert result["sampling"]["fast_dllm"]["speedup_over_plain"] > 0
  assert {"device", "versions", "parameters", "peak_flops_per_second"} <= result.keys()


@pytest.mark.slow
def test_memory_of_scores_does_not_grow_with_the_vocabulary():
  found = benchmark_ours.scoring_memory(setting("tiny", **SMALL))
  assert found.keys() == {8192, 32768, 131072}
  for program in ("scores", "scores_and_gradient"):
    assert found[131072][program] < 1.2 * found[8192][program]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["gdsd_tlc", "bgpo"])
@pytest.mark.parametrize("tied, lora_rank", [(False, 0), (True, 0), (False, 8)])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)])
def test_memory_of_an_update_does_not_grow_with_the_views(sizes, tied, lora_rank, objective):
  mesh, peaks = make_mesh(*sizes, jax.devices()[:math.prod(sizes)]), []
  for views in (2, 16):
    chosen = setting("tiny", **{**SMALL, "batch": 8}, num_mc=views, lora_rank=lora_rank, objective=objective)
    config = dataclasses.replace(chosen.architecture, tied_head=tied)
    denoiser = gdsd_jax.Denoiser(config, remat=chosen.remat, lora=chosen.lora, mesh=mesh)
    peaks.append(compiled_memory(chosen, denoiser, mesh))
  for program in ("scores", "update"):
    assert peaks[1][program] < 1.05 * peaks[0][program]


@pytest.mark.parametrize("parts", ["sampling", slow("sampling,training")])
def test_command_compares_with_the_reference(parts):
  torch_side()
  finished = run_afresh(f"--only={parts}", "--reference")
  assert finished.returncode == 0, finished.stderr
  result = json.loads(finished.stdout.splitlines()[-1])
  assert result["sampling"]["equal_tokens"] == 1
  if "training" in parts:
    assert max(result["training"]["relative_difference"].values()) < 1e-4


@pytest.mark.parametrize("argument, message", [
  ("--model=70b", "--model: '70b' is not one of tiny, 100m, 100m_block, 8b, 8b_dream"),
  ("--only=speed", "--only: must name some of sampling, training, memory, views"),
  ("--accumulation=3", "--accumulation: 3 must divide the batch of 4"),
  ("--steps=7", "--steps: 7 must be a multiple"),
  ("--prompt_length=300", "--prompt_length, --completion_length: their sum exceeds the 256 positions"),
  ("--lora_rank=97", "--lora_rank: 97 is more than the 96 of"), ("--batch=3000000000", "--batch: must lie below"),
])
def test_command_tells_a_wrong_flag_in_one_line(argument, message):
  finished = run_command(*command(argument))
  assert finished.returncode == 1
  assert finished.stderr.splitlines()[-1].startswith(f"error: {message}")


def test_a_model_that_the_device_cannot_hold_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(benchmark_ours, "device_memory", lambda device: 10**10)
  with pytest.raises(ValueError, match="^--model: 8b needs more than .* GB .* the device has 10 GB"):
    benchmark_ours.prepare(tmp_path, setting("8b"))


@pytest.mark.slow
def test_a_side_that_runs_out_of_memory_leaves_the_others_numbers():
  works = {"ours": (_numbers,), "reference": (_out_of_memory,)}
  sides, _ = benchmark._sides("sampling", works, setting("tiny", **SMALL, repeats=2), 1e9, {"ours": 1e10}, print)
  assert sides["ours"]["all_seconds"] == [2.0, 2.0] and sides["reference"] == {"error": "out of memory"}


def _numbers():
  return {"seconds": 2.0, "cpu_seconds": 3.0, "bytes_before": 1, "bytes_peak": 2, "load": 0.0}


def _out_of_memory():
  raise RuntimeError("out of memory")
