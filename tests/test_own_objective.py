"""An objective of the user's own: what it sees, its gradient, its settings, and what its mistakes say."""

import dataclasses
import functools
import re

from conftest import REPOSITORY
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gdsd_jax
from gdsd_jax import command
from gdsd_jax.objectives.gdsd import Gdsd
from gdsd_jax.objectives.objective import ScoredRollouts
from gdsd_jax.objectives.own import make_objective, OwnObjective, try_out
from gdsd_jax.objectives.scores import Scores
from gdsd_jax.parallel.mesh import make_mesh
from gdsd_jax.runs.config_dict import base_config, run_config
from gdsd_jax.runs.state import init_state
from gdsd_jax.training.gradient import DistillationBatch, loss_and_gradient, ScoringBatch
from gdsd_jax.training.step import score_rollouts

EXAMPLE = REPOSITORY / "examples" / "own_objective" / "token_ppo.py"
N, M, L, G = 4, 2, 6, 2
GOOD = """
import dataclasses
import gdsd_jax
import jax
import jax.numpy as jnp

@dataclasses.dataclass(frozen=True)
class Own(gdsd_jax.Objective):
  scale: float = 2.0
  needs_reference = True
  scoring = gdsd_jax.Scoring(per_token=True)

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
    try_out(objective, N, G, M, L)
    return objective
  return make


def scored(seed=0, per_token=True) -> ScoredRollouts:
  random = np.random.default_rng(seed)
  scores = lambda: Scores(jnp.asarray(-random.random((N, M, L) if per_token else (N, M)), jnp.float32))
  rewards = jnp.asarray(random.random(N), jnp.float32)
  advantages = gdsd_jax.leave_one_out_advantages(rewards.reshape(-1, G)).reshape(-1)
  masks, tokens = jnp.asarray(random.random((N, M, L)) < 0.5), jnp.zeros((N, L), jnp.int32)
  return ScoredRollouts(scores(), scores(), scores(), masks, tokens, jnp.array([6, 1, 3, 6]), rewards, advantages, G)


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
  weights = batch.replace(masks=jnp.broadcast_to(mask, (N, M, L)).at[0, 0].set([True] * 2 + [False] * 4)).weights
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
  ("loss = jnp", "loss = batch.students; jnp", "own.py, line 14: AttributeError: 'ScoredRollouts' object has no attr"),
  ("loss = jnp", "assert batch.advantages[0] > 0; loss = jnp", "own.py, line 14: TracerBoolConversionError: Attem"),
  ("needs_reference = True", "", "own.py, line 14: AttributeError: 'NoneType' object has no attribute 'plain'"),
  ("needs_reference = True", "needs_reference = 1", "needs_reference must be True or False, not 1"),
  ("gdsd_jax.Scoring(per_token=True)", "3", "scoring must be a gdsd_jax.Scoring, not 3"),
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


def test_a_recipe_sets_its_fields_and_what_it_lacks_is_refused():
  objective = run_config(recipe(beta=0.5)).objective
  assert isinstance(objective, OwnObjective) and (objective.objective.beta, objective.objective.epsilon) == (0.5, 0.2)
  told = ("objective.clip, objective.psi: .* no such setting; it has epsilon, beta. What a recipe sets, unset by"
          " --config.objective.clip=None --config.objective.psi=None")
  with pytest.raises(ValueError, match=told):
    run_config(recipe(psi=0.04, clip=1.0))
  config = recipe(psi=0.04)
  command._unset(config, "objective.psi")  # what --config.objective.psi=None does
  assert run_config(config).objective == run_config(recipe()).objective
  config = base_config()
  config.objective.clip = 1.0
  with pytest.raises(ValueError, match="the config has no field 'objective.clip'"):
    run_config(config)


@dataclasses.dataclass(frozen=True)
class TokenGDSD(gdsd_jax.Objective):
  """GDSD from the scores of single tokens, in other words than those of `gdsd_loss`."""

  scoring = gdsd_jax.Scoring(per_token=True)
  needs_reference = True

  def loss(self, batch):
    sums = lambda scores: 0.5 * jnp.einsum("nml,nml->nm", batch.weights, scores.plain)
    moved = jnp.clip(sums(batch.student) - sums(batch.old), jnp.log(1 - 4e-4), jnp.log(1 + 4e-4)) / L
    loss = jnp.sum(jnp.square(moved - 0.04 * batch.advantages[:, None])) / N
    return loss + 1e-3 * jnp.mean(jnp.square(sums(batch.student) - sums(batch.ref))) / (2 * L), {}


@pytest.mark.slow
def test_token_scores_carry_the_same_gradient_as_their_sums(tiny_denoiser, tiny_params):
  given, prompt = scored(), jnp.ones((N, 3), bool)
  tokens = jax.random.randint(jax.random.key(0), (N, 3 + L), 0, 60)
  rollouts, found = ScoringBatch(tokens, prompt, given.masks), []
  state = init_state(tiny_denoiser, tiny_params, optax.sgd(1.0), 0, True, make_mesh(1, 1, 1, jax.devices()[:1]))
  of_tokens = score_rollouts(state.params, rollouts, denoiser=tiny_denoiser, objective=TokenGDSD(), accumulation=2)
  assert of_tokens.plain.shape == (N, M, L)
  sums = Scores(0.5 * jnp.sum(given.weights * of_tokens.plain, axis=2))
  for objective, scores in ((Gdsd(), sums), (TokenGDSD(), of_tokens)):
    ref = jax.tree.map(lambda x: x * 1.01, scores)
    batch = DistillationBatch(rollouts, given.rewards, given.advantages, given.lengths, scores, ref, scores, G)
    step = functools.partial(loss_and_gradient, tiny_denoiser, objective)
    (loss, _), gradient = jax.jit(step, static_argnames="accumulation")(state, batch, accumulation=2)
    found.append((loss, gradient))
  np.testing.assert_allclose(*(loss for loss, _ in found), rtol=1e-4)
  norm = float(optax.global_norm(found[0][1]))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * norm), *(g for _, g in found))
