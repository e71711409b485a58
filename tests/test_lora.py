"""LoRA: what it adds to the model, what training it changes, and its way in and out as a PEFT folder."""

import dataclasses
import functools
import json
import types

from batches import coupled_batch, distillation_batch
import chex
from conftest import slow
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import gdsd_jax
from gdsd_jax.huggingface.adapters import load_adapter, save_adapter
from gdsd_jax.models import transformer
from gdsd_jax.models.lora import add_adapter, LoraConfig, merge, TARGETS
from gdsd_jax.objectives.gdsd import Gdsd
from gdsd_jax.parallel.mesh import make_mesh
from gdsd_jax.runs.optimizer import make_optimizer, OptimizerConfig
from gdsd_jax.runs.state import init_state
from gdsd_jax.runs.step import distillation_step, score_rollouts

CONFIG = LoraConfig(rank=4, alpha=8.0, dropout=0.0)
TOKENS = np.arange(24).reshape(2, 12) % 50


def trained_looking(params, seed=1):
  """Parameters whose adapter is not zero."""
  rng = np.random.default_rng(seed)
  noisy = lambda leaf: jnp.asarray(leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32))
  return {**params, "lora": jax.tree.map(noisy, jax.device_get(params["lora"]))}


apply = jax.jit(gdsd_jax.Denoiser.apply, static_argnums=0)


def random_params(denoiser):
  rng = np.random.default_rng(0)
  return jax.device_put(
    jax.tree.map(lambda spec: rng.normal(size=spec.shape).astype(spec.dtype), denoiser.abstract_params())
  )


@pytest.fixture(scope="module")
def adapted(tiny_denoiser, tiny_params):
  denoiser, params = add_adapter(tiny_denoiser, tiny_params, CONFIG, jax.random.key(0))
  return denoiser, trained_looking(params)


def test_a_fresh_adapter_changes_nothing(tiny_denoiser, tiny_params):
  denoiser, params = add_adapter(tiny_denoiser, tiny_params, CONFIG, jax.random.key(0))
  np.testing.assert_array_equal(apply(denoiser, params, TOKENS), apply(tiny_denoiser, tiny_params, TOKENS))


def test_without_its_entry_the_adapted_denoiser_is_the_base_model(adapted, tiny_denoiser, tiny_params):
  denoiser, _ = adapted
  np.testing.assert_array_equal(apply(denoiser, tiny_params, TOKENS), apply(tiny_denoiser, tiny_params, TOKENS))


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_computes_w_plus_scaled_ab(tiny_denoiser, tiny_params, target):
  config = dataclasses.replace(CONFIG, targets=(target,))
  denoiser, params = add_adapter(tiny_denoiser, tiny_params, config, jax.random.key(0))
  params = trained_looking(params)
  (name, factors), = params["lora"].items()
  weight = np.array(tiny_params["blocks"][name], np.float64)
  for layer in range(weight.shape[0]):
    a, b = (np.asarray(factors[f][layer], np.float64) for f in "ab")
    update = a.reshape(-1, 4) @ b.reshape(4, -1)
    weight[layer] += 8.0 / 4 * update.reshape(weight[layer].shape)
  expected = {**tiny_params, "blocks": {**tiny_params["blocks"], name: jnp.asarray(weight, jnp.float32)}}
  logits = apply(denoiser, params, TOKENS)
  np.testing.assert_allclose(logits, apply(tiny_denoiser, expected, TOKENS), atol=2e-5)
  assert np.abs(logits - apply(tiny_denoiser, tiny_params, TOKENS)).max() > 1e-3


