"""The objectives: golden data of their authors' code, the views that they draw, and what they refuse."""

import functools
import json
import operator

import check_objectives
from check_objectives import by_rollout, cases_of, differences, model_of, MOST
import chex
from conftest import REPOSITORY, slow
from documented import documented
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdsd_jax
from gdsd_jax.diffusion.forward import rollout_masks
from gdsd_jax.objectives.abstract import abstract_rollouts, abstract_scored
from gdsd_jax.objectives.agrpo import Agrpo
from gdsd_jax.objectives.cj_grpo import CjGrpo
from gdsd_jax.objectives.d2 import D2
from gdsd_jax.objectives.diagnostics import score_metrics
from gdsd_jax.objectives.dmpo import Dmpo
from gdsd_jax.objectives.just_grpo import JustGrpo
from gdsd_jax.objectives.named import objective_class, OBJECTIVES
from gdsd_jax.objectives.own import make_objective, trace_gradient, try_out
from gdsd_jax.objectives.spg import Spg
from gdsd_jax.objectives.surrogates import grpo_loss, mean_where
from gdsd_jax.objectives.trace_rl import TraceRl
from gdsd_jax.objectives.unigrpo import UniGrpo
from gdsd_jax.objectives.views import Drawing, random_masks, Rollouts
from gdsd_jax.runs.config_dict import base_config, run_config

N, L, P, G = 4, 8, 3, 2
MASKS = lambda key, rollouts: rollout_masks(key, rollouts.confidence, 2, group_size=G)
DRAWING = Drawing(num_mc=2, updates=2, prompt_length=P, block_length=4, num_steps=L, consistent_masks=MASKS)
FIELDS = {"d2": {"segments": 4}, "agrpo": {"temperature": 1.0}, "just_grpo": {"temperature": 1.0},
          "mdpo": {"temperature": 1.0}}
QUICK = {"spg": 1, "trace_rl": 1}  # cases of these files


@pytest.fixture(scope="module")
def model(goldens):
  return gdsd_jax.load_pretrained(model_of(goldens / "objectives", None))


@pytest.mark.parametrize("name", [name if name in QUICK else slow(name) for name in check_objectives.CASES])
def test_loss_and_gradient_are_the_authors(goldens, model, name):
  for number, case in enumerate(cases_of(goldens / "objectives" / f"{name}.npz")):
    found = differences(case, *model)
    assert found and all(value < MOST for value in found.values()), (case.label, found)
    if number + 1 == QUICK.get(name):
      break


@pytest.mark.slow
def test_every_case_of_the_quick_files_is_the_authors(goldens, model):
  for name in QUICK:
    for case in cases_of(goldens / "objectives" / f"{name}.npz"):
      assert all(value < MOST for value in differences(case, *model).values()), (name, case.label)


@pytest.mark.slow
def test_the_checker_ends_with_1_on_a_miss(goldens, tmp_path, capsys):
  arrays = dict(np.load(goldens / "objectives" / "bgpo.npz"))
  (tmp_path / "bgpo.json").write_text((goldens / "objectives" / "bgpo.json").read_text())
  model = str(model_of(goldens / "objectives", None))
  for wrong, status in ((0.0, 0), (0.01, 1)):
    np.savez(tmp_path / "bgpo.npz", **arrays | {"loss": arrays["loss"] + wrong})
    assert check_objectives.main(str(tmp_path), model) == status
  assert capsys.readouterr().out.count("MISS") == 1


@pytest.fixture
def traced(goldens):
  """Rollouts with their steps from the golden data of an objective."""

  def read(name):
    data = np.load(goldens / "objectives" / f"{name}.npz")
    settings = json.loads((goldens / "objectives" / f"{name}.json").read_text())["settings"]
    counted = data["completion_mask"]
    zeros = jnp.zeros(counted.shape)
    rollouts = Rollouts(
      tokens=jnp.asarray(data["ids"][:, -counted.shape[1]:]), lengths=jnp.asarray(counted.sum(1)), confidence=zeros,
      rewards=zeros[:, 0], advantages=zeros[:, 0], steps=jnp.asarray(data["step_map"]), group_size=3, logp=zeros,
      entropy=jnp.asarray(data["entropy"]) if "entropy" in data else None)
    P, ends = data["ids"].shape[1] - counted.shape[1], (int(data["eos_id"]),)
    return data, settings, rollouts, Drawing(4, 1, P, 4, 8, MASKS, ends)
  return read


