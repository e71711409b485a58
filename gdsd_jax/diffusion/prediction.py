"""LLaDA's prediction: a token for each position and its probability, a chunk of the vocabulary at a time."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gdsd_jax.diffusion import random_keys
from gdsd_jax.diffusion.noise import Exact, Given, Greedy, Official
from gdsd_jax.models import lm_head
from gdsd_jax.models.lm_head import LMHead, multiply, over_vocabulary, Share

_MOST_SHARES = 8  # The vocabulary may be split over so many chips without a change of the sample.


class _Best(NamedTuple):
  """The best tile so far of each of R rows."""

  score: jax.Array  # float32[R], by which tiles are compared
  first: jax.Array  # int32[R], the tile's first token
  logits: jax.Array  # float32[R, tile]


def predict(
  head: LMHead, hidden, key, mask_id: int, temperature: float, unconditional=None, cfg_scale: float = 0.0,
  noise: str = "exact", penalized: tuple[int, ...] = (), penalty: float = 0.0, given=None, with_logp: bool = False,
):
  """A token for each position, never the mask token, and its probability under the full softmax.

  At a temperature T above 0, tokens are drawn by Gumbel-max over tiles of the vocabulary, and then over the tokens of
  the tile that won.

  Args:
    head, hidden: the LM head, and [B, K, D] hidden states, aligned.
    key, temperature: random key, or one for each position, [B, K], and T at which tokens are drawn with it; 0 draws
      none. The probability is without T.
    mask_id: the mask token.
    unconditional: [B, K, D] hidden states without the prompt, for classifier-free guidance; None for none.
    cfg_scale: c of the guided logits u + (c + 1) (z − u).
    noise: "exact" for the softmax at T, or "official", see noise.py.
    penalized, penalty: tokens, and what is subtracted from their logits, after guidance: for draw and probability.
    given: int32[B, K] tokens in place of drawn ones, for their probability; None draws.
    with_logp: whether it tells the log-probability, too, with which each token was drawn: at T, without the mask token,
      by the softmax also where the noise falls short of it. T must be above 0.

  Returns:
    (tokens, probability): int32[B, K] and float32[B, K]; with a third, float32[B, K], if it tells that.
  """
  tile = _tile_size(head)
  drawn = Greedy() if given is None else Given(given)
  if temperature > 0 and given is None:  # Drawn before the vocabulary is split, so that it is the same on every mesh.
    kind = {"exact": Exact, "official": Official}[noise]
    draw = lambda key, shape: kind.drawn(key, shape, head.vocab_size // tile, tile)
    drawn = random_keys.drawn(draw, key, hidden.shape[:2])

  def compute(share: Share, rows):
    hidden, unconditional, drawn = rows
    count = hidden.shape[0] * hidden.shape[1]
    flat = hidden.reshape(count, -1)
    if unconditional is not None:
      flat = jnp.concatenate([flat, unconditional.reshape(count, -1)])
    drawn = jax.tree.map(lambda x: x.reshape(count, -1), drawn)

    def step(carry, weight, start):
      best, top, total, mass = carry
      logits = multiply(flat, weight)
      if unconditional is not None:
        logits, without = logits[:count], logits[count:]
        logits = without + (cfg_scale + 1) * (logits - without)
      columns = share.first + start + jnp.arange(logits.shape[1])
      logits = penalize(logits, columns, penalized, penalty)
      highest = jnp.maximum(top, jnp.max(logits, axis=1))
      total = total * jnp.exp(top - highest) + jnp.sum(jnp.exp(logits - highest[:, None]), axis=1)
      tiles = jnp.where(columns == mask_id, -jnp.inf, logits).reshape(count, -1, tile)
      scores = drawn.of_tiles(tiles, (share.first + start) // tile, temperature)
      if with_logp:  # summed by tiles, which the exact noise asks for anyway
        mass = jnp.logaddexp(mass, jax.nn.logsumexp(jax.nn.logsumexp(tiles / temperature, axis=2), axis=1))
      return _better(best, scores, tiles, share.first + start), highest, total, mass

    zeros, least = jnp.zeros(count, jnp.float32), jnp.full(count, jnp.finfo(jnp.float32).min, jnp.float32)
    lowest = lambda *shape: jnp.full(shape, -jnp.inf, jnp.float32)
    none = _Best(lowest(count), jnp.zeros(count, jnp.int32), lowest(count, tile))
    nothing = lowest(count) if with_logp else None
    best, top, total, mass = share.fold(flat.dtype, step, (none, least, zeros, nothing))
    best = _best_of_shares(share, best)
    highest = share.max(top)
    normalizer = highest + jnp.log(share.sum(total * jnp.exp(top - highest)))
    place = jnp.argmax(drawn.of_tokens(best.logits, best.first // tile, temperature), axis=1)
    chosen = jnp.take_along_axis(best.logits, place[:, None], axis=1)[:, 0]
    found = [(best.first + place).astype(jnp.int32), jnp.exp(chosen - normalizer)]
    if with_logp:
      most = share.max(mass)
      found.append(chosen / temperature - most - jnp.log(share.sum(jnp.exp(mass - most))))
    return tuple(x.reshape(hidden.shape[:2]) for x in found)

  return over_vocabulary(compute, head, (hidden, unconditional, drawn))


def penalize(logits, columns, tokens: tuple[int, ...], penalty: float):
  """Logits [..., C] of the tokens `columns`, int[C], less the penalty for some of them; without one, as they are."""
  if not penalty:
    return logits
  return logits - penalty * jnp.isin(columns, jnp.array(tokens))


def _tile_size(head: LMHead) -> int:
  """Tokens of a tile: a power of two, at most 64, such that tiles end where shares of the vocabulary and chunks do."""
  shares = 1 if head.mesh is None else head.mesh.shape["tensor"]
  most = max(math.gcd(head.vocab_size, 64 * _MOST_SHARES) // _MOST_SHARES, 1)
  return math.gcd(most, head.vocab_size // shares, lm_head.CHUNK)


def _better(best: _Best, scores, tiles, first) -> _Best:
  """The best of `best` and n more tiles [R, n, tile] with scores [R, n]; of equal ones, the earlier."""
  place = jnp.argmax(scores, axis=1)
  score = jnp.take_along_axis(scores, place[:, None], axis=1)[:, 0]
  logits = jnp.take_along_axis(tiles, place[:, None, None], axis=1)[:, 0]
  found = _Best(score, (first + place * tiles.shape[2]).astype(jnp.int32), logits)
  wins = ~(score <= best.score)  # So does what is no number: the mask token never does.
  return jax.tree.map(lambda new, old: jnp.where(wins.reshape(-1, *[1] * (new.ndim - 1)), new, old), found, best)


def _best_of_shares(share: Share, best: _Best) -> _Best:
  """The best of all shares' tiles; of equal ones, the earlier."""
  if share.mesh is None:
    return best
  of_shares = jax.tree.map(lambda x: jax.lax.all_gather(x, "tensor"), best)  # Each is [shares, R, …].
  winner = jnp.argmax(of_shares.score, axis=0)
  pick = lambda x: jnp.take_along_axis(x, winner.reshape(1, -1, *[1] * (x.ndim - 2)), axis=0)[0]
  return jax.tree.map(pick, of_shares)
