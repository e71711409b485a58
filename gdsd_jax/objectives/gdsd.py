"""Guided Denoiser Self-Distillation: the advantage-guided teacher, and the loss towards it (arXiv 2605.29398)."""

import dataclasses

import jax.numpy as jnp

from gdsd_jax.checks import require, require_at_least
from gdsd_jax.objectives.objective import ScoredRollouts, TrustRegionObjective
from gdsd_jax.objectives.scores import Scores, with_kl
from gdsd_jax.objectives.surrogates import log_ratio_metrics
from gdsd_jax.objectives.token_scores import Scoring
from gdsd_jax.objectives.views import Drawing, Rollouts, Views


def teacher_scores(old, advantages, psi: float):
  """Log-scores of the teacher p*(x0|xt) ∝ p_old(x0|xt) exp(ψ A(x0)), up to its normaliser: old + ψ A.

  Args:
    old: float[B, M], scores of the old denoiser per token (S_old / L), as ψ is.
    advantages: float[B].
    psi: guidance strength per token.

  Returns:
    float[B, M].
  """
  return old + psi * advantages[:, None]


def gdsd_loss(scores: Scores, old: Scores, ref: Scores | None, advantages, completion_length: int,
              psi: float = 0.04, epsilon: float = 4e-4, beta: float = 1e-3):
  """(1/B) Σ_b Σ_m (clip(S_θ − S_old, log(1−ε), log(1+ε)) / L − ψ A_b)² + β Σ_b Σ_m ½ (S_θ − S_ref)² / (B M L).

  The student's score per token, S_θ / L, is drawn to the teacher's, `teacher_scores(S_old / L, A, ψ)`. The old score is
  a part of both and cancels in their distance, so the loss compares log-ratios to the old denoiser: the student's,
  (S_θ − S_old) / L, with the teacher's, `teacher_scores(0, A, ψ)`. On paper that is the same. In floats S_old / L + ψ A
  would have rounded ψ A to the digits of a score that is some hundred times as large.

  Args:
    scores: the student's; the loss uses `centered` where it is there (GDSD-TLC) and `plain` otherwise, the KL `plain`.
    old: scores of the student before the first update on these rollouts, on the same masks.
    ref: scores of the reference denoiser on the same masks; may be None when beta is 0.
    advantages: float[B].
    completion_length: L.
    psi: guidance strength per token.
    epsilon: trust region of the log-ratio; 4e-4 suits plain scores, 0.2 centred ones.
    beta: weight of the KL to the reference.

  Returns:
    (loss, metrics): a scalar, and a dict of scalars. Raises ValueError where beta is not 0 and ref is None.
  """
  log_ratio = scores.policy - old.policy
  low, high = (jnp.log1p(jnp.asarray(bound, log_ratio.dtype)) for bound in (-epsilon, epsilon))
  student = jnp.clip(log_ratio, low, high) / completion_length
  teacher = teacher_scores(0, advantages, psi)
  loss = jnp.sum(jnp.square(student - teacher)) / len(advantages)
  metrics = log_ratio_metrics(log_ratio, (log_ratio <= low) | (log_ratio >= high))
  metrics |= _regression_metrics(teacher, student - teacher, completion_length)
  return with_kl(loss, metrics, scores, ref, completion_length, beta)


def _regression_metrics(target, residual, completion_length: int) -> dict:
  """Target and residual of the regression on the teacher, and the scale of its gradient: B ∂loss/∂S, but for the clip.

  The official code takes the mean of that over rollouts and mask samples, over its spread, as its signal to noise.
  """
  scale = 2 * residual / completion_length
  spread = jnp.std(scale)
  return {
    "target_abs": jnp.mean(jnp.abs(target)),
    "residual_abs": jnp.mean(jnp.abs(residual)),
    "gradient_scale": jnp.mean(jnp.abs(scale)),
    "gradient_scale_std": spread,
    "gradient_snr": jnp.abs(jnp.mean(scale)) / (spread + 1e-12),
  }


@dataclasses.dataclass(frozen=True)
class Gdsd(TrustRegionObjective):
  """GDSD on plain scores, see `gdsd_loss`."""

  name, by_view = "gdsd", True
  psi: float = 0.04  # guidance strength per token
  epsilon: float = 4e-4  # trust region of the log-ratio, as the official recipes have it
  beta: float = 1e-3  # weight of the KL to the reference
  weighted: bool = True  # whether tokens have the weights of the forward process; False: the official first release
  coupled: bool = True  # whether each mask is scored together with its complement; if not, alone, by half of the passes

  def __post_init__(self):
    super().__post_init__()
    require(self.psi > 0, "objective.psi", f"must be positive, not {self.psi}")

  def views(self, key, rollouts: Rollouts, update, drawing: Drawing) -> Views:
    return Views(drawing.consistent_masks(key, rollouts), coupled=self.coupled)

  def loss(self, batch: ScoredRollouts):
    student, old, ref = batch.pair_scores(self.weighted)
    length = batch.masks.shape[-1]
    return gdsd_loss(student, old, ref, batch.advantages, length, self.psi, self.epsilon, self.beta)


@dataclasses.dataclass(frozen=True)
class GdsdTlc(Gdsd):
  """GDSD on scores whose logits are centred token by token (TLC); the KL is on plain ones."""

  name, reference_scoring = "gdsd_tlc", Scoring()  # of the reference there is the KL alone
  epsilon: float = 0.2  # centred scores move far more than plain ones
  center_top_k: int = 64  # k of the logit centre; the vocabulary's size or more is all of it, the paper's Eq. 8
  center_gradient: bool = False  # whether the gradient flows through the centre

  def __post_init__(self):
    super().__post_init__()
    require_at_least(self, "objective.", center_top_k=1)

  @property
  def scoring(self) -> Scoring:
    return Scoring(self.center_top_k, self.center_gradient, with_plain=self.beta > 0)