@pytest.mark.parametrize("rank, tokens, is_added", [(16, 256, True), (2, 256, False), (16, 8, False)])
def test_an_update_is_added_to_its_weight_where_that_costs_less(tiny_config, monkeypatch, rank, tokens, is_added):
  config, rng = LoraConfig(rank=rank, alpha=8.0, dropout=0.0), np.random.default_rng(0)
  shapes = (1, tokens, 64), (64, 96), (64, rank), (rank, 96), (tokens, 96)
  x, weight, a, b, cotangent = (rng.normal(size=shape).astype(np.float32) for shape in shapes)

  def cost_and_results():
    def training(x, a, b):
      factors = {"gate": {"a": a, "b": b}}
      layer = transformer.Layer({"gate": weight}, factors, dropout_key=None, cached=None)
      context = transformer.Context(tiny_config, config, mesh=None, positions=None, mask=None)
      made = jax.checkpoint(lambda x: transformer.project("gate", x, layer, context)[0])(x)
      return jnp.sum(made * cotangent), made

    compiled = jax.jit(jax.value_and_grad(training, (0, 1, 2), has_aux=True)).lower(x, a, b).compile()
    (_, made), gradients = compiled(x, a, b)
    return compiled.cost_analysis()["flops"], (made, *gradients)

  flops, found = cost_and_results()
  monkeypatch.setattr(transformer, "costs_less_added", lambda *given: not is_added)
  of_the_other_way, _ = cost_and_results()
  assert flops < of_the_other_way
  rows, weight, a, b, cotangent = (array.astype(np.float64) for array in (x[0], weight, a, b, cotangent))
  summed, of_summed = weight + 8.0 / rank * a @ b, 8.0 / rank * rows.T @ cotangent
  expected = rows @ summed, (cotangent @ summed.T)[None], of_summed @ b.T, a.T @ of_summed
  for got, wanted in zip(found, expected, strict=True):
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def test_each_device_adds_up_for_its_own_tokens_alone(tiny_config):
  """256 tokens of 8 devices are 32 of each, which are cheaper through both."""
  x, kernel, lora = np.ones((8, 32, 64), np.float32), np.ones((64, 64), np.float32), LoraConfig(rank=16, dropout=0.0)
  context = lambda mesh: transformer.Context(tiny_config, lora, mesh, positions=None, mask=None)
  taken = lambda mesh: transformer._takes_the_sum(x, kernel, context(mesh))
  assert taken(None) and taken(make_mesh(1, 1, 1, jax.devices()[:1])) and not taken(make_mesh(8))


def test_products_of_a_tpu_are_those_of_a_cpu(adapted, monkeypatch):
  denoiser, params = adapted
  of_tokens = lambda params: jnp.sum(jnp.sin(denoiser.hidden(params, TOKENS)))
  expected = jax.jit(jax.value_and_grad(of_tokens))(params)
  monkeypatch.setattr(transformer, "device_of", lambda mesh: types.SimpleNamespace(platform="tpu"))
  found = jax.jit(jax.value_and_grad(lambda params: of_tokens(params)))(params)
  chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)


def test_merged_weights_give_the_same_logits(adapted, tiny_denoiser):
  denoiser, params = adapted
  merged = merge(params, denoiser.lora)
  assert "lora" not in merged
  np.testing.assert_allclose(apply(tiny_denoiser, merged, TOKENS), apply(denoiser, params, TOKENS), atol=2e-5)


def test_merging_keeps_the_dtype(tiny_config):
  base = gdsd_jax.Denoiser(tiny_config, param_dtype="bfloat16")
  denoiser, params = add_adapter(base, random_params(base), CONFIG, jax.random.key(0))
  assert params["lora"]["query"]["a"].dtype == jnp.float32
  chex.assert_trees_all_equal_shapes_and_dtypes(merge(params, CONFIG), base.abstract_params())


def test_dropout_needs_a_key_and_keeps_the_mean(tiny_denoiser, tiny_params):
  denoiser, params = add_adapter(
    tiny_denoiser, tiny_params, dataclasses.replace(CONFIG, dropout=0.5), jax.random.key(0)
  )
  params = trained_looking(params)
  hidden = jax.jit(denoiser.hidden)
  plain = hidden(params, TOKENS)
  np.testing.assert_array_equal(plain, hidden(params, TOKENS))
  one, other = (hidden(params, TOKENS, dropout_key=jax.random.key(i)) for i in range(2))
  assert np.abs(one - plain).max() > 1e-3 and np.abs(one - other).max() > 1e-3


OBJECTIVE, ADVANTAGES = Gdsd(beta=1e-3), np.array([1.0, -1.0, 0.5, -0.5], np.float32)


