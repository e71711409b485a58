"""An objective of the user's own: what its loss returns is checked, and mistakes are told with their file and line."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gdsd_jax import own_code
from gdsd_jax.checks import require
from gdsd_jax.objectives.objective import Objective, ScoredRollouts
from gdsd_jax.objectives.scores import Scores
from gdsd_jax.objectives.sequence import SequenceObjective
from gdsd_jax.objectives.token_scores import Scoring

_TAKEN = ("loss", "grad_norm", "skipped", "entropy", "learning_rate", "reward", "step")  # what a step's row tells


def make_objective(name: str, fields: Mapping[str, Any]) -> Objective:
  """The objective of that name, ours or the user's, with these of its fields set.

  Raises ValueError or OSError, one line: an unknown name or field, or the file and line of the user's own mistake.
  """
  if not own_code.is_own(name):
    return SequenceObjective(name, **fields)
  found = own_code.load(name, "objective.name")
  if isinstance(found, type):
    own_code.require_settings(found, "objective.name", name, fields)
    try:
      made = found(**fields)
    except Exception as error:  # the user's own
      raise ValueError(f"objective.name: {own_code.described_briefly(error, found)}") from error
    require(isinstance(made, Objective), "objective.name", f"{own_code.at(found)}{name} is no gdsd_jax.Objective")
    try:
      hash(made)
    except TypeError as error:
      said = f"{own_code.at(found)}{name} must be hashable, as a frozen dataclass is of what it holds"
      raise ValueError(f"objective.name: {said}: {error}") from None
    return OwnObjective(name, made)
  require(callable(found), "objective.name", f"{name} must be a class or a function, not {found!r:.80}")
  own_code.require_settings(found, "objective.name", name, fields, passed=1)
  return OwnObjective(name, _Loss(found, tuple(fields.items())))


@dataclasses.dataclass(frozen=True)
class _Loss(Objective):
  """A function as an objective; its keyword parameters are the fields."""

  function: Callable
  fields: tuple[tuple[str, Any], ...]

  def loss(self, batch: ScoredRollouts):
    return self.function(batch, **dict(self.fields))


@dataclasses.dataclass(frozen=True)
class OwnObjective(Objective):
  """Stands for an objective of the user's. Its loss raises ValueError, one line with the user's file and line."""

  name: str
  objective: Objective

  def __post_init__(self):
    scoring, reference = self.scoring, self.needs_reference
    if not isinstance(scoring, Scoring):
      self._refuse(f"scoring must be a gdsd_jax.Scoring, not {scoring!r:.80}")
    if not isinstance(reference, bool):
      self._refuse(f"needs_reference must be True or False, not {reference!r:.80}")

  @property
  def scoring(self) -> Scoring:
    return self.objective.scoring

  @property
  def needs_reference(self) -> bool:
    return self.objective.needs_reference

  def loss(self, batch: ScoredRollouts):
    try:
      found = self.objective.loss(batch)
    except Exception as error:  # the user's own
      raise ValueError(f"objective.name: {own_code.described_briefly(error, self.culprit)}") from error
    loss, metrics = found if isinstance(found, tuple) and len(found) == 2 else (found, {})
    if not isinstance(loss, jax.Array):
      self._refuse(f"must give a loss, or a loss and metrics, not {found!r:.80}")
    if loss.shape != () or not jnp.issubdtype(loss.dtype, jnp.floating):
      self._refuse(f"must give a loss that is one floating-point number, not {_said(loss)}")
    if not isinstance(metrics, Mapping):
      self._refuse(f"must give metrics that are a dict, not {metrics!r:.80}")
    for metric, value in metrics.items():
      if not isinstance(metric, str) or metric in _TAKEN:
        self._refuse(f"gives a metric {metric!r}; another name, please: the run's own are {', '.join(_TAKEN)}")
      if not isinstance(value, jax.Array | np.ndarray | np.number | int | float) or jnp.shape(value) != ():
        self._refuse(f"must give metrics that are single numbers, not {metric} = {_said(value)}")
    return loss.astype(jnp.float32), {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

  @property
  def culprit(self) -> Callable:
    """The function of the user's that is the loss."""
    return self.objective.function if isinstance(self.objective, _Loss) else type(self.objective).loss

  def _refuse(self, message: str):
    called = getattr(self.culprit, "__qualname__", self.name)
    raise ValueError(f"objective.name: {own_code.at(self.culprit)}{called} {message}")


def _said(value: Any) -> str:
  return f"{value.dtype}{list(value.shape)}" if isinstance(value, jax.Array) else f"{value!r:.80}"


def try_out(objective: Objective, rollouts: int, group_size: int, num_samples: int, length: int) -> None:
  """Traces the loss of an own objective and its gradient for N rollouts, M samples and L tokens; nothing is compiled.

  Raises ValueError, one line with the user's file and line.
  """
  if not isinstance(objective, OwnObjective):
    return
  array = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)
  scoring, samples = objective.scoring, (rollouts, num_samples)
  score = array(jnp.float32, *samples, length) if scoring.per_token else array(jnp.float32, *samples)
  centered = scoring.center_top_k is not None
  scores = Scores(score if scoring.with_plain or not centered else None, score if centered else None)
  batch = ScoredRollouts(
    scores, scores, scores if objective.needs_reference else None, array(bool, *samples, length),
    array(jnp.int32, rollouts, length), array(jnp.int32, rollouts), array(jnp.float32, rollouts),
    array(jnp.float32, rollouts), group_size,
  )
  loss_of = lambda student, batch: objective.loss(batch.replace(student=student))
  try:
    jax.eval_shape(jax.grad(loss_of, has_aux=True), scores, batch)
  except Exception as error:  # the user's own, or JAX's of what has no gradient
    if isinstance(error, ValueError) and str(error).startswith("objective.name: "):
      raise
    raise ValueError(f"objective.name: {own_code.described_briefly(error, objective.culprit)}") from error
