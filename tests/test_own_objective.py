"""An objective of the user's own: what it sees, its gradient, its settings, and what its mistakes say."""

import re

from conftest import REPOSITORY
import jax.numpy as jnp
import numpy as np
import pytest

import gdsd_jax
from gdsd_jax import command, own_code
from gdsd_jax.diffusion.forward import rollout_masks
from gdsd_jax.objectives.abstract import abstract_rollouts, abstract_scored
from gdsd_jax.objectives.objective import ScoredRollouts
from gdsd_jax.objectives.own import make_objective, OwnObjective, try_out
from gdsd_jax.objectives.scores import Scores
from gdsd_jax.objectives.views import Drawing, Views
from gdsd_jax.runs.config_dict import base_config, run_config

EXAMPLE = REPOSITORY / "examples" / "own_objective.py"
N, M, L, G = 4, 2, 6, 2
DRAWING = Drawing(M, 1, 3, None, L, lambda key, rollouts: rollout_masks(key, rollouts.confidence, M))
GOOD = """
import dataclasses
import gdsd_jax
import jax
import jax.numpy as jnp

@dataclasses.dataclass(frozen=True)
class Own(gdsd_jax.Objective):
  scale: float = 2.0
  needs_reference = True
  scoring = gdsd_jax.Scoring()

  def loss(self, batch):
    loss = jnp.mean(batch.student.plain - batch.ref.plain)
    metrics = {"mine": loss}
    return loss, metrics
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
  """Makes and tries the objective of a file that differs from GOOD in a line."""
  monkeypatch.chdir(tmp_path)

  def make(old="", new="", **fields):
    assert old in GOOD
    (tmp_path / "own.py").write_text(GOOD.replace(old, new))
    objective = make_objective("own.py:Own", fields)
    try_out(objective, N, G, L, DRAWING)
    return objective
  return make


def scored(seed=0) -> ScoredRollouts:
  random = np.random.default_rng(seed)
  scores = lambda: Scores(jnp.asarray(-random.random((N, M, L)), jnp.float32))
  rewards = jnp.asarray(random.random(N), jnp.float32)
  advantages = gdsd_jax.leave_one_out_advantages(rewards.reshape(-1, G)).reshape(-1)
  masks, tokens = jnp.asarray(random.random((N, M, L)) < 0.5), jnp.zeros((N, L), jnp.int32)
  return ScoredRollouts(
    tokens=tokens, lengths=jnp.array([6, 1, 3, 6]), rewards=rewards, advantages=advantages,
    confidence=jnp.ones((N, L)), group_size=G, views=Views(masks, coupled=True), student=scores(), old=scores(),
    ref=scores())


def test_a_class_in_a_file_is_an_objective_whose_fields_are_settings(own):
  objective = own(scale=3.0)
  assert (objective.name, objective.needs_reference, objective.objective.scale) == ("own.py:Own", True, 3.0)
  batch = scored()
  loss, metrics = objective.loss(batch)
  assert float(loss) == float(metrics["mine"]) == pytest.approx(float(np.mean(batch.student.plain - batch.ref.plain)))
  assert objective == make_objective("own.py:Own", {"scale": 3.0})  # of equal ones a run compiles one


def test_tokens_count_up_to_the_first_end_and_have_the_weights_of_the_forward_process():
  batch = scored()
  np.testing.assert_array_equal(batch.counted.sum(axis=1), [6, 1, 3, 6])
  mask = np.array([True, True, False, False, False, True])
  masks = jnp.broadcast_to(mask, (N, M, L)).at[0, 0].set([True] * 2 + [False] * 4)
  weights = batch.replace(views=Views(masks, coupled=True)).weights
  np.testing.assert_allclose(weights[0, 0], [7 / 2] * 2 + [7 / 4] * 4, rtol=1e-6)
  np.testing.assert_allclose(weights[1, 1], np.full(L, 7 / 3), rtol=1e-6)


def test_the_example_is_ppo_on_the_tokens_that_count():
  objective, batch = make_objective(f"{EXAMPLE}:TokenPPO", {"beta": 0.1, "epsilon": 0.3}), scored()
  student, old, ref = (np.asarray(scores.plain, np.float64) for scores in (batch.student, batch.old, batch.ref))
  terms = []
  for n, length in enumerate([6, 1, 3, 6]):
    for m in range(M):
      for i in range(length):
        r, A, d = np.exp(student[n, m, i] - old[n, m, i]), float(batch.advantages[n]), ref[n, m, i] - student[n, m, i]
        terms.append(-min(r * A, np.clip(r, 0.7, 1.3) * A) + 0.1 * (np.exp(d) - d - 1))
  assert float(objective.loss(batch)[0]) == pytest.approx(np.mean(terms), rel=1e-5)
  gradient = make_objective(f"{EXAMPLE}:policy_gradient", {"scale": 2.0})
  counted = np.asarray(batch.counted)[:, None] * np.ones((1, M, 1))
  expected = -2 * np.sum(counted * student * np.asarray(batch.advantages)[:, None, None]) / counted.sum()
  assert float(gradient.loss(batch)[0]) == pytest.approx(expected, rel=1e-5)
  assert not gradient.needs_reference


VIEWS = "  def views(self, key, rollouts, update, drawing):\n    return "


@pytest.mark.parametrize("views, message", [
  ("3", "own.py, line 13: Own.views must give gdsd_jax.Views, not 3"),
  ("gdsd_jax.Views(rollouts.tokens)", "Own.views must give masks that are bool[N, V, L], [4, 6, 6], not int32[4, 6]"),
  ("gdsd_jax.Views(jnp.ones((4, 2, 6), bool), prompt_masks=jnp.ones((4, 2, 6), bool))",
   "Own.views must give prompt_masks that are bool[N, V, P], [4, 2, 3], not bool[4, 2, 6]"),
  ("gdsd_jax.Views(jnp.ones((4, 2, 6), bool), targets=rollouts.tokens)",
   "Own.views must give targets that are int32[N, V, L], [4, 2, 6], not int32[4, 6]"),
  ("gdsd_jax.Views(jnp.ones((4, 2, 6), bool), scored=[True])",
   "Own.views must give scored that are bool[N, V, L], [4, 2, 6], not [True]"),
  ("gdsd_jax.Views(rollouts.stepss)", "own.py, line 14: AttributeError: 'Rollouts' object has no attribute 'stepss'"),
])
def test_mistakes_of_views_are_one_line_with_file_and_line(own, views, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    own("  def loss", VIEWS + views + "\n\n  def loss")


def test_views_of_ones_own_are_what_is_scored(own):
  every_other = "gdsd_jax.Views(jnp.broadcast_to(jnp.arange(6) % 2 == 0, (4, 3, 6)))"
  objective = own("  def loss", VIEWS + every_other + "\n\n  def loss")
  rollouts = abstract_rollouts(objective, N, L, G)
  assert abstract_scored(objective, rollouts, DRAWING).student.plain.shape == (4, 3, 6)


@pytest.mark.parametrize("old, new, message", [
  ("class Own(gdsd_jax.Objective)", "class Own", "own.py, line 7: own.py:Own is no gdsd_jax.Objective"),
  ("(frozen=True)", "", "own.py, line 7: own.py:Own must be hashable, as a frozen dataclass is"),
  ("def loss", "def cost", "NotImplementedError: Own must have `loss`"),
  ("return loss, metrics", "return None", "own.py, line 13: Own.loss must give a loss, or a loss and metrics"),
  ("return loss, metrics", "return 1.0", "own.py, line 13: Own.loss must give a loss, or a loss and"),
  ("return loss, metrics", "return loss, 3", "line 13: Own.loss must give metrics that are a dict, not 3"),
  ("jnp.mean(batch", "(batch", "line 13: Own.loss must give a loss that is one floating-point number, not float32["),
  ("return loss, metrics", "return jnp.int32(loss)", "must give a loss that is one floating-point number, not int32["),
  ('"mine": loss', '"mine": batch.rewards', "must give metrics that are single numbers, not mine = float32[4]"),
  ('"mine": loss', '"mine": "much"', "must give metrics that are single numbers, not mine = 'much'"),
  ('"mine": loss', '"grad_norm": loss', "gives a metric 'grad_norm'; another name"),
  ('"mine": loss', '"eval/reward": loss', "gives a metric 'eval/reward'; another name"),
  ("loss = jnp", "loss = batch.students; jnp", "own.py, line 14: AttributeError: 'ScoredRollouts' object has no attr"),
  ("loss = jnp", "assert batch.advantages[0] > 0; loss = jnp", "own.py, line 14: TracerBoolConversionError: Attem"),
  ("needs_reference = True", "", "own.py, line 14: AttributeError: 'NoneType' object has no attribute 'plain'"),
  ("needs_reference = True", "needs_reference = 1", "needs_reference must be True or False, not 1"),
  ("gdsd_jax.Scoring()", "3", "scoring must be a gdsd_jax.Scoring, not 3"),
  ("scale: float = 2.0", "scale: float = 2.0\n  def __post_init__(self): 1 / 0", "line 10: ZeroDivisionError"),
  ("jnp.mean(batch.student.plain - ",
   "jax.lax.while_loop(lambda x: x < 1, lambda x: x + 1, jnp.mean(batch.student.plain)) + jnp.mean(",
   "own.py, line 13: ValueError: Reverse-mode differentiation does not work"),
])
def test_mistakes_are_one_line_with_file_and_line(own, old, new, message):
  with pytest.raises(ValueError, match=re.escape(message)) as caught:
    own(old, new)
  assert len(str(caught.value).splitlines()) == 1 and str(caught.value).startswith("objective.name: ")


def recipe(**fields):
  config = base_config()
  config.objective.name = f"{EXAMPLE}:TokenPPO"
  for name, value in fields.items():
    config.objective[name] = value
  return config


def test_a_recipe_sets_its_fields_and_what_it_lacks_is_refused(monkeypatch):
  objective = run_config(recipe(beta=0.5)).objective
  assert isinstance(objective, OwnObjective) and (objective.objective.beta, objective.objective.epsilon) == (0.5, 0.2)
  told = ("objective.clip, objective.psi: .* no such setting; it has epsilon, beta. What a recipe sets, unset by"
          " --config.objective.clip=None --config.objective.psi=None")
  with pytest.raises(ValueError, match=told):
    run_config(recipe(psi=0.04, clip=1.0))
  with pytest.raises(ValueError, match="^objective.num_mc: 1000000, which is .*:TokenPPO's own, is more than 1024"):
    monkeypatch.setattr(own_code.load(f"{EXAMPLE}:TokenPPO", ""), "num_mc", 10**6)
    run_config(recipe())
  monkeypatch.undo()
  with pytest.raises(ValueError, match="^objective.beta: must be a number, not 'much'$"):
    make_objective(f"{EXAMPLE}:TokenPPO", {"beta": "much"})
  config = recipe(psi=0.04)
  command._unset(config, "objective.psi")  # what --config.objective.psi=None does
  assert run_config(config).objective == run_config(recipe()).objective
  config = base_config()
  config.objective.clip = 1.0
  with pytest.raises(ValueError, match="the config has no field 'objective.clip'"):
    run_config(config)