@functools.cache
def distillation(dropout):
  """(frozen weights before it, its batch, state and metrics after it) of one step."""
  mesh = make_mesh(data=1, devices=jax.devices()[:1])
  denoiser, params = gdsd_jax.load_pretrained("tiny", mesh=mesh)
  denoiser, params = add_adapter(denoiser, params, LoraConfig(4, 8.0, dropout), jax.random.key(0))
  optimizer = make_optimizer(OptimizerConfig(), updates=1)
  state = init_state(denoiser, params, optimizer, seed=0, with_reference=True, mesh=mesh)
  rng = np.random.default_rng(0)
  rollouts = coupled_batch(rng.integers(0, 400, (4, 20)), np.ones((4, 4), bool), rng.random((4, 2, 16)) < 0.5)
  old = score_rollouts(state.student_params, rollouts, denoiser=denoiser, objective=OBJECTIVE)
  ref = score_rollouts(state.reference_params, rollouts, denoiser=denoiser, objective=OBJECTIVE)
  batch = distillation_batch(rollouts, ADVANTAGES, old, ref, group_size=4)
  frozen = jax.tree.map(np.asarray, state.frozen)
  new_state, metrics = distillation_step(
    state, batch, denoiser=denoiser, objective=OBJECTIVE, optimizer=optimizer, accumulation=2
  )
  return frozen, batch, new_state, metrics


dropouts = pytest.mark.parametrize("dropout", [slow(0.5), slow(0.0)])


@dropouts
def test_training_moves_the_adapter_and_never_the_base(dropout):
  frozen, _, state, metrics = distillation(dropout)
  chex.assert_trees_all_equal(frozen, state.frozen)
  assert metrics["grad_norm"] > 0 and np.abs(state.params["lora"]["query"]["b"]).max() > 0


@dropouts
def test_the_optimizer_knows_the_adapter_alone(dropout):
  _, _, state, _ = distillation(dropout)
  adapter = sum(x.size for x in jax.tree.leaves(state.params))
  assert sum(x.size for x in jax.tree.leaves(state.opt_state)) < 2 * adapter + 10


@dropouts
def test_at_the_start_student_and_reference_scores_are_equal(dropout):
  _, batch, _, _ = distillation(dropout)
  chex.assert_trees_all_equal(batch.scored.old, batch.scored.ref)


@dropouts
def test_dropout_is_drawn_anew_in_every_step_and_leaves_values_alone(dropout):
  _, batch, state, metrics = distillation(dropout)
  assert float(metrics["loss"]) == pytest.approx(float(OBJECTIVE.loss(batch.scored)[0]), rel=1e-4)
  key = jax.random.key_data(jax.random.key(0))  # the state's before the step
  assert np.array_equal(jax.random.key_data(state.key), key) == (dropout == 0)


@pytest.mark.slow
def test_dropout_changes_the_gradient():
  assert distillation(0.5)[-1]["grad_norm"] != pytest.approx(float(distillation(0.0)[-1]["grad_norm"]), rel=1e-4)


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_peft_folder_gives_back_every_bit(tmp_path, tiny_config, family):
  config = dataclasses.replace(tiny_config, family=family, qkv_bias=family == "dream")
  base = gdsd_jax.Denoiser(config)
  denoiser, params = add_adapter(base, random_params(base), CONFIG, jax.random.key(0))
  params = trained_looking(params)
  save_adapter(tmp_path, denoiser, params, base_model="ORGANISATION/NAME")
  loaded, restored = load_adapter(tmp_path, base, {k: v for k, v in params.items() if k != "lora"})
  assert loaded.lora == CONFIG
  chex.assert_trees_all_equal(restored, params)


def test_peft_names_are_those_of_the_published_modules(tmp_path, adapted):
  denoiser, params = adapted
  save_adapter(tmp_path, denoiser, params, base_model="x")
  with safe_open(tmp_path / "adapter_model.safetensors", "np") as tensors:
    shapes = {name: tensors.get_tensor(name).shape for name in tensors.keys()}
  assert len(shapes) == 2 * 2 * 7
  block = "base_model.model.model.transformer.blocks.1."
  assert shapes[block + "ff_out.lora_A.weight"] == (4, 48)
  assert shapes[block + "k_proj.lora_B.weight"] == (2 * 8, 4)


