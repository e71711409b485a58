"""Agreement with the reference PyTorch implementations: forward pass, sampling, scores, losses, gradients."""

import functools
import itertools
import json

from conftest import slow
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdsd_jax

LOSSES = (
  "gdsd", "gdsd_nokl", "gdsd_unweighted", "gdsd_tlc8", "gdsd_tlc8_sg", "gdsd_tlc64", "gdsd_tlc64_sg", "gdsd_tlc512",
  "gdsd_tlc512_sg", "espo",
)


@pytest.fixture(scope="module", params=["llada", "dream"])
def golden(request, goldens):
  return read(goldens / f"{request.param}_tiny")


@functools.cache
def read(folder):
  """(denoiser, params, recorded arrays, how they were recorded)."""
  denoiser, params = gdsd_jax.load_pretrained(folder / "hf")
  return denoiser, params, np.load(folder / "goldens.npz"), json.loads((folder / "meta.json").read_text())


apply = jax.jit(gdsd_jax.Denoiser.apply, static_argnums=0)


def relative(actual, expected) -> float:
  return float(np.max(np.abs(np.asarray(actual) - expected)) / np.max(np.abs(expected)))


def aligned(denoiser, logits):
  """Recorded logits are those of the published network, Dream's not yet shifted."""
  return np.concatenate([logits[:, :1], logits[:, :-1]], axis=1) if denoiser.config.family == "dream" else logits


def test_forward(golden):
  denoiser, params, data, _ = golden
  logits = apply(denoiser, params, data["forward/input_ids"])
  np.testing.assert_allclose(logits, aligned(denoiser, data["forward/logits"]), atol=2e-4, rtol=0)


def test_forward_left_padded(golden):
  denoiser, params, data, _ = golden
  mask = data["forward/attention_mask"]
  logits = apply(denoiser, params, data["forward/input_ids"], mask)
  expected = aligned(denoiser, data["forward/logits_left_padded"])
  # What the shift brings from padding is as undefined as the padding itself.
  defined = mask * aligned(denoiser, mask)
  np.testing.assert_allclose(logits * defined[..., None], expected * defined[..., None], atol=2e-4, rtol=0)


@pytest.mark.parametrize("remat", ["products", "full"])
def test_rematerialisation_changes_nothing(golden, remat):
  denoiser, params, data, _ = golden
  with_remat = gdsd_jax.Denoiser(denoiser.config, remat=remat)
  values = [of_squares(params, each, data["forward/input_ids"]) for each in (with_remat, denoiser)]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *values)


@functools.partial(jax.jit, static_argnums=1)
@jax.value_and_grad
def of_squares(params, denoiser, tokens):
  return jnp.mean(jnp.square(denoiser.hidden(params, tokens)))


@pytest.mark.parametrize("case", range(6))
def test_greedy_sampling(golden, case):
  denoiser, params, data, meta = golden
  if case >= len(meta["generate_cases"]):
    pytest.skip(f"{denoiser.config.family} has {case} recorded cases")
  settings = dict(meta["generate_cases"][case])
  prompt_mask = data["generate/prompt_mask"] if settings.pop("use_prompt_mask") else None
  config = gdsd_jax.SamplerConfig(
    kind=denoiser.config.family, completion_length=settings.pop("gen_length"), **settings
  )
  rollout = gdsd_jax.sample(denoiser, params, data["generate/prompt"], prompt_mask, jax.random.key(0), config)
  np.testing.assert_array_equal(rollout.tokens, data[f"generate/case{case}/completion"])
  if f"generate/case{case}/confidence" in data:
    np.testing.assert_allclose(rollout.confidence, data[f"generate/case{case}/confidence"], atol=1e-4, rtol=0)


QUICK = [("llada", name) for name in ("gdsd", "gdsd_tlc64", "gdsd_tlc64_sg", "gdsd_tlc512", "espo")]
QUICK += [("dream", "gdsd"), ("dream", "gdsd_tlc8")]


@pytest.mark.parametrize("family, name", [
  case if case in QUICK else slow(*case) for case in itertools.product(("llada", "dream"), LOSSES)
])
def test_score_loss_and_gradient(goldens, family, name):
  denoiser, params, data, meta = read(goldens / f"{family}_tiny")
  settings = meta["loss_settings"]
  top_k = int(name.removesuffix("_sg").partition("tlc")[2]) if "tlc" in name else None
  suffix = f"_tlc{top_k}" if top_k else "_unweighted" if "unweighted" in name else ""
  beta = 0.0 if name in ("gdsd_nokl", "gdsd_unweighted") else settings["beta"]
  recorded = data[f"losses/old_logp{suffix}"]
  old = gdsd_jax.Scores(data["losses/old_logp"], recorded) if top_k else gdsd_jax.Scores(recorded)
  ref = gdsd_jax.Scores(data["losses/ref_logp"]) if beta else None

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def loss_and_gradient(params):
    scores = gdsd_jax.sequence_scores(
      denoiser, params, data["losses/ids"], data["losses/masks"], prompt_length=meta["prompt_length"],
      weighted="unweighted" not in name, center_top_k=top_k, center_gradient=not name.endswith("_sg"),
    )
    shared = dict(
      completion_length=meta["completion_length"], epsilon=settings["epsilon"], beta=beta
    )
    if name == "espo":
      loss, _ = gdsd_jax.espo_loss(scores, old, ref, data["losses/advantages"], **shared)
    else:
      loss, _ = gdsd_jax.gdsd_loss(scores, old, ref, data["losses/advantages"], psi=settings["psi"], **shared)
    return loss, scores.centered if top_k else scores.plain

  (loss, scores), gradient = loss_and_gradient(params)
  assert relative(scores, data[f"losses/logp{suffix}"]) < 1e-4
  assert relative(loss, data[f"losses/loss/{name}"]) < 1e-4
  assert relative(gradient["final_norm"], data[f"losses/{name}/grad_final_norm"]) < 1e-4
  assert relative(np.linalg.norm(gradient["head"]), data[f"losses/{name}/grad_head_norm"]) < 1e-4
