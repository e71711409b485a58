"""What an objective is: the views in which it scores rollouts, and a loss of the token scores in them."""

import dataclasses

from flax import struct
import jax

from gdsd_jax.checks import require
from gdsd_jax.objectives.scores import pair_scores, Scores, token_weights
from gdsd_jax.objectives.token_scores import Scoring
from gdsd_jax.objectives.views import Drawing, Rollouts, Views


@struct.dataclass(kw_only=True)
class ScoredRollouts(Rollouts):
  """N rollouts and the scores of their tokens in V views, float32[N, V, L]: what a loss is a function of."""

  views: Views
  student: Scores  # under the student as it is now, by which a loss has its gradient; None until they are made
  old: Scores | None  # under the student before the first of the updates on these rollouts; None unless `needs_old`
  ref: Scores | None  # under the reference; None unless `needs_reference`
  fixed: "ScoredViews | None" = None  # of the objective's `fixed_views`; None if it has none

  @classmethod
  def of(cls, rollouts: Rollouts, **scored) -> "ScoredRollouts":
    """The rollouts with these of the fields above."""
    return cls(**{name: getattr(rollouts, name) for name in rollouts.__dataclass_fields__}, **scored)

  @property
  def masks(self) -> jax.Array:
    """bool[N, V, L], see `Views`."""
    return self.views.masks

  @property
  def weights(self) -> jax.Array:
    """float32[N, V, L], the weights of tokens in coupled pairs by the forward process, see `token_weights`."""
    return token_weights(self.masks, self.blocks)

  def pair_scores(self, weighted: bool = True) -> tuple[Scores, Scores, Scores | None]:
    """(student, old, ref), scores float32[N, M] of the views, see `scores.pair_scores`."""
    return tuple(pair_scores(scores, self.masks, weighted, self.views.coupled, self.blocks)
                 for scores in (self.student, self.old, self.ref))


@struct.dataclass
class ScoredViews:
  """Views that all updates on the same rollouts share, and the scores in them before the first of these."""

  views: Views
  old: Scores
  ref: Scores | None


class Objective:
  """What the student is trained on; subclass it as a frozen dataclass, whose fields are `--config.objective.FIELD`.

  It is traced by `jax.jit`, and a static argument of it, so that it must be hashable. The gradient by the parameters is
  made one view at a time from the loss's gradient by the student's scores (`runs/gradient.py`).
  """

  needs_old = True  # whether there are scores of the student before the first update on the rollouts
  needs_reference = False  # whether there are scores of the reference; it costs a copy of what is trained
  # Whether it takes its views one by one: the loss's gradient by the student's scores of a rollout in a view depends on
  # no other scores than the student's, the old and the reference's ones, and the sampler's log-probabilities, of that
  # rollout in that view. An objective of the user's own never says so: one that inherits it, with another loss, would
  # have a wrong gradient.
  by_view = False
  needs: frozenset[str] = frozenset()  # what rollouts must remember: "steps", "logp", "entropy", "predictions"
  attends_after_end = True  # whether tokens after the first end of text are attended to, as the samplers do
  scoring = Scoring()  # how tokens are scored; with `center_top_k` there are centred scores besides
  num_mc: int | None = 2  # mask samples where the config says none; None: it has a number of views of its own
  masks = "sampler"  # masks.kind where the config says none; None: its views are its own, whatever the sampler's masks
  # objective.advantages where the config says none, see `advantages.py`; None: it makes what it needs of the rewards
  advantages: str | None = "leave_one_out"

  @property
  def reference_scoring(self) -> Scoring:
    """How the reference is scored where the student is by the step itself: the same, unless the loss takes less."""
    return self.scoring

  def scored_in_step(self, updates: int, rounds_finely: bool) -> bool:
    """Whether `updates` on the same rollouts need no scores of the student but those of the step itself.

    The reference's are of another pass. Unless products are in full float32, it would round differently: the KL then
    takes both from one and the same.
    """
    return updates == 1 and self.by_view and (rounds_finely or not self.needs_reference)

  def views(self, key, rollouts: Rollouts, update, drawing: Drawing) -> Views:
    """The views of one of the updates on N rollouts, whose number is `update`, an int32 scalar; 0 is the first.

    By default coupled pairs of the run's consistent forward process.
    """
    return Views(drawing.consistent_masks(key, rollouts), coupled=True)

  def fixed_views(self, key, rollouts: Rollouts, drawing: Drawing) -> Views | None:
    """Views that are scored once, under the student before the first update and the reference; None for none."""
    return None

  def loss(self, batch: ScoredRollouts):
    """The loss, a float32 scalar, or (loss, metrics) with scalars by name.

    A step's row has their means over its updates, and of names that begin with largest_ the largest.
    """
    raise NotImplementedError(f"{type(self).__name__} must have `loss`")


@dataclasses.dataclass(frozen=True)
class TrustRegionObjective(Objective):
  """An objective with a trust region, and a KL to the reference, which it needs unless its weight is 0."""

  epsilon: float = 0.2  # half-width of the trust region, such as the clip range of a ratio
  beta: float = 0.0  # weight of the KL

  def __post_init__(self):
    require(0 < self.epsilon < 1, "objective.epsilon", f"must lie between 0 and 1, not {self.epsilon}")
    require(self.beta >= 0, "objective.beta", f"must not be negative, not {self.beta}")

  @property
  def needs_reference(self) -> bool:
    return self.beta > 0