def test_the_views_of_cj_grpo_are_the_authors(traced):
  data, _, rollouts, drawing = traced("cj_grpo")
  views = CjGrpo().views(None, rollouts, 0, drawing)
  np.testing.assert_array_equal(views.masks, by_rollout(data["noised/mask"])[..., -16:])
  np.testing.assert_array_equal(views.scored, by_rollout(data["noised/scored"]))


def test_the_segments_of_d2_are_the_authors(traced):
  data, settings, rollouts, drawing = traced("d2")
  views = D2(segments=settings["N"]).views(jax.random.key(0), rollouts, 0, drawing)
  np.testing.assert_array_equal(views.masks, by_rollout(data["noised/mask"][0])[..., -16:])
  np.testing.assert_array_equal(views.scored, by_rollout(data["noised/scored"]))
  assert 0 < float(views.prompt_masks.mean()) < 0.4


def test_the_rows_of_trace_rl_are_the_authors(traced):
  data, settings, rollouts, drawing = traced("trace_rl")
  views = TraceRl(shrink=settings["shrink"]).views(None, rollouts, 0, drawing)
  rows = check_objectives._places(data["noised/row"])
  for row, place, mask, scored in zip(data["noised/row"], rows, data["noised/mask"], data["noised/scored"]):
    np.testing.assert_array_equal(views.masks[row, place], mask[-16:])
    ours = np.asarray(views.scored[row, place])
    assert not (scored[-16:] & ~ours).any()  # theirs leave out pad tokens after the end of text
    assert not (ours & ~scored[-16:])[:int(rollouts.lengths[row])].any()


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if objective_class(name).by_view])
def test_by_view_a_gradient_depends_on_no_scores_of_other_views_and_rollouts(name):
  objective = make_objective(name, FIELDS.get(name, {}))
  random = np.random.default_rng(0)

  def filled(shape):
    if shape.dtype == jnp.int32:
      return jnp.asarray(random.integers(0, L, shape.shape), jnp.int32)
    return jnp.asarray(random.normal(size=shape.shape), jnp.float32)

  rollouts = jax.tree.map(filled, abstract_rollouts(objective, N, L, G, steps=L)).replace(lengths=jnp.arange(5, 5 + N))
  views = objective.views(jax.random.key(0), rollouts, 0, DRAWING)
  shapes = jax.eval_shape(lambda rollouts: abstract_scored(objective, rollouts, DRAWING), rollouts)
  scored = jax.tree.map(filled, shapes).replace(views=views, **vars(rollouts))
  gradient = jax.grad(lambda student, scored: objective.loss(scored.replace(student=student))[0])
  whole = gradient(scored.student, scored)
  assert any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(whole))
  for place in np.ndindex(*views.masks.shape[:2]):
    at_place = functools.partial(jax.tree.map, operator.itemgetter(place))
    others = lambda scores, place=place: jax.tree.map(lambda x: filled(x).at[place].set(x[place]), scores)
    alone = gradient(others(scored.student), scored.replace(old=others(scored.old), ref=others(scored.ref)))
    chex.assert_trees_all_close(at_place(alone), at_place(whole), rtol=1e-6)


@pytest.mark.parametrize("name", ["trace_rl", "d2", "cj_grpo"])
def test_what_an_early_stop_filled_in_is_masked_in_all_views_and_scored_in_none(name):
  """It was unmasked in no step: `steps` has the number of all of them there."""
  steps = jnp.array([[0, 1, 2, 3, 8, 8, 8, 8], [0, 1, 2, 3, 4, 5, 6, 7]])
  objective = make_objective(name, {"segments": 4} if name == "d2" else {"shrink": 3} if name == "trace_rl" else {})
  zeros, counts = jnp.zeros((2, L)), jnp.full(2, L)
  rollouts = Rollouts(tokens=steps, lengths=counts, rewards=zeros[:, 0], advantages=zeros[:, 0], confidence=zeros,
                      steps=steps, group_size=2)
  views = objective.views(jax.random.key(0), rollouts, 0, DRAWING)
  assert views.masks[0, :, 4:].all() and not views.scored[0, :, 4:].any()
  np.testing.assert_array_equal(views.scored.sum(1), [[1] * 4 + [0] * 4, [1] * 8])


def test_a_token_that_is_too_improbable_for_float32_is_left_out_of_the_bound_of_spg():
  scored, n = jnp.ones((1, 1, 3), bool), jnp.array([3.0])
  bound = lambda scores: Spg().bounds(scores, scored, n)[1][0]
  value, gradient = jax.value_and_grad(bound)(jnp.array([[[-1.0, -2.0, -90.0]]]))
  assert float(value) == pytest.approx(-1.5) and np.allclose(gradient, [[[0.5, 0.5, 0]]])


