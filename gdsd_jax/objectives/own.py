"""An objective of the user's own: what its loss returns is checked, and mistakes are told with their file and line."""

from collections.abc import Callable, Mapping
import dataclasses
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gdsd_jax import own_code
from gdsd_jax.checks import ONLY_RUNS, require
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.objectives.abstract import abstract_rollouts, abstract_scored
from gdsd_jax.objectives.advantages import ADVANTAGES
from gdsd_jax.objectives.named import objective_class, settings
from gdsd_jax.objectives.objective import Objective, ScoredRollouts
from gdsd_jax.objectives.scores import require_scorable
from gdsd_jax.objectives.token_scores import Scoring
from gdsd_jax.objectives.views import Drawing, Rollouts, Views

_REMEMBERED = frozenset({"steps", "logp", "entropy", "kept", "predictions"})
_ARRAYS_OF_VIEWS = (
  ("masks", "bool", "L"), ("scored", "bool", "L"), ("prompt_masks", "bool", "P"), ("targets", "int32", "L"))
_TAKEN = ("loss", "grad_norm", "skipped", "entropy", "learning_rate", "reward", "step")  # what a step's row tells


def make_objective(name: str, fields: Mapping[str, Any]) -> Objective:
  """The objective of that name, ours or the user's, with these of its fields set.

  Raises ValueError or OSError, one line: an unknown name or field, or the file and line of the user's own mistake.
  """
  if not own_code.is_own(name):
    ours = objective_class(name)
    own_code.require_settings(ours, "objective.name", name, fields, owners=settings)
    return ours(**fields)
  found = own_code.load(name, "objective.name")
  if isinstance(found, type):
    own_code.require_settings(found, "objective.name", name, fields)
    try:
      made = found(**fields)
    except own_code.RAISED as error:  # the user's own
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
    for name, (fits, said) in _SAID_BY_CLASS.items():
      if not fits(value := getattr(self.objective, name)):
        self._refuse(f"{name} must be {said}, not {value!r:.80}")

  def views(self, key, rollouts: Rollouts, update, drawing: Drawing) -> Views:
    return self._drawn(self.objective.views, key, rollouts, update, drawing)

  def fixed_views(self, key, rollouts: Rollouts, drawing: Drawing) -> Views | None:
    return self._drawn(self.objective.fixed_views, key, rollouts, drawing)

  def _drawn(self, draw: Callable, key, rollouts: Rollouts, *given) -> Views | None:
    try:
      found = draw(key, rollouts, *given)
    except own_code.RAISED as error:  # the user's own
      raise ValueError(f"objective.name: {own_code.described_briefly(error, draw)}") from error
    if found is None and draw == self.objective.fixed_views:
      return None
    if not isinstance(found, Views):
      self._refuse(f"must give gdsd_jax.Views, not {found!r:.80}", draw)
    rows, views = len(rollouts.tokens), *(jnp.shape(found.masks)[1:2] or (0,))
    widths = {"L": rollouts.tokens.shape[1], "P": given[-1].prompt_length}
    for name, dtype, axis in _ARRAYS_OF_VIEWS:
      value, shape = getattr(found, name), (rows, views, widths[axis])
      if value is None and name != "masks":
        continue
      if jnp.shape(value) != shape or getattr(value, "dtype", None) != dtype:
        self._refuse(f"must give {name} that are {dtype}[N, V, {axis}], {list(shape)}, not {_said(value)}", draw)
    return found

  def loss(self, batch: ScoredRollouts):
    try:
      found = self.objective.loss(batch)
    except own_code.RAISED as error:  # the user's own
      raise ValueError(f"objective.name: {own_code.described_briefly(error, self.culprit)}") from error
    loss, metrics = found if isinstance(found, tuple) and len(found) == 2 else (found, {})
    if not isinstance(loss, jax.Array):
      self._refuse(f"must give a loss, or a loss and metrics, not {found!r:.80}")
    if loss.shape != () or not jnp.issubdtype(loss.dtype, jnp.floating):
      self._refuse(f"must give a loss that is one floating-point number, not {_said(loss)}")
    if not isinstance(metrics, Mapping):
      self._refuse(f"must give metrics that are a dict, not {metrics!r:.80}")
    for metric, value in metrics.items():
      if not isinstance(metric, str) or metric in _TAKEN or metric.startswith(ONLY_RUNS):
        self._refuse(f"gives a metric {metric!r}; another name, please: the run's own are {', '.join(_TAKEN)}, and what"
                     f" begins with {' or '.join(ONLY_RUNS)}")
      if not isinstance(value, jax.Array | np.ndarray | np.number | int | float) or jnp.shape(value) != ():
        self._refuse(f"must give metrics that are single numbers, not {metric} = {_said(value)}")
    return loss.astype(jnp.float32), {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

  @property
  def culprit(self) -> Callable:
    """The function of the user's that is the loss."""
    return self.objective.function if isinstance(self.objective, _Loss) else type(self.objective).loss

  def _refuse(self, message: str, culprit: Callable | None = None):
    culprit = culprit or self.culprit
    raise ValueError(f"objective.name: {own_code.at(culprit)}{getattr(culprit, '__qualname__', self.name)} {message}")


# What an objective's class says beside its methods: what that may be.
_SAID_BY_CLASS = {
  "scoring": (lambda value: isinstance(value, Scoring), "a gdsd_jax.Scoring"),
  **dict.fromkeys(("needs_reference", "needs_old", "attends_after_end"),
                  (lambda value: isinstance(value, bool), "True or False")),
  "needs": (lambda value: isinstance(value, frozenset) and value <= _REMEMBERED,
            f"a frozenset of {', '.join(sorted(_REMEMBERED))}"),
  "num_mc": (lambda value: value is None or isinstance(value, int) and value >= 1, "None or an integer of at least 1"),
  "masks": (lambda value: value in (None, "sampler", "uniform"), "None, 'sampler' or 'uniform'"),
  "advantages": (lambda value: value in (None, *ADVANTAGES), f"None or one of {', '.join(ADVANTAGES)}"),
}
for _name in _SAID_BY_CLASS:
  setattr(OwnObjective, _name, property(operator.attrgetter(f"objective.{_name}")))


def _said(value: Any) -> str:
  return f"{value.dtype}{list(value.shape)}" if isinstance(value, jax.Array) else f"{value!r:.80}"


def try_out(objective: Objective, rollouts: int, group_size: int, length: int, drawing: Drawing, kept: int = 1,
            model: DenoiserConfig | None = None) -> None:
  """Traces an objective's views for N rollouts of L tokens, and of an own one the loss and its gradient, too.

  Nothing is compiled. Raises ValueError, one line, with the user's file and line where it is their own; or where the
  model, if it is given, cannot score its views.
  """
  own = isinstance(objective, OwnObjective)
  try:
    in_blocks = model is not None and model.block_length is not None
    known = abstract_rollouts(objective, rollouts, length, group_size, kept, drawing.num_steps, in_blocks)
    batch = abstract_scored(objective, known, drawing)
    if model is not None:
      require_scorable(model, batch.views)
    if own:
      trace_gradient(objective, batch)
  except own_code.RAISED as error:  # the user's own, or JAX's of what has no gradient
    if not own or isinstance(error, ValueError) and str(error).startswith("objective.name: "):
      raise
    raise ValueError(f"objective.name: {own_code.described_briefly(error, objective.culprit)}") from error


def trace_gradient(objective: Objective, batch: ScoredRollouts) -> dict[str, jax.ShapeDtypeStruct]:
  """Traces the loss of rollouts, which may be shapes alone, and its gradient by the student's scores; its metrics."""
  loss_of = lambda student, batch: objective.loss(batch.replace(student=student))
  return jax.eval_shape(jax.grad(loss_of, has_aux=True), batch.student, batch)[1]
