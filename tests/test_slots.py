"""Rollouts in slots: the tokens of whole batches, whatever the slots, the mesh and the cache."""

import dataclasses

from conftest import load_recipe, slow
from documented import documented, undocumented
import jax
import numpy as np
import pytest

from gdsd_jax.benchmark.slots import compare
from gdsd_jax.diffusion.blockwise import sample
from gdsd_jax.diffusion.config import Rollout, SamplerConfig
from gdsd_jax.generation.rollout import _join
from gdsd_jax.generation.slot_use import slot_use
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.parallel.mesh import batch_sharding, make_mesh, param_shardings
from gdsd_jax.planning.hlo_cost import program_cost
from gdsd_jax.runs.config_dict import run_config
from gdsd_jax.runs.files import read_rows
from gdsd_jax.runs.given import load_config
from gdsd_jax.supervised.config import pretraining_config
from gdsd_jax.training.trainer import Trainer

LLADA = DenoiserConfig(
  vocab_size=24, hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, mlp_size=12, rope_theta=100.0,
  norm_epsilon=1e-6, max_positions=64, mask_token_id=20, eos_token_id=21, pad_token_id=21,
)
MODELS = {
  "llada": LLADA,
  "dream": dataclasses.replace(LLADA, qkv_bias=True, shifted_output=True, positions_skip_padding=True, family="dream"),
  "block": dataclasses.replace(LLADA, block_length=4, positions_skip_padding=True, qk_norm=True),
}
SAMPLERS = {
  "llada": SamplerConfig(completion_length=8, steps=8, block_length=4, temperature=0.0),
  "dream": SamplerConfig(
    kind="dream", alg="maskgit_plus", completion_length=8, steps=8, block_length=4, temperature=0.0),
  "block": SamplerConfig(kind="block", completion_length=8, steps=8, block_length=4, temperature=0.0),
}
REAL = np.array([5, 3, 1, 4, 2, 5, 3, 2, 4, 1, 5, 2, 3, 4, 5, 1])  # tokens of each prompt
PROMPT = np.random.default_rng(0).integers(0, 20, (16, 5))
MASK = np.arange(5)[None] >= 5 - REAL[:, None]
PARALLEL = {"threshold": 0.5}


def made(family, mesh=None, **changes):
  denoiser = Denoiser(dataclasses.replace(MODELS[family], **changes), mesh=mesh)
  params = jax.jit(Denoiser(denoiser.config).init)(jax.random.key(1))
  params |= {"head": 5 * params["head"]}  # sure of some tokens, and not of others
  return denoiser, jax.device_put(params, None if mesh is None else param_shardings(mesh, denoiser))


def run(family, model=None, record=("logp",), prompt=PROMPT, mask=MASK, **changes):
  config = dataclasses.replace(SAMPLERS[family], **changes)
  return sample(*(model or made(family)), prompt, mask, jax.random.key(1), config, frozenset(record))


def assert_same(one, other):
  np.testing.assert_array_equal(one.tokens, other.tokens)
  np.testing.assert_array_equal(one.steps, other.steps)
  np.testing.assert_allclose(one.confidence, other.confidence, atol=1e-5)
  if one.logp is not None:
    np.testing.assert_allclose(one.logp, other.logp, atol=1e-5)


@pytest.mark.parametrize("family, changes", [
  slow("llada", {}), ("llada", PARALLEL), slow("llada", {"cfg_scale": 1.0, "steps": 4}),
  slow("llada", {"factor": 0.9}), slow("dream", {}), slow("dream", PARALLEL), slow("dream", {"block_length": 8}),
  slow("block", {"cache": "exact"}), ("block", {"cache": "exact", "steps": 4, **PARALLEL}), slow("block", PARALLEL),
  slow("llada", {"cache": "dual"}), slow("llada", {"cache": "dual", **PARALLEL}),
  slow("dream", {"cache": "dual", **PARALLEL}),
], ids=str)
def test_greedy_completions_are_those_of_whole_batches(family, changes):
  assert_same(run(family, slots=4, **changes), run(family, **changes))


@pytest.mark.parametrize("family, changes", [
  ("llada", PARALLEL), slow("llada", {"remasking": "random", "noise": "official"}), slow("dream", {"alg": "origin"}),
  slow("dream", {"alg_temp": 0.5, "top_k": 5}), slow("block", {"cache": "exact", **PARALLEL}),
  slow("block", {"remasking": "random"}), slow("llada", {"cache": "dual", **PARALLEL, "early_stop": True}),
], ids=str)
def test_draws_are_the_prompts_own_whatever_the_slots(family, changes):
  model, changes = made(family), {"temperature": 1.0, "early_stop": True, **changes}
  one, *others = [run(family, model, slots=slots, **changes) for slots in (1, 4, 16)]
  for other in others:
    assert_same(other, one)
  assert len(np.unique(one.tokens, axis=0)) > 12  # prompts draw numbers of their own
  changes["temperature"] = 2.0
  alike = run(family, model, slots=4, prompt=np.broadcast_to(PROMPT[:1], PROMPT.shape), mask=None, **changes)
  assert len(np.unique(alike.tokens, axis=0)) > 12  # equal ones, too