def test_what_is_not_scored_moves_nothing_however_far_the_policies_are_apart():
  scored, advantages = jnp.array([[True, False]]), jnp.ones((1, 1))

  def loss(student):
    over = lambda values: mean_where(values, scored)
    old = jax.lax.stop_gradient(student)
    return grpo_loss(student, old, jnp.array([[-1.0, 0.0]]), advantages, scored, over, CjGrpo())[0]

  assert np.allclose(jax.grad(loss)(jnp.array([[-1.0, -200.0]])), [[-1, 0]])


def test_the_steps_of_agrpo_are_the_authors(traced):
  data, settings, rollouts, drawing = traced("agrpo")
  steps, weights = Agrpo(temperature=0.8).draw_steps(jnp.asarray(data["u"]), rollouts, drawing)
  np.testing.assert_array_equal(steps, data["mc_steps"])
  np.testing.assert_allclose(weights, data["importance_weights"], rtol=1e-4)
  objective = Agrpo(temperature=0.8, steps_by="uniform")
  uniform, ones = objective.draw_steps(jnp.asarray(data["uniform/u"]), rollouts, drawing)
  np.testing.assert_array_equal(uniform, data["uniform/mc_steps"])
  np.testing.assert_array_equal(ones, data["uniform/importance_weights"])


def test_the_views_of_just_grpo_are_prefixes(traced):
  drawing = Drawing(1, 1, 11, 1, 16, MASKS)
  rollouts = abstract_rollouts(JustGrpo(), 2, 4, 1)
  views = JustGrpo(temperature=1.0).views(None, rollouts, 0, drawing)
  np.testing.assert_array_equal(views.masks[1], [[1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]])
  np.testing.assert_array_equal(views.scored[0], np.eye(4, dtype=bool))


def test_the_forward_process_of_spg_is_the_authors(goldens):
  """Each position is masked as often as in 4096 draws of their code, for completions of four lengths."""
  data = np.load(goldens / "objectives" / "spg_masks.npz")
  width, P = int(data["width"]), int(data["prompt_length"])
  theirs = np.unpackbits(data["masks"], axis=-1)[..., :width].astype(float)
  lengths, L = data["lengths"], width - P
  drawing = Drawing(int(data["num_t"]), 1, P, int(data["block_length"]), L, MASKS)
  zeros = jnp.zeros((len(lengths), L))
  rollouts = Rollouts(tokens=zeros.astype(jnp.int32), lengths=jnp.asarray(lengths), rewards=zeros[:, 0],
                      advantages=zeros[:, 0], confidence=zeros, group_size=2)

  def draw(key):
    views = Spg().views(key, rollouts, 0, drawing)
    return jnp.concatenate([views.prompt_masks, views.masks], axis=-1)

  ours = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 4096))).astype(float)
  assert ours.shape == theirs.shape
  np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=5 * np.sqrt(2 * 0.25 / 4096))
  counts = lambda masks: np.stack([np.bincount(masks.sum(-1)[:, i, 0].astype(int), minlength=width + 1)
                                   for i in range(len(lengths))]) / len(masks)
  assert np.abs(counts(ours) - counts(theirs)).sum(1).max() < 0.2  # a distance of up to 2


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_can_be_traced_for_rollouts_that_remember_what_it_needs(name):
  objective = make_objective(name, FIELDS.get(name, {}))
  drawing = Drawing(2, 2, P, 1, L, MASKS) if name == "just_grpo" else DRAWING
  try_out(objective, N, G, L, drawing)
  scored = abstract_scored(objective, abstract_rollouts(objective, N, L, G, steps=drawing.num_steps), drawing)
  told = {*trace_gradient(objective, scored), *jax.eval_shape(score_metrics, scored)}
  assert told <= documented().keys()
  assert {metric for metric, of in documented().items() if name in of} <= told
  assert scored.views.masks.shape[0::2] == (N, L)
  assert (scored.ref is not None) == objective.needs_reference and (scored.old is not None) == objective.needs_old


def test_an_objective_is_one_small_file():
  """Under 120 lines, with its source and its formula in the class's docstring."""
  for name in OBJECTIVES:
    cls = objective_class(name)
    file = REPOSITORY / (cls.__module__.replace(".", "/") + ".py")
    assert len(file.read_text().splitlines()) < 120, file
    assert cls.__doc__ and cls.name == name


