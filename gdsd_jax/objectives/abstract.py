"""Rollouts and their scores as shapes alone: what an objective is tried on before anything is compiled."""

import jax
import jax.numpy as jnp

from gdsd_jax.objectives.objective import Objective, ScoredRollouts, ScoredViews
from gdsd_jax.objectives.scores import Scores
from gdsd_jax.objectives.views import Drawing, Predictions, Rollouts, Views


def _array(dtype, *shape) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, dtype)


def abstract_rollouts(objective: Objective, count: int, length: int, group_size: int, kept: int = 1,
                      steps: int = 1, in_blocks: bool = False) -> Rollouts:
  """`count` rollouts of L tokens in `steps`, which remember what the objective needs; `kept` is the sampler's top_k.

  `in_blocks` says whether the model attends from block to block.
  """
  of_tokens = {name: _array(dtype, count, length) for name, dtype in (
    ("steps", jnp.int32), ("logp", jnp.float32), ("entropy", jnp.float32)) if name in objective.needs}
  if "kept" in objective.needs:
    of_tokens["kept"] = _array(jnp.int32, count, length, kept)
  if "predictions" in objective.needs:
    predicted = [_array(dtype, count, steps, length) for dtype in (jnp.int32, jnp.float32)]
    of_tokens["predictions"] = Predictions(*predicted, _array(jnp.float32, count, steps))
  if in_blocks:
    of_tokens["blocks"] = _array(jnp.int32, count, length)
  numbers = _array(jnp.float32, count)
  return Rollouts(tokens=_array(jnp.int32, count, length), lengths=_array(jnp.int32, count), rewards=numbers,
                  advantages=numbers, confidence=_array(jnp.float32, count, length), group_size=group_size, **of_tokens)


def abstract_scored(objective: Objective, rollouts: Rollouts, drawing: Drawing) -> ScoredRollouts:
  """These rollouts in the objective's views, scored as it asks for."""
  key = jax.eval_shape(lambda: jax.random.key(0))
  views = jax.eval_shape(lambda *given: objective.views(*given, drawing), key, rollouts, _array(jnp.int32))
  fixed = jax.eval_shape(lambda *given: objective.fixed_views(*given, drawing), key, rollouts)
  scores, reference = _scores(objective, views), objective.needs_reference
  if fixed is not None:
    of_fixed = _scores(objective, fixed)
    fixed = ScoredViews(fixed, of_fixed, of_fixed if reference else None)
  return ScoredRollouts.of(
    rollouts, views=views, student=scores, old=scores if objective.needs_old else None,
    ref=scores if reference else None, fixed=fixed)


def _scores(objective: Objective, views: Views) -> Scores:
  scoring, score = objective.scoring, _array(jnp.float32, *views.masks.shape)
  centered = scoring.center_top_k is not None
  return Scores(score if scoring.with_plain or not centered else None, score if centered else None)
