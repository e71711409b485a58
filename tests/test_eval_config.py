"""The samplers of evaluations: presets against the published settings, and every field obeyed or refused."""

import contextlib
import dataclasses
import types

from conftest import load_recipe
import jax
import numpy as np
import pytest

from gdsd_jax.evaluation.problems import choose
from gdsd_jax.generation.held_out import evaluate
from gdsd_jax.planning.plan import AbstractRun
from gdsd_jax.runs.config import evaluation_samplers
from gdsd_jax.runs.config_dict import base_config, run_config
from gdsd_jax.runs.fit import validate_family
from gdsd_jax.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("quick_runs")

# (recipe, preset) -> kind, temperature, top_p, confidence, steps a token, test problems of the preset. The sources:
_HALF_GREEDY = "GaryBall/GDSD, math_eval/eval.py: temperature 0, gen_length // 2 steps, blocks of 32; entropy for Dream"
_DREAMS_OWN = "DreamLM/Dream, eval_instruct/eval.sh: temperature=0.1, top_p=0.9, alg=entropy, as many steps as tokens"
_AS_THE_OTHERS = "no script of GDSD evaluates LLaDA on code; ML-GSAI/LLaDA, issue 25: temperature 0, a step a token"
PUBLISHED = {
  ("math", "llada_8b"): ("llada", 0.0, None, "low_confidence", 0.5, None, _HALF_GREEDY),
  ("gsm8k", "llada_8b"): ("llada", 0.0, None, "low_confidence", 0.5, None, _HALF_GREEDY),
  ("countdown", "llada_8b"): ("llada", 0.0, None, "low_confidence", 0.5, None, _HALF_GREEDY),
  ("sudoku", "llada_8b"): ("llada", 0.0, None, "low_confidence", 0.5, 256, _HALF_GREEDY),
  ("code", "llada_8b"): ("llada", 0.0, None, "low_confidence", 0.5, None, _AS_THE_OTHERS),
  ("math", "dream_7b"): ("dream", 0.1, 0.9, "entropy", 1.0, None, _DREAMS_OWN),
  ("gsm8k", "dream_7b"): ("dream", 0.1, 0.9, "entropy", 1.0, None, _DREAMS_OWN),
  ("code", "dream_7b"): ("dream", 0.1, 0.9, "entropy", 1.0, None, _DREAMS_OWN),
  ("countdown", "dream_7b"): ("dream", 0.0, None, "entropy", 0.5, None, _HALF_GREEDY),
  ("sudoku", "dream_7b"): ("dream", 0.0, None, "entropy", 0.5, 256, _HALF_GREEDY),
}


def changed(**fields):
  config = base_config()
  config.update_from_flattened_dict({path.replace("__", "."): value for path, value in fields.items()})
  return run_config(config)


@pytest.mark.parametrize("recipe, preset", PUBLISHED)
def test_presets_evaluate_as_published(recipe, preset):
  kind, temperature, top_p, confidence, share, size, _ = PUBLISHED[recipe, preset]
  config = run_config(load_recipe(f"gdsd_{recipe}").get_config(preset))
  samplers = evaluation_samplers(config)
  assert list(samplers) == [128, 256, 512] and config.eval.test_size == size
  for length, sampler in samplers.items():
    assert (sampler.kind, sampler.temperature, sampler.top_p) == (kind, temperature, top_p)
    assert sampler.steps == share * length
    assert confidence == (sampler.remasking if kind == "llada" else sampler.alg)
    assert (sampler.top_k, sampler.alg_temp, sampler.cfg_scale, sampler.cache) == (None, 0.0, 0.0, "none")
    assert kind == "dream" or sampler.block_length == 32
  validated = dataclasses.replace(config.sampler, **config.eval.validation(config.sampler))
  assert validated.temperature == temperature and (not temperature or validated.top_p == top_p)


def test_every_field_reaches_the_sampler():
  dream = {"temperature": 0.3, "top_p": 0.8, "top_k": 5, "alg": "origin", "alg_temp": 0.2}
  llada = {"temperature": 0.3, "remasking": "random", "cfg_scale": 0.5}
  for kind, fields in (("dream", dream), ("llada", llada)):
    given = {f"eval__{name}": value for name, value in fields.items()}
    sampler = evaluation_samplers(changed(sampler__kind=kind, **given))[256].settings
    assert sampler | fields == sampler


@pytest.mark.parametrize("fields, block_length", [
  ({}, None), (dict(sampler__block_length=64), 64), (dict(eval__block_length=16), 16),
  (dict(sampler__block_length=64, eval__block_length=16), 16), (dict(sampler__cache="dual"), 32),
])
def test_dream_is_evaluated_in_the_blocks_of_its_rollouts_unless_others_are_asked_for(fields, block_length):
  sampler = evaluation_samplers(changed(sampler__kind="dream", **fields))[256]
  assert sampler.block_length == block_length
  assert sampler.is_blockwise == sampler.early_stop == (block_length is not None)


def test_a_penalty_and_noise_of_rollouts_are_those_of_evaluations():
  config = changed(sampler__eos_penalty=2.0, sampler__noise="official")
  assert (evaluation_samplers(config)[256].eos_penalty, evaluation_samplers(config)[256].noise) == (2.0, "official")
  assert evaluation_samplers(changed(sampler__eos_penalty=2.0, eval__eos_penalty=0.0))[256].eos_penalty == 0.0


def test_fast_options_are_the_runs_unless_evaluation_has_its_own():
  run = dict(sampler__cache="dual", sampler__threshold=0.9)
  fast = lambda **fields: [getattr(evaluation_samplers(changed(**run, **fields))[256], name)
                           for name in ("cache", "threshold", "factor")]
  assert fast() == ["dual", 0.9, None]
  assert fast(eval__cache="none") == ["none", None, None]
  assert fast(eval__factor=1.0) == ["none", None, 1.0]
  assert fast(eval__cache="prefix", eval__threshold=0.5) == ["prefix", 0.5, None]