def test_masks_are_of_as_many_tokens_as_asked_for():
  within = jnp.asarray(np.random.default_rng(0).random((50, 9)) < 0.7)
  counts = jnp.minimum(jnp.arange(50) % 5, within.sum(1))
  masks = random_masks(jax.random.key(0), counts, within)
  np.testing.assert_array_equal(masks.sum(1), counts)
  assert not (masks & ~within).any()


def test_the_share_of_unigrpo_is_spread_over_the_updates():
  rollouts = abstract_rollouts(UniGrpo(), 6, 100, 2)
  rollouts = jax.tree.map(lambda x: jnp.full(x.shape, 100, x.dtype), rollouts)
  drawing = Drawing(1, 4, P, None, 100, MASKS)
  shares = np.array([UniGrpo().views(jax.random.key(0), rollouts, i, drawing).masks.mean((1, 2)) for i in range(4)])
  assert np.allclose(np.diff(np.sort(shares, axis=0), axis=0), 0.25, atol=0.011)


def test_half_of_the_views_of_dmpo_are_complements():
  masks = Dmpo().views(jax.random.key(0), abstract_rollouts(Dmpo(), 3, 10, 1), 0, DRAWING).masks
  np.testing.assert_array_equal(masks[:, 0], ~masks[:, 1])


@pytest.mark.parametrize("fields, said", [
  ({"name": "spg", "psi": 0.04}, "objective.psi: spg has no such setting; it has eubo_beta, mix_weight, negative, "),
  ({"name": "spgg"}, "objective.name: 'spgg' is not one of .*did you mean 'spg'"),
  ({"name": "spg", "eubo_beta": "high"}, "objective.eubo_beta: must be a number, not 'high'"),
  ({"name": "trace_rl", "shrink": 2.5}, "objective.shrink: must be a whole number, not 2.5"),
  ({"name": "trace_rl", "after_end": "no"}, "objective.after_end: must be True or False, not 'no'"),
  ({"name": "bgpo", "dual_clip": True}, "objective.dual_clip: must be a number, not True"),
  ({"name": "unigrpo", "divided_by": 3}, "objective.divided_by: must be text, not 3; as a flag, --config.*='\"3\"'$"),
  ({"name": "wd1", "num_mc": 4}, "objective.num_mc: wd1 has a number of views of its own; unset it by"),
  ({"name": "dmpo", "num_mc": 3}, "objective.num_mc: 3 views are no pairs"),
  ({"name": "d2", "segments": 10**6}, "objective.segments: 1000000 must be at most the 256 steps of a rollout"),
  ({"name": "just_grpo"}, "objective.name: just_grpo needs rollouts from left to right"),
  ({"name": "agrpo", "filtered": True}, "objective.name: agrpo needs rollouts that remember kept, .* without sam"),
  ({"name": "mdpo", "num_mc": 300}, "objective.num_mc: 300 must be at most the 256 steps of a rollout"),
  ({"name": "mdpo", "advantages": "z_score"}, "objective.advantages: mdpo makes what it needs of the rewards; unset"),
  ({"advantages": "zscore"}, "objective.advantages: 'zscore' is not one of leave_one_out, minus_mean, z_score"),
  ({"advantages": "z_score", "scale_rewards": True}, "objective.scale_rewards: divides leave-one-out advantages"),
])
def test_what_does_not_fit_is_one_line(fields, said):
  config = base_config()
  for name, value in fields.items():
    config.objective[name] = value
  with pytest.raises(ValueError, match=said) as caught:
    config = run_config(config)
    sampler = config.sampler
    try_out(config.objective, N, G, sampler.completion_length,
            Drawing(config.num_mc, 1, P, sampler.block_length, sampler.most_steps, MASKS))
  assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("field, value", [("cache", "dual"), ("threshold", 0.9), ("early_stop", True)])
def test_a_sampler_that_does_not_predict_all_is_refused_where_predictions_are_needed(field, value):
  config = base_config()
  config.objective.name, config.sampler[field] = "mdpo", value
  with pytest.raises(ValueError, match="mdpo needs rollouts that remember predictions, which llada's do not with"):
    run_config(config)


def test_masks_of_the_sampler_are_no_choice_of_an_objective_with_views_of_its_own():
  config = base_config()
  config.objective.name, config.masks.kind = "wd1", "uniform"
  with pytest.raises(ValueError, match="masks.kind: wd1 draws masks of its own"):
    run_config(config)
  config.objective.name = "espo"
  assert run_config(config).masks.kind == "uniform"