@pytest.mark.parametrize("family, sizes, changes", [
  ("llada", (4, 1, 1), PARALLEL), slow("llada", (2, 2, 2), PARALLEL), slow("llada", (1, 4, 2), {"cache": "dual"}),
  slow("dream", (8, 1, 1), PARALLEL), slow("block", (2, 2, 2), {"cache": "exact", **PARALLEL}),
  slow("block", (4, 1, 2), {"cache": "exact"}), slow("block", (8, 1, 1), {}),
], ids=str)
def test_a_mesh_changes_nothing(family, sizes, changes):
  changes = {"temperature": 1.0, "early_stop": True, **changes}
  mesh = make_mesh(*sizes, devices=jax.devices()[:np.prod(sizes)])
  split = jax.device_put((PROMPT, MASK), batch_sharding(mesh))
  found = run(family, made(family, mesh), prompt=split[0], mask=split[1], slots=8, **changes)
  assert_same(found, run(family, slots=4, **changes))


def ended_by(family, **changes):
  """A model that often ends its texts early, and its completions in slots and in whole batches."""
  tokens = np.asarray(run(family, **changes).tokens)
  eos = int(np.bincount(tokens[:, :4].ravel()).argmax())  # a token of many first blocks
  model = made(family, eos_token_id=eos, pad_token_id=eos)
  return eos, [run(family, model, **changes, **more) for more in (dict(early_stop=True, slots=4), dict(slots=4), {})]


@pytest.mark.parametrize("family, changes", [
  ("llada", PARALLEL), slow("llada", {"cache": "dual"}), slow("dream", PARALLEL),
  slow("block", {"cache": "exact", **PARALLEL}),
], ids=str)
def test_an_end_of_text_gives_the_slot_to_the_next_prompt_and_leaves_texts_as_they_are(family, changes):
  eos, (stopped, whole, batch) = ended_by(family, **changes)
  assert_same(whole, batch)
  behind = np.cumsum(np.asarray(whole.tokens) == eos, axis=1) > 0
  np.testing.assert_array_equal(np.where(behind, eos, whole.tokens), np.where(behind, eos, stopped.tokens))
  filled = np.asarray(stopped.steps) == dataclasses.replace(SAMPLERS[family], **changes).most_steps
  assert filled.any() and not filled.all(axis=1).any()
  assert (np.asarray(stopped.tokens)[filled] == eos).all() and (np.asarray(stopped.confidence)[filled] == 1).all()
  assert np.max(stopped.passes) < np.max(whole.passes)


def test_every_slot_works_until_no_prompt_is_left_and_passes_tell_when():
  passes = np.asarray(run("llada", slots=3, **PARALLEL).passes)
  first, end = passes.T
  busy = [np.sum((first <= number) & (number < end)) for number in range(end.max())]
  assert busy[:first.max() + 1] == [3] * (first.max() + 1) and min(busy) >= 1
  assert np.all(np.sort(first) == first) and list(first[:3]) == [0, 0, 0]


@pytest.mark.parametrize("changes, said", [
  (dict(slots=17), "sampler.slots: 17 are more than the 16 prompts that are sampled together"),
  (dict(slots=0), "sampler.slots: must be an integer of at least 1, not 0"),
  (dict(slots=4, cache="prefix"), "sampler.cache: 'prefix' computes a part of another length in each block"),
])
def test_what_does_not_fit_is_refused_in_one_line(changes, said):
  with pytest.raises(ValueError) as caught:
    run("llada", **changes)
  assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_plan_counts_as_many_passes_as_there_may_be():
  denoiser, params = made("llada")
  arguments = denoiser, params, PROMPT, MASK, jax.random.key(1)
  cost = lambda **changes: program_cost(
    sample.lower(*arguments, dataclasses.replace(SAMPLERS["llada"], **changes)).compile().as_text()).flops
  assert [cost(slots=slots) / cost() for slots in (1, 4, 16)] == pytest.approx([1, 1, 1], abs=0.01)


def test_slots_that_the_devices_do_not_share_evenly_are_refused():
  mesh = make_mesh(4, devices=jax.devices()[:4])
  with pytest.raises(ValueError, match="sampler.slots: 6 slots of 16 prompts cannot be split over the 4 devices"):
    run("llada", made("llada", mesh), slots=6)


