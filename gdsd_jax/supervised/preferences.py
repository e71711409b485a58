"""Fine-tuning on preferences by VRPO (LLaDA 1.5, arXiv 2505.19223), on the step that RL has, too."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gdsd_jax.objectives.objective import ScoredRollouts
from gdsd_jax.objectives.views import Drawing, Rollouts, Views
from gdsd_jax.objectives.vrpo import Vrpo
from gdsd_jax.parallel.mesh import batch_sharding
from gdsd_jax.runs.gradient import DistillationBatch, ScoringBatch
from gdsd_jax.runs.metrics import Stopwatch
from gdsd_jax.runs.step import distillation_step, score_rollouts
from gdsd_jax.supervised.finetuning import filled_up, Finetuning
from gdsd_jax.supervised.preference_rows import Preference, read_preferences
from gdsd_jax.supervised.rows import row_of


class _Drawn(NamedTuple):
  """The 2 B replies of B preferences, each chosen one before its rejected one, and the views that they are scored in.

  For the objective they are the rollouts of a group, of which the chosen one has the larger reward.
  """

  rollouts: Rollouts
  views: Views
  scoring: ScoringBatch


class PreferenceFinetuning(Finetuning):
  """A fine-tuning run on preferences."""

  examples, with_reference, shown = "preferences", True, "preference_accuracy"

  def __init__(self, config, *arguments):
    super().__init__(config, *arguments)
    draw = functools.partial(_draw, objective=config.objective, num_mc=config.views.num_mc)
    self._draw = jax.jit(draw, static_argnames="prompt_length", out_shardings=batch_sharding(self.mesh))

  def read(self, tokenizer):
    return read_preferences(self.config.data, tokenizer)

  def step(self, number: int, watch: Stopwatch) -> dict[str, Any]:
    config, accumulation = self.config, self.config.optimizer.accumulation
    next_key, key = jax.random.split(self.state.key)
    self.state = self.state.replace(step=self.state.step + 1, key=next_key)
    with watch.phase("score"):
      scoring, scored = self._scored(self.stream.take(config.batch_size), key, accumulation)
      jax.block_until_ready(scored)
    with watch.phase("update"):
      with self.telling("the step", scoring.tokens):
        self.state, metrics = distillation_step(
          self.state, DistillationBatch(scoring, scored), denoiser=self.denoiser, objective=config.objective,
          optimizer=self.optimizer, accumulation=accumulation)
      del metrics["skipped"]  # what is not finite ends the run
      return row_of(number, metrics, config.optimizer, config.steps, self.state)

  def validate(self, preferences, size: int, key):
    _, scored = self._scored(filled_up(preferences, size), key)
    return _sums(scored, np.int32(len(preferences)), objective=self.config.objective), len(preferences)

  def _scored(self, preferences: list[Preference], key,
              accumulation: int = 1) -> tuple[ScoringBatch, ScoredRollouts]:
    """Scores of preferences under the student and the reference, both by one function in the same views."""
    chats = [chat for preference in preferences for chat in preference.chats]
    tokens, _, attended, width = self.joined(chats)
    lengths = np.array([chat.length for chat in chats], np.int32)
    drawn = self._draw(key, *self.spread(tokens, attended, lengths), prompt_length=width)
    score = functools.partial(
      score_rollouts, denoiser=self.denoiser, objective=self.config.objective, accumulation=accumulation)
    with self.telling("the scores", drawn.scoring.tokens):
      student = score(self.state.student_params, drawn.scoring)
    ref = score(self.state.reference_params, drawn.scoring)
    return drawn.scoring, ScoredRollouts.of(drawn.rollouts, views=drawn.views, student=student, old=None, ref=ref)


def _draw(key, tokens, attended, lengths, *, objective: Vrpo, num_mc: int, prompt_length: int) -> _Drawn:
  """Views of replies, int32[2 B, P+L] with their prompts, whose own tokens are the first `lengths` of L."""
  replies = tokens[:, prompt_length:]
  nothing = jnp.zeros(replies.shape, jnp.float32)
  rewards = (jnp.arange(len(replies)) % 2 == 0).astype(jnp.float32)
  rollouts = Rollouts(
    tokens=replies, lengths=lengths, rewards=rewards, advantages=nothing[:, 0], confidence=nothing, group_size=2)
  drawing = Drawing(num_mc, 1, prompt_length, None, replies.shape[1], lambda key, rollouts: None)
  views = objective.views(key, rollouts, 0, drawing)
  counted = jnp.ones(replies.shape, bool) if objective.attends_after_end else rollouts.counted
  attended = attended & jnp.concatenate([attended[:, :prompt_length], counted], axis=1)
  return _Drawn(rollouts, views, ScoringBatch(tokens, attended, views.inputs))


@functools.partial(jax.jit, static_argnames="objective")
def _sums(scored: ScoredRollouts, count, *, objective: Vrpo) -> dict[str, jax.Array]:
  """Sums over the first `count` preferences."""
  margins = objective.margins(scored)
  first = jnp.arange(len(margins)) < count
  told = {"loss": objective.losses(margins), "margin": margins, "preference_accuracy": margins > 0}
  return {name: jnp.sum(jnp.where(first, values, 0)) for name, values in told.items()}
