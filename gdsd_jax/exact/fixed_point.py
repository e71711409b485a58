"""What GDSD's losses converge to, against the closed-form teacher, for one token that is always masked.

Every token of the vocabulary is a rollout once, so all completions weigh alike. The student is its table of logits, in
float64, and its loss is minimised by L-BFGS.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gdsd_jax.models.lm_head import LMHead
from gdsd_jax.objectives.gdsd import gdsd_loss
from gdsd_jax.objectives.scores import Scores
from gdsd_jax.objectives.token_scores import Scoring, token_scores

VOCABULARY = 7


def problem():
  """(logits of the old denoiser, advantages), float64[V] both; the advantages average 0 under it."""
  rng = np.random.default_rng(0)
  logits = jnp.asarray(rng.normal(size=VOCABULARY))
  advantages = jnp.asarray(rng.normal(size=VOCABULARY))
  return logits, advantages - jnp.sum(jax.nn.softmax(logits) * advantages)


def teacher(old_logits, advantages, psi: float):
  """p_old exp(ψ A) / Z, float64[V]."""
  return jax.nn.softmax(jax.nn.log_softmax(old_logits) + psi * advantages)


@functools.partial(jax.jit, static_argnames=("center_top_k",))
def minimise(old_logits, advantages, psi, center_top_k: int | None):
  """(minimiser of the GDSD loss, norm of the gradient there). The trust region is too wide to be active.

  With `center_top_k` it is the loss of GDSD-TLC. Needs 64-bit floats (`jax.enable_x64`).
  """
  old = _scores_of(old_logits, center_top_k)

  def loss_fn(logits):
    loss, _ = gdsd_loss(
      _scores_of(logits, center_top_k), old, None, advantages, completion_length=1, psi=psi, epsilon=0.999, beta=0.0
    )
    return loss / psi**2  # conditions the search; the minimiser is the same

  solver = optax.lbfgs()

  def update(_, found):
    logits, state = found
    value, gradient = optax.value_and_grad_from_state(loss_fn)(logits, state=state)
    updates, state = solver.update(gradient, state, logits, value=value, grad=gradient, value_fn=loss_fn)
    return optax.apply_updates(logits, updates), state

  logits, _ = jax.lax.fori_loop(0, 60, update, (old_logits, solver.init(old_logits)))
  return jax.nn.softmax(logits), jnp.linalg.norm(jax.grad(loss_fn)(logits))


def distance_to_teacher(psi: float, center_top_k: int | None = VOCABULARY) -> float:
  """Largest difference of a probability between the minimiser, by default GDSD-TLC's, and the teacher."""
  with jax.enable_x64(True):
    logits, advantages = problem()
    student, _ = minimise(logits, advantages, psi, center_top_k)
    return float(jnp.max(jnp.abs(student - teacher(logits, advantages, psi))))


def _scores_of(logits, center_top_k: int | None) -> Scores:
  every_token = jnp.broadcast_to(logits, (VOCABULARY, VOCABULARY))
  head = LMHead(jnp.eye(VOCABULARY))  # hidden states are the logits
  scoring = Scoring(center_top_k=center_top_k, center_gradient=True)
  plain, centered, *_ = token_scores(head, every_token, jnp.arange(VOCABULARY), scoring)
  return Scores(plain[:, None], None if centered is None else centered[:, None])