def test_neither_predictions_nor_a_watcher_go_with_slots():
  with pytest.raises(ValueError, match="slots: must be unset where predictions are remembered"):
    run("llada", slots=4, record=("predictions",))
  config = dataclasses.replace(SAMPLERS["llada"], slots=4)
  with pytest.raises(ValueError, match="watcher: sampler.slots has each completion at a step of its own"):
    sample(*made("llada"), PROMPT, MASK, jax.random.key(1), config, watcher=lambda *_: True)


@pytest.mark.parametrize("changes, said", [
  ({"sampler.slots": 65}, "65 are more than the 64 prompts that are sampled together (group_size × prompts_per_step / "
   "sampler.microbatches)"),
  ({"sampler.slots": 33, "eval.batch_size": 32}, "33 are more than the 32 prompts that are sampled together "
   "(eval.batch_size)"),
])
def test_more_slots_than_a_recipe_samples_together_are_refused(changes, said):
  with pytest.raises(ValueError) as caught:
    run_config(load_config("gdsd_math:tiny", changes))
  assert str(caught.value) == f"sampler.slots: {said}"


def test_more_slots_than_pretraining_evaluates_are_refused():
  config = load_recipe("pretrain_tiny").get_config()
  config.sampler.slots = 201
  with pytest.raises(ValueError, match="^sampler.slots: 201 are more than the 200 prompts .* .eval_examples.$"):
    pretraining_config(config)


def test_parts_of_a_step_count_their_passes_on():
  part = lambda *passes: Rollout(np.zeros((2, 3), np.int32), np.zeros((2, 3), np.float32),
                                 passes=np.array(passes, np.int32))
  parts = [(PROMPT[:2], MASK[:2], part((0, 2), (0, 4))), (PROMPT[:2], MASK[:2], part((0, 1), (1, 3)))]
  joined = jax.jit(_join, static_argnums=0)(21, parts, np.array([2, 3, 0, 1]))[2].passes
  np.testing.assert_array_equal(joined, [(4, 5), (5, 7), (0, 2), (0, 4)])
  assert slot_use(joined, 2) == {
    "sampler_passes": 7, "slot_occupancy": 9 / 14, "slot_occupancy_queued": 7 / 10}
  assert np.isnan(slot_use(np.array([(0, 2), (0, 4)]), 2)["slot_occupancy_queued"])


@pytest.mark.slow
def test_a_run_trains_on_what_slots_sample_and_tells_of_them(tmp_path, quick_runs):
  changes = {"sampler.slots": 4, "sampler.threshold": 0.9, "sampler.early_stop": True, "group_size": 4,
             "prompts_per_step": 4, "steps": 2, "eval.batch_size": 8, "eval.num_examples": 8, "log.keep_every": 1}
  trainer = Trainer(run_config(load_config("gdsd_math:tiny", changes)), tmp_path)
  trainer.train()
  rows = read_rows(tmp_path / "metrics.jsonl")
  told = {name for row in rows for name in row}
  assert {name for name, of in documented().items() if "sampler.slots" in of} <= told
  assert not undocumented(told, *(name.removeprefix("reward/") for name in told if name.startswith("reward/")))
  assert all(4 <= row["sampler_passes"] and 0.5 < row["slot_occupancy"] <= 1 for row in rows[1:])
  assert all(row["slot_occupancy_queued"] == 1 for row in rows[1:])
  [kept, *_] = read_rows(tmp_path / "rollouts.jsonl")
  assert all(len(one["unmasked"]) == 16 for one in kept["completions"])
  assert len(trainer.sample(["Ana has 9 cards and buys 7 more. How many cards does Ana have?"])) == 1


@pytest.mark.slow
def test_the_benchmark_tells_what_slots_could_gain_at_most():
  """Without a threshold all completions of two blocks of 8 take 16 steps: nothing waits, and nothing can be gained."""
  measure = lambda **changes: compare(run_config(load_config("gdsd_math:tiny", {
    "group_size": 4, "prompts_per_step": 2, **{f"sampler.{name}": value for name, value in changes.items()}})),
    slots=8, prompts=32, repeats=1)
  even = measure(temperature=0.0)
  assert even["batches"]["sampler_passes"] == 4 * 16 and even["slots"]["sampler_passes"] == 4 * 16
  assert even["batches"]["text_tokens"] == even["slots"]["text_tokens"]
  assert even["at_most"] == even["slots"]["slot_occupancy"] == 1
  uneven = measure(threshold=0.9, early_stop=True)
  assert uneven["at_most"] > 1.1 and uneven["batches"]["sampler_passes"] < 4 * 16
