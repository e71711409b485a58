"""One objective, chosen by name: how rollouts are scored and what their scores cost."""

import dataclasses

from gdsd_jax.checks import require, require_at_least, require_one_of
from gdsd_jax.objectives.espo import espo_loss
from gdsd_jax.objectives.gdsd import gdsd_loss
from gdsd_jax.objectives.scores import Scores
from gdsd_jax.objectives.token_scores import Scoring

OBJECTIVES = ("gdsd", "gdsd_tlc", "espo")
# Trust regions of the official recipes: log-ratios of plain scores move far less than those of centred ones.
_DEFAULT_EPSILON = {"gdsd": 4e-4, "gdsd_tlc": 0.2, "espo": 0.2}
_DEFAULT_TOP_K = 64


@dataclasses.dataclass(frozen=True)
class Objective:
  """What the student is trained on. Hashable, so it can be a static argument of `jax.jit`."""

  name: str = "gdsd"  # or "gdsd_tlc", "espo"
  psi: float = 0.04  # guidance strength per token (GDSD)
  epsilon: float | None = None  # trust region; None for the objective's own
  beta: float = 1e-3  # weight of the KL to the reference
  center_top_k: int | None = None  # k of the logit centre (gdsd_tlc; None for 64); V or more is the whole vocabulary
  center_gradient: bool = False  # whether the gradient flows through the centre
  weighted: bool = True  # whether tokens have the weights of the forward process; False: the official first release

  def __post_init__(self):
    require_one_of("objective.name", self.name, OBJECTIVES)
    defaults = {"epsilon": _DEFAULT_EPSILON[self.name]}
    if self.name == "gdsd_tlc":
      defaults["center_top_k"] = _DEFAULT_TOP_K
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
  def scoring(self) -> Scoring:
    """The scores that the loss takes. Where the policy's are centred, plain ones are there for the KL alone."""
    return Scoring(self.weighted, self.center_top_k, self.center_gradient, with_plain=self.beta > 0)

  def loss(self, scores: Scores, old: Scores, ref: Scores | None, advantages, completion_length: int):
    """(loss, metrics) for scores of student, old and reference; see `gdsd_loss` and `espo_loss`."""
    if self.name == "espo":
      return espo_loss(scores, old, ref, advantages, completion_length, self.epsilon, self.beta)
    return gdsd_loss(scores, old, ref, advantages, completion_length, self.psi, self.epsilon, self.beta)