@pytest.mark.parametrize("change, message", [
  ({"use_dora": True}, "use_dora"),
  ({"r": None}, "lacks the field 'r'"),
  ({"peft_type": "IA3"}, "IA3"),
  ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
  ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa', which changes the base model"),
  ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
  ({"r": 4.0}, "r must be an integer, not 4.0"),
  ({"lora_dropout": None}, "lacks the field 'lora_dropout'"),
])
def test_an_adapter_of_another_kind_is_refused(tmp_path, adapted, tiny_denoiser, tiny_params, change, message):
  denoiser, params = adapted
  save_adapter(tmp_path, denoiser, params, base_model="x")
  file = tmp_path / "adapter_config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | change))
  with pytest.raises(ValueError, match=message):
    load_adapter(tmp_path, tiny_denoiser, tiny_params)


@pytest.mark.parametrize("edit, message", [
  (lambda tensors: tensors.pop(sorted(tensors)[-1]), "lacks"),
  (lambda tensors: tensors.update({sorted(tensors)[0]: np.zeros((3, 5), np.float32)}), "has shape"),
  (lambda tensors: tensors.update({"base_model.model.lm_head.lora_A.weight": np.zeros((4, 5))}), "no place"),
  (lambda tensors: tensors.clear(), "adapts none"),
])
def test_an_adapter_that_does_not_fit_is_refused(tmp_path, adapted, tiny_denoiser, tiny_params, edit, message):
  denoiser, params = adapted
  save_adapter(tmp_path, denoiser, params, base_model="x")
  file = tmp_path / "adapter_model.safetensors"
  with safe_open(file, "np") as opened:
    tensors = {name: opened.get_tensor(name) for name in opened.keys()}
  edit(tensors)
  save_file(tensors or {"x": np.zeros(1)}, file)
  with pytest.raises(ValueError, match=message):
    load_adapter(tmp_path, tiny_denoiser, tiny_params)


def test_an_adapter_config_that_is_no_object_is_named(tmp_path, adapted, tiny_denoiser, tiny_params):
  save_adapter(tmp_path, *adapted, base_model="x")
  (tmp_path / "adapter_config.json").write_text("[]")
  with pytest.raises(ValueError, match="adapter_config.json holds no JSON object"):
    load_adapter(tmp_path, tiny_denoiser, tiny_params)


def test_a_missing_or_damaged_folder_is_named(tmp_path, adapted, tiny_denoiser, tiny_params):
  with pytest.raises(FileNotFoundError, match="adapter_config.json is missing"):
    load_adapter(tmp_path, tiny_denoiser, tiny_params)
  save_adapter(tmp_path, *adapted, base_model="x")
  file = tmp_path / "adapter_model.safetensors"
  file.write_bytes(file.read_bytes()[:-10])
  with pytest.raises(ValueError, match="damaged or truncated"):
    load_adapter(tmp_path, tiny_denoiser, tiny_params)


@pytest.mark.parametrize("fields, message", [
  (dict(rank=0), "model.lora.rank"), (dict(alpha=0.0), "model.lora.alpha"), (dict(dropout=1.0), "model.lora.dropout"),
  (dict(targets=()), "at least one"), (dict(targets=("q", "head")), "'head' is not one of"),
])
def test_bad_fields_are_named(fields, message):
  with pytest.raises(ValueError, match=message):
    LoraConfig(**fields)


def test_adapters_lie_over_the_mesh_as_their_weights_do(tiny_denoiser, tiny_params):
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  over_mesh = dataclasses.replace(tiny_denoiser, mesh=mesh)
  _, params = add_adapter(over_mesh, tiny_params, CONFIG, jax.random.key(0))
  assert params["lora"]["gate"]["a"].sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", None)
  assert params["lora"]["gate"]["b"].sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor")
  assert params["lora"]["down"]["b"].sharding.spec == jax.sharding.PartitionSpec(None, None, "fsdp")
  alone = add_adapter(tiny_denoiser, tiny_params, CONFIG, jax.random.key(0))[1]
  chex.assert_trees_all_equal(params["lora"], alone["lora"])
