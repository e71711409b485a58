"""Log-likelihoods of answers: the estimates by which LLaDA and Dream are published on multiple-choice tasks.

A masked diffusion model bounds log p(answer | context) from below by the mean, over partly masked states of the answer,
of the weighted log-probabilities of its masked tokens. The mean is estimated from a few states.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import itertools
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from gdsd_jax.checks import require, require_at_least, require_one_of
from gdsd_jax.diffusion.prediction import predict
from gdsd_jax.huggingface.tokenizer import left_padded
from gdsd_jax.models.denoiser import Denoiser
from gdsd_jax.objectives.token_scores import token_scores
from gdsd_jax.parallel.mesh import constrain
from gdsd_jax.parallel.rows import local_rows, spread

ESTIMATES = ("llada", "dream", "dream_ar")
_WIDTHS = tuple(2**power for power in range(5, 20))  # tokens that a sequence is padded to: few shapes are compiled
_ANSWER_WIDTHS = tuple(4**power for power in range(2, 10))  # tokens of it that go through the LM head

Pair = tuple[list[int], list[int]]  # token ids of a context, which may be empty, and of what follows it


@dataclasses.dataclass(frozen=True)
class LikelihoodConfig:
  """How log p(answer | context) is estimated, for answers of L tokens.

  - "llada" (`get_log_likelihood` and `_forward_process` of LLaDA's evaluation, arXiv 2502.09992, appendix B): n tokens
    are masked, uniform over those sets, n uniform over 1…L; each counts L / n. The n of the `mc_num` states are spread
    evenly from a random start.
  - "dream" (`_eval_target_nll_mc` of Dream's evaluation, arXiv 2508.15487): each token is masked with probability
    p = (1 − ε) t + ε and counts 1 / p. The times t are spread evenly over [0, 1) from a random start. An end of
    text follows the answer, never masked; nor is the first token of a text without a context.
  - "dream_ar" (its `nll_type=ar_ftb`): the exact log-probability of writing the answer and its end of text from left to
    right, everything behind being masked.
  """

  kind: str = "llada"  # one of ESTIMATES
  # States of each answer. 128 is published; 1 does for answers of a single token, whose estimate has no noise.
  mc_num: int = 128
  cfg: float = 0.0  # llada's guidance: above 0, a second pass with the context masked; published are 0, 0.5 and 2
  sampling_eps: float = 1e-3  # ε, dream's least probability of a mask

  def __post_init__(self):
    require_one_of("likelihood", self.kind, ESTIMATES)
    require_at_least(self, "", mc_num=1, cfg=0)
    require(0 < self.sampling_eps < 1, "sampling_eps", f"must lie between 0 and 1, not {self.sampling_eps}")
    require(self.kind == "llada" or not self.cfg, "cfg", f"only likelihood=llada has it, not {self.kind}")


class Likelihood:
  """Log-likelihoods under one denoiser over one mesh, `batch_size` states at a time.

  A pair's estimate depends on the seed and the pair alone, not on what else is asked for. Pairs of one context and
  length share their states, so that the noise of two answers is alike and cancels where they are compared.
  """

  def __init__(self, denoiser: Denoiser, params, mesh, batch_size: int, config: LikelihoodConfig, seed: int):
    self.denoiser, self.params, self.mesh = denoiser, params, mesh
    self.batch_size, self.config, self.seed = batch_size, config, seed

  def estimate(self, pairs: Sequence[Pair], tell: Callable[[int], None] = lambda states: None) -> list[float]:
    """The log-likelihood of each answer, in nats; 0 of an empty one. `tell` is called with the states of each batch."""
    sums, ended = [0.0] * len(pairs), pairs
    if self.config.kind != "llada":
      ended = [(context, answer and [*answer, self.denoiser.config.eos_token_id]) for context, answer in pairs]
    for width, answer_width, indices in _groups(ended, self.denoiser.config.max_positions):
      states = ((i, *state) for i in indices for state in self._states(*ended[i]))
      for batch in _batched(states, self.batch_size):
        owners, *masks = zip(*batch)
        laid_out = self._laid_out([ended[i] for i in owners], width)
        masks = (self._spread(_right_aligned(rows, answer_width, self.batch_size)) for rows in masks)
        scores = _scores(self.denoiser, self.params, *laid_out, *masks, self.config.cfg)
        for i, score in zip(owners, np.asarray(scores)):
          sums[i] += float(score)
        tell(len(batch))
    return sums

  def greedy(self, pairs: Sequence[Pair]) -> list[bool]:
    """Whether each answer is what the model writes by its surest token in each step; True of an empty one."""
    found = [True] * len(pairs)
    for width, answer_width, indices in _groups(pairs, self.denoiser.config.max_positions):
      for batch in _batched(iter(indices), self.batch_size):
        laid_out = self._laid_out([pairs[i] for i in batch], width)
        is_greedy = np.asarray(_is_greedy(self.denoiser, self.params, *laid_out, answer_width, self.config.cfg))
        for i, value in zip(batch, is_greedy):
          found[i] = bool(value)
    return found

  def states(self, pairs: Sequence[Pair]) -> int:
    """How many states are computed for the pairs."""
    each = lambda answer: len(answer) + 1 if self.config.kind == "dream_ar" else self.config.mc_num
    return sum(each(answer) for _, answer in pairs if answer)

  def _states(self, context, answer) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(masked tokens, bool[L], and what the log-probability of each counts, float[L]) of each state of an answer."""
    config, length = self.config, len(answer)
    if config.kind == "dream_ar":
      return zip(np.triu(np.ones((length, length), bool)), np.eye(length))
    draws = np.random.default_rng((self.seed, zlib.crc32(np.array(context, np.int64).tobytes())))
    steps = np.arange(config.mc_num)
    if config.kind == "llada":
      counts = (draws.integers(length) + steps * length // config.mc_num) % length + 1
      masked = draws.permuted(np.tile(np.arange(length), (config.mc_num, 1)), axis=1) < counts[:, None]
      weights = length / counts[:, None]
    else:
      times = (draws.random() + steps / config.mc_num) % 1
      chance = ((1 - config.sampling_eps) * times + config.sampling_eps)[:, None]
      masked, weights = draws.random((config.mc_num, length)) < chance, 1 / chance
      masked[:, -1] = False
      masked[:, 0] &= bool(context)
    return zip(masked, masked * weights / config.mc_num)

  def _laid_out(self, pairs: list[Pair], width: int):
    """Tokens int32[B, W] that end where the answers do, the answers' lengths int32[B], and bool[B, W], the tokens."""
    filled = list(itertools.islice(itertools.cycle(pairs), self.batch_size))
    texts = [context + answer for context, answer in filled]
    tokens, real = left_padded(texts, width, self.denoiser.config.pad_token_id)
    lengths = np.array([len(answer) for _, answer in filled], np.int32)
    return self._spread(tokens), self._spread(lengths), self._spread(real)

  def _spread(self, rows: np.ndarray) -> jax.Array:
    return spread(self.mesh, len(rows), rows[local_rows(self.mesh, len(rows))])


def _right_aligned(rows: Sequence[np.ndarray], width: int, count: int) -> np.ndarray:
  """Rows of different lengths as [count, width], each at the right end of its own, with zeros everywhere else."""
  aligned = np.zeros((count, width), np.float32 if rows[0].dtype == float else rows[0].dtype)
  for line, row in zip(aligned, rows):
    line[width - len(row):] = row
  return aligned


def _groups(pairs: Sequence[Pair], max_positions: int) -> list[tuple[int, int, list[int]]]:
  """(width of the sequence, width of its answer, indices of the pairs) of each shape; empty answers are in none."""
  found = {}
  for index, (context, answer) in enumerate(pairs):
    if answer:
      width = next(width for width in _WIDTHS if width >= len(context) + len(answer))
      answer_width = next(width for width in _ANSWER_WIDTHS if width >= len(answer))
      width = min(width, max_positions)
      found.setdefault((width, min(answer_width, width)), []).append(index)
  return [(*shape, indices) for shape, indices in sorted(found.items())]


def _batched(items: Iterator, size: int) -> Iterator[list]:
  while batch := list(itertools.islice(items, size)):
    yield batch


def _hidden(denoiser: Denoiser, params, tokens, lengths, real, masked, cfg: float):
  """(hidden states [B, A, D] of the last A positions, those without the context or None), the `masked` being masked."""
  width, mask_id = masked.shape[1], denoiser.config.mask_token_id
  noised = tokens.at[:, -width:].set(jnp.where(masked, mask_id, tokens[:, -width:]))
  run = lambda noised: denoiser.hidden(params, noised, real)[:, -width:]
  if not cfg:
    return run(noised), None
  of_context = jnp.arange(tokens.shape[1]) < tokens.shape[1] - lengths[:, None]
  return run(noised), run(jnp.where(of_context, mask_id, noised))


@functools.partial(jax.jit, static_argnames=("denoiser", "cfg"))
def _scores(denoiser: Denoiser, params, tokens, lengths, real, masked, weights, cfg: float):
  """float32[B]: the sums of weights [B, A] times the log-probabilities of the tokens at the last A positions."""
  hidden, without = _hidden(denoiser, params, tokens, lengths, real, masked, cfg)
  if without is not None:  # logits are linear in the hidden states, and so is guidance
    hidden, without = hidden.astype(jnp.float32), without.astype(jnp.float32)
    hidden = without + (cfg + 1) * (hidden - without)
  plain = token_scores(denoiser.head(params), hidden, tokens[:, -masked.shape[1]:]).plain
  return constrain(jnp.sum(jnp.where(weights > 0, weights * plain, 0), axis=1), denoiser.mesh, None)


@functools.partial(jax.jit, static_argnames=("denoiser", "width", "cfg"))
def _is_greedy(denoiser: Denoiser, params, tokens, lengths, real, width: int, cfg: float):
  """bool[B]; a row is done with its first wrong token."""
  answer = tokens[:, -width:]

  def step(state):
    masked, right = state
    hidden, without = _hidden(denoiser, params, tokens, lengths, real, masked, cfg)
    found, sure = predict(denoiser.head(params), hidden, None, denoiser.config.mask_token_id, 0.0, without, cfg)
    surest = jnp.argmax(jnp.where(masked, sure, -1), axis=1)[:, None]
    commits = masked & (jnp.arange(width) == surest)
    return masked & ~commits, right & ~jnp.any(commits & (found != answer), axis=1)

  undecided = lambda state: jnp.any(state[0] & state[1][:, None])
  start = jnp.arange(width) >= width - lengths[:, None], jnp.ones(len(tokens), bool)
  _, right = jax.lax.while_loop(undecided, step, start)
  return constrain(right, denoiser.mesh, None)
