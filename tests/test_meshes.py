"""One run over many devices: every mesh gives what one device gives, and no chip ever holds the logits whole."""

import dataclasses
import re

from batches import coupled_batch, distillation_batch
from conftest import load_recipe, slow
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gdsd_jax.diffusion import dream
from gdsd_jax.diffusion.blockwise import sample
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.huggingface.weights import load_pretrained
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.objectives.own import make_objective
from gdsd_jax.objectives.scores import Scores
from gdsd_jax.parallel.mesh import batch_sharding, make_mesh, param_shardings
from gdsd_jax.parallel.rows import lay_out
from gdsd_jax.runs.config_dict import run_config
from gdsd_jax.runs.optimizer import make_optimizer, OptimizerConfig
from gdsd_jax.runs.state import init_state
from gdsd_jax.runs.step import distillation_step, score_rollouts
from gdsd_jax.training import trainer as training

MESHES = {"data": (8, 1, 1), "fsdp": (1, 8, 1), "fsdp_tensor": (1, 4, 2), "all": (2, 2, 2), "context": (1, 2, 1, 4)}


def iterations(tmp_path, monkeypatch, sizes, count, **changes):
  """(tokens of the first rollouts, metrics of each iteration) of the embedded run on a mesh."""
  config = load_recipe("gdsd_math").get_config("tiny")
  config.mesh.update(dict(zip(("data", "fsdp", "tensor", "context"), sizes)))
  config.update_from_flattened_dict(changes)
  if np.prod(sizes) == 1:
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
  trainer = training.Trainer(run_config(config), tmp_path / "x".join(map(str, sizes)))
  monkeypatch.undo()
  metrics, tokens = [], None
  for _ in range(count):
    row, scored = trainer.iterate(training.Stopwatch())
    metrics.append(row)
    tokens = np.asarray(scored.sampled.rollout.tokens) if tokens is None else tokens
  return tokens, metrics


def assert_same_first_iteration(one, other):
  (tokens, metrics), (other_tokens, other_metrics) = one, other
  np.testing.assert_array_equal(other_tokens, tokens)
  assert other_metrics[0]["reward"] == metrics[0]["reward"]
  for name in ("loss", "grad_norm"):
    np.testing.assert_allclose(other_metrics[0][name], metrics[0][name], rtol=1e-5)


QUICK = {"objective.num_iterations": 1, "prompts_per_step": 2}


@pytest.fixture(scope="module")
def on_one_device(tmp_path_factory):
  with pytest.MonkeyPatch.context() as monkeypatch:
    return iterations(tmp_path_factory.mktemp("one"), monkeypatch, (1, 1, 1), 1, **QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["all", "fsdp_tensor", "context"])
def test_the_first_iteration_is_that_of_one_device(tmp_path, monkeypatch, on_one_device, mesh):
  assert_same_first_iteration(on_one_device, iterations(tmp_path, monkeypatch, MESHES[mesh], 1, **QUICK))


@pytest.mark.slow
def test_the_embedded_run_is_the_same_on_every_mesh(tmp_path, monkeypatch):
  """Ten steps: later ones part by rounding alone, which sampling amplifies, so that only their means are compared."""
  one = iterations(tmp_path, monkeypatch, (1, 1, 1), 10)
  mean = np.mean([row["reward"] for row in one[1]])
  for sizes in MESHES.values():
    other = iterations(tmp_path, monkeypatch, sizes, 10)
    assert_same_first_iteration(one, other)
    assert abs(np.mean([row["reward"] for row in other[1]]) - mean) < 0.1


# No logits as large as the vocabulary on any chip.

BATCH, PROMPT, LENGTH, VOCABULARY = 16, 8, 16, 4096  # no other dimension is a multiple of VOCABULARY / 2


def over_mesh(tiny_config, **changes):
  """(denoiser, params) with a vocabulary that is told apart in HLO, over fsdp 4 × tensor 2."""
  mesh = make_mesh(fsdp=4, tensor=2)
  denoiser = Denoiser(dataclasses.replace(tiny_config, vocab_size=VOCABULARY, **changes), remat="full", mesh=mesh)
  params = jax.jit(denoiser.init, out_shardings=param_shardings(mesh, denoiser))(jax.random.key(0))
  return denoiser, params


def assert_vocabulary_stays_split(compiled):
  text = compiled.as_text()
  whole = re.findall(rf"\w+\[(?:\d+,)*{VOCABULARY}(?:,\d+)*\]\S* \w[\w-]*\(", text)
  assert not whole, whole
  assert re.search(rf"\[(?:\d+,)*{VOCABULARY // 2}[,\]]", text)  # and the logits are there