@pytest.mark.parametrize("fields, message", [
  (dict(eval__temperature=0.1, eval__top_p=0.9), "eval.top_p: only the dream or block sampler has it"),
  (dict(sampler__kind="dream", eval__top_p=0.9), "eval.top_p: needs eval.temperature above 0"),
  (dict(sampler__kind="dream", eval__cfg_scale=1.0), "eval.cfg_scale: only the llada sampler has it"),
  (dict(sampler__kind="dream", eval__temperature=1.0, eval__top_p=1.5), r"eval.top_p: must lie in \(0, 1\], not 1.5"),
  (dict(eval__cache="dual", eval__cfg_scale=1.0), "eval.cfg_scale: must be 0 with sampler.cache"),
  (dict(eval__threshold=0.9, eval__remasking="random"), "eval.remasking: must be 'low_confidence' with"),
  (dict(sampler__kind="dream", eval__threshold=0.9), "eval.alg: must be one of maskgit_plus, topk_margin"),
  (dict(eval__threshold=0.9, eval__factor=1.0), "eval.factor: sampler.threshold says already"),
  (dict(eval__eos_penalty=-1.0), "eval.eos_penalty: must be a number and not negative, not -1.0"),
  (dict(eval__lengths=(100,)), "eval.lengths: 100 at .* is no sampler: sampler.block_length: 32 must divide"),
])
def test_what_no_sampler_has_is_refused_by_its_name_here(fields, message):
  with pytest.raises(ValueError, match=f"^{message}") as caught:
    changed(**fields)
  assert "\n" not in str(caught.value)


def test_validation_is_the_runs_own_sampler_where_it_is_greedy():
  config = changed(sampler__kind="dream", sampler__top_p=0.95)
  assert config.eval.validation(config.sampler) == {"temperature": 0.0}


class Told:
  """Stands for a run's sampler, and notes at which temperature, by which nucleus and key completions are asked for."""

  def __init__(self, config, seen):
    self.config, self.seen = config, seen

  def with_config(self, **changes):
    return Told(dataclasses.replace(self.config, **changes), self.seen)

  def __call__(self, params, examples, key):
    self.seen.append((self.config.temperature, self.config.top_p, jax.random.key_data(key).tolist()))
    ones = np.ones(len(examples), np.float32)
    return types.SimpleNamespace(accuracy=ones, accuracy_lenient=ones, total_reward=ones, rewards={})


@pytest.mark.parametrize("fields, judged", [
  ({}, (0.0, 0.95)), (dict(eval__temperature=0.1, eval__top_p=0.9), (0.1, 0.9)),
])
def test_validation_is_judged_as_the_evaluation_is(fields, judged):
  config = changed(sampler__kind="dream", sampler__top_p=0.95, **fields)
  seen = []
  key = jax.random.key(0)
  evaluate(Told(config.sampler, seen), None, [{}] * 4, key, 2, config.eval.validation(config.sampler))
  assert [said[:2] for said in seen] == [judged, (1.0, 0.95)] * 2
  keys = [said[2] for said in seen if said[0] != 0.0]
  assert len(set(map(tuple, keys))) == len(keys)  # what is drawn is drawn by keys of its own


def test_a_sampler_of_another_family_is_refused_before_training_and_planning(tmp_path):
  config = changed(sampler__kind="dream")
  for begin in (lambda: Trainer(config, tmp_path / "run"), lambda: AbstractRun(config, None)):
    with pytest.raises(ValueError) as caught:
      begin()
    assert str(caught.value) == (
      "sampler.kind: 'dream' is not how tiny is sampled, a model of the family llada; give --config.sampler.kind=llada,"
      " or --config.sampler.other_family=True if you mean it")


@pytest.mark.parametrize("kind, family, insists, refused", [
  ("llada", "llada", False, False), ("dream", "dream", False, False), ("llada", "dream", False, True),
  ("llada", "dream", True, False), ("llada", "own.py:Layout", False, False), ("llada", "illada", False, False),
  ("dream", "lladamoe", False, True),
])
def test_a_sampler_goes_with_its_own_family_unless_one_insists(tiny_config, kind, family, insists, refused):
  config = changed(sampler__kind=kind, sampler__other_family=insists)
  with pytest.raises(ValueError, match="^sampler.kind") if refused else contextlib.nullcontext():
    validate_family(config, dataclasses.replace(tiny_config, family=family), "model")


@pytest.mark.parametrize("size, first, indices, said", [
  (None, None, list(range(500)), "all 500 test problems"),
  (None, 3, [0, 1, 2], "the first 3 of all 500 test problems"),
  # numpy.random.seed(42); numpy.random.choice(500, 256, replace=False)[:8]
  (256, 8, [361, 73, 374, 155, 104, 394, 377, 124], "the first 8 of 256 of the 500 test problems, drawn by numpy's"),
  (256, 256, None, "256 of the 500 test problems"),
])
def test_test_problems_are_all_or_those_of_the_official_seed(size, first, indices, said):
  test = [{"index": index} for index in range(500)]
  chosen, told = choose(test, size, first)
  assert told.startswith(said)
  assert indices is None or [example["index"] for example in chosen] == indices
  assert len({example["index"] for example in chosen}) == len(chosen) == (first or size or 500)


def test_more_test_problems_than_there_are_are_refused():
  with pytest.raises(ValueError, match="^eval.test_size: 256 are more than the 3 test problems; "):
    choose([{}] * 3, 256, None)
