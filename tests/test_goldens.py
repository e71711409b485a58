"""Agreement with the reference PyTorch implementations: forward pass, sampling, scores, losses, gradients."""

import functools
import itertools

from check_models import LOSSES, read
from conftest import slow
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdsd_jax

FAMILIES = ("llada", "dream", "sdar", "llada2", "illada", "lladamoe")


@pytest.fixture(scope="module", params=FAMILIES)
def golden(request, goldens):
  return read(goldens / f"{request.param}_tiny")


def assert_no_miss(differences):
  assert differences and not any(difference.is_miss for difference in differences.values()), differences


def test_forward(golden):
  assert_no_miss(golden.forward())


def test_forward_left_padded(golden):
  assert_no_miss(golden.left_padded())


@pytest.mark.parametrize("family", [slow("illada"), slow("lladamoe"), slow("sdar"), "llada2"])
def test_token_scores_and_gradients(goldens, family):
  assert_no_miss(read(goldens / f"{family}_tiny").scores())


@pytest.mark.slow
def test_scores_and_gradients_of_trace_rl(goldens):
  assert_no_miss(read(goldens / "sdar_tiny").trace_rl())


@pytest.mark.parametrize("family, remat", [
  ("llada", "products"), ("llada", "full"), ("llada", "offload"), ("dream", "products"), ("dream", "full"),
  slow("llada2", "full"), slow("llada2", "offload")])
def test_rematerialisation_changes_nothing(goldens, family, remat):
  golden = read(goldens / f"{family}_tiny")
  with_remat = gdsd_jax.Denoiser(golden.denoiser.config, remat=remat)
  tokens = golden.data["forward/input_ids"]
  values = [of_squares(golden.params, each, tokens) for each in (with_remat, golden.denoiser)]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *values)


@functools.partial(jax.jit, static_argnums=1)
@jax.value_and_grad
def of_squares(params, denoiser, tokens):
  return jnp.mean(jnp.square(denoiser.hidden(params, tokens)))


CASES = {"llada": 6, "dream": 6, "illada": 4, "lladamoe": 4}


@pytest.mark.parametrize("family, case", [
  slow(family, case) if family in ("illada", "lladamoe") else (family, case)
  for family, count in CASES.items() for case in range(count)])
def test_greedy_sampling(goldens, family, case):
  golden = read(goldens / f"{family}_tiny")
  if case >= len(golden.meta["generate_cases"]):
    pytest.skip(f"{family} has fewer recorded cases")
  assert_no_miss(golden.generate(case))


QUICK = [("llada", name) for name in ("gdsd", "gdsd_tlc64", "gdsd_tlc64_sg", "gdsd_tlc512", "espo")]
QUICK += [("dream", "gdsd"), ("dream", "gdsd_tlc8")]


@pytest.mark.parametrize("family, name", [
  case if case in QUICK else slow(*case) for case in itertools.product(("llada", "dream"), LOSSES)
])
def test_score_loss_and_gradient(goldens, family, name):
  assert_no_miss(read(goldens / f"{family}_tiny").loss(name))


def test_a_command_tells_each_case_and_its_misses(goldens, tmp_path, capsys):
  import check_models

  folder = tmp_path / "sdar_tiny"
  folder.mkdir()
  (folder / "hf").symlink_to(goldens / "sdar_tiny" / "hf")
  (folder / "meta.json").symlink_to(goldens / "sdar_tiny" / "meta.json")
  recorded = np.load(goldens / "sdar_tiny" / "goldens.npz")
  data = {name: recorded[name] for name in recorded.files if name.startswith("forward/")}
  np.savez(folder / "goldens.npz", **data | {"forward/logits": data["forward/logits"] + 1e-3})
  assert check_models.main(str(folder)) == 1
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].startswith("forward ") and lines[0].endswith("MISS") and not lines[1].endswith("MISS")
  assert lines[2] == "generate 0             not checked: generate/case0/completion was not recorded"