def quick_and_slow(names, quick):
  return [name if name in quick else slow(name) for name in names]


OBJECTIVES = {
  "gdsd": make_objective("gdsd", {}),
  "tlc": make_objective("gdsd_tlc", dict(center_top_k=8)),
  "tlc_center_gradient": make_objective("gdsd_tlc", dict(center_top_k=8, center_gradient=True)),
  "tlc_whole_vocabulary": make_objective("gdsd_tlc", dict(center_top_k=VOCABULARY, center_gradient=True)),
}


@pytest.mark.parametrize("name", quick_and_slow(OBJECTIVES, quick=["tlc_center_gradient"]))
def test_the_step_keeps_the_vocabulary_split(tiny_config, name):
  denoiser, params = over_mesh(tiny_config)
  optimizer = make_optimizer(OptimizerConfig(), updates=1)
  state = init_state(denoiser, params, optimizer, 0, with_reference=True, mesh=denoiser.mesh)
  split = batch_sharding(denoiser.mesh)
  put = lambda x: jax.device_put(x, split)
  tokens, masks = jnp.zeros((BATCH, PROMPT + LENGTH), jnp.int32), jnp.ones((BATCH, 2, LENGTH), bool)
  rollouts = jax.tree.map(put, coupled_batch(tokens, jnp.ones((BATCH, PROMPT), bool), masks))
  static = dict(denoiser=denoiser, objective=OBJECTIVES[name], accumulation=2)
  score = score_rollouts.lower(state.student_params, rollouts, **static).compile()
  assert_vocabulary_stays_split(score)
  plain = put(jnp.zeros((BATCH, 2, LENGTH)))
  scores = Scores(plain, None if name == "gdsd" else plain)
  ones = put(jnp.ones(BATCH))
  batch = distillation_batch(rollouts, ones, scores, scores, lengths=put(jnp.ones(BATCH, jnp.int32)))
  if name != "tlc_center_gradient":  # then the step makes the scores
    batch = batch.replace(scored=batch.scored.replace(student=None, old=None))
  assert_vocabulary_stays_split(distillation_step.lower(state, batch, optimizer=optimizer, **static).compile())


SAMPLERS = {
  "llada": dict(kind="llada", block_length=8),
  "llada_greedy": dict(kind="llada", block_length=8, temperature=0.0),
  "dream_entropy": dict(kind="dream", alg="entropy"),
  "dream_margin": dict(kind="dream", alg="topk_margin", top_k=4, top_p=0.9),
}


@pytest.mark.parametrize("name", quick_and_slow(SAMPLERS, quick=["llada", "dream_margin"]))
def test_samplers_keep_the_vocabulary_split(tiny_config, name):
  denoiser, params = over_mesh(tiny_config)
  split = batch_sharding(denoiser.mesh)
  prompt = jax.device_put(jnp.zeros((BATCH, PROMPT), jnp.int32), split)
  mask = jax.device_put(jnp.ones((BATCH, PROMPT), bool), split)
  config = SamplerConfig(completion_length=LENGTH, steps=LENGTH, **SAMPLERS[name])
  assert_vocabulary_stays_split(sample.lower(denoiser, params, prompt, mask, jax.random.key(0), config).compile())


def test_pick_takes_one_entry_of_each_row():
  x = jnp.array([[1.0, -jnp.inf, 3.0], [4.0, 5.0, jnp.inf]])
  np.testing.assert_array_equal(dream.pick(x, jnp.array([2, 1])), [3.0, 5.0])


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_each_piece_of_an_array_is_read_once(sizes):
  mesh = make_mesh(*sizes)
  value, read, made_on = np.arange(64).reshape(8, 8), [], set()

  def part(index):
    read.append(index)
    made_on.update(jnp.zeros(1).devices())
    return value[index]

  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp", "tensor"))
  array = lay_out(value.shape, sharding, part)
  np.testing.assert_array_equal(array, value)
  assert array.sharding == sharding
  assert sum(value[index].size for index in read) == value.size
  assert len(made_on) == len(read)  # where a piece is made of another, that is done on its own device


@pytest.mark.parametrize("sizes", [(1, 2, 4), (1, 4, 2), (2, 2, 2)])
def test_the_embedded_model_is_the_same_over_a_mesh(sizes):
  _, whole = load_pretrained("tiny")
  _, split = load_pretrained("tiny", mesh=make_mesh(*sizes))
  jax.tree.map(np.testing.assert_array_equal, split, whole)
