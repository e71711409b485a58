"""The objectives of sequence scores, chosen by name: GDSD, GDSD-TLC and ESPO."""

import dataclasses

from gdsd_jax.checks import require, require_at_least
from gdsd_jax.objectives.espo import espo_loss
from gdsd_jax.objectives.gdsd import gdsd_loss
from gdsd_jax.objectives.objective import Objective, ScoredRollouts
from gdsd_jax.objectives.token_scores import Scoring

OBJECTIVES = ("gdsd", "gdsd_tlc", "espo")
# Trust regions of the official recipes: log-ratios of plain scores move far less than those of centred ones.
_EPSILON = {"gdsd": 4e-4, "gdsd_tlc": 0.2, "espo": 0.2}
_TOP_K = 64


@dataclasses.dataclass(frozen=True)
class SequenceObjective(Objective):
  """A loss of weighted sums of token scores. What is None is at the objective's own default."""

  name: str = "gdsd"  # or "gdsd_tlc", "espo", or one's own, FILE.py:NAME (docs/own.md)
  psi: float | None = None  # guidance strength per token (GDSD); None for 0.04
  epsilon: float | None = None  # trust region; None for 4e-4 (gdsd) or 0.2
  beta: float | None = None  # weight of the KL to the reference; None for 1e-3
  center_top_k: int | None = None  # k of the logit centre (gdsd_tlc; None for 64); V or more is the whole vocabulary
  center_gradient: bool | None = None  # whether the gradient flows through the centre; None for False
  # Whether tokens have the weights of the forward process; False: the official first release; None for True.
  weighted: bool | None = None

  def __post_init__(self):
    require(self.name in OBJECTIVES, "objective.name",
            f"{self.name!r} is not one of {', '.join(OBJECTIVES)}; one of your own is FILE.py:NAME")
    defaults = dict(psi=0.04, epsilon=_EPSILON[self.name], beta=1e-3, center_gradient=False, weighted=True)
    if self.name == "gdsd_tlc":
      defaults["center_top_k"] = _TOP_K
    for field, default in defaults.items():
      if getattr(self, field) is None:
        object.__setattr__(self, field, default)
    if self.name == "gdsd_tlc":
      require_at_least(self, "objective.", center_top_k=1)
    else:
      require(self.center_top_k is None, "objective.center_top_k",
              f"{self.name} has no centre; set objective.name to gdsd_tlc")
    require(0 < self.epsilon < 1, "objective.epsilon", f"must lie between 0 and 1, not {self.epsilon}")
    require(self.psi > 0, "objective.psi", f"must be positive, not {self.psi}")
    require(self.beta >= 0, "objective.beta", f"must not be negative, not {self.beta}")

  @property
  def needs_reference(self) -> bool:
    return self.beta > 0

  @property
  def scoring(self) -> Scoring:
    """The scores that the loss takes. Where the policy's are centred, plain ones are there for the KL alone."""
    return Scoring(self.weighted, self.center_top_k, self.center_gradient, with_plain=self.beta > 0)

  def loss(self, batch: ScoredRollouts):
    """(loss, metrics); see `gdsd_loss` and `espo_loss`."""
    scores, length = (batch.student, batch.old, batch.ref), batch.masks.shape[-1]
    if self.name == "espo":
      return espo_loss(*scores, batch.advantages, length, self.epsilon, self.beta)
    return gdsd_loss(*scores, batch.advantages, length, self.psi, self.epsilon, self.beta)
