"""How a token is drawn from tiles of logits: the largest, or Gumbel-max with exact noise or that of the published runs.

Each kind scores whole tiles, and then the tokens of the tile that won. R rows, n tiles of C tokens, V tokens in all.
The noise is a tree of arrays [B, K, …] at first, and [R, …] where tiles are scored.

The published runs draw u by `torch.rand` in bfloat16, and take the token of the largest exp(z) / (−log u)^T. A number
below one has eight significant bits and is at most 255/256, so that the Gumbel noise −log(−log u) never exceeds 5.54.
What rounds to one becomes zero, for one token in 512, which is then out of the draw. So a token is never drawn whose
logit lies 5.54 T below that of the best one with its noise, however many such tokens there are. With 0.6 on the top
token and the rest even on N others, the top one is left in

  |                                N |   10 |  100 |  180 |  500 | 1000 | 126463 |
  | percent of draws, exact noise    |   40 |   40 |   40 |   40 |   40 |     40 |
  | percent of draws, official noise |   39 |   29 |   21 |  4.8 |  0.5 |    0.2 |

At the same temperature the published sampler is therefore sharper than an exact one, the more so the longer the tail.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_NEVER = -1e30  # The logarithm of zero, but two of them compare.


class Greedy(NamedTuple):
  """No noise."""

  def of_tiles(self, tiles, first, temperature: float):
    """Scores float32[R, n] of logits [R, n, C], whose first tile is number `first`."""
    return jnp.max(tiles, axis=2)

  def of_tokens(self, logits, tile, temperature: float):
    """Scores float32[R, C] of the logits [R, C] of tiles number `tile`, int[R]."""
    return logits


class Given(NamedTuple):
  """No draw: the tokens are given, and no other scores above zero."""

  tokens: jax.Array  # int32[R, 1]

  def of_tiles(self, tiles, first, temperature: float):
    return (first + jnp.arange(tiles.shape[1]) == self.tokens // tiles.shape[2]).astype(jnp.float32)

  def of_tokens(self, logits, tile, temperature: float):
    return (jnp.arange(logits.shape[1]) == self.tokens % logits.shape[1]).astype(jnp.float32)


class Exact(NamedTuple):
  """Gumbel noise, of V / C + C random numbers.

  The largest of a tile's perturbed logits z / T is itself the tile's logsumexp(z / T) with Gumbel noise, and which
  token it belongs to does not depend on it.
  """

  tiles: jax.Array  # float32[R, V / C]
  tokens: jax.Array  # float32[R, C], of the tile that wins

  @classmethod
  def drawn(cls, key, shape: tuple[int, ...], num_tiles: int, tile_size: int) -> "Exact":
    draw = lambda key, size: jax.random.gumbel(key, (*shape, size), jnp.float32)
    return cls(*map(draw, jax.random.split(key), (num_tiles, tile_size)))

  def of_tiles(self, tiles, first, temperature: float):
    noise = jax.lax.dynamic_slice_in_dim(self.tiles, first, tiles.shape[1], axis=1)
    return jax.nn.logsumexp(tiles / temperature, axis=2) + noise

  def of_tokens(self, logits, tile, temperature: float):
    return logits / temperature + self.tokens


class Official(NamedTuple):
  """Gumbel noise with the distribution of the published runs, a number for every token of the vocabulary.

  It is made anew for each tile, from the row's seed and the tile's number: it is never in memory as a whole, and the
  same on every mesh.
  """

  seeds: jax.Array  # uint32[R, 2]

  @classmethod
  def drawn(cls, key, shape: tuple[int, ...], num_tiles: int, tile_size: int) -> "Official":
    return cls(jax.random.bits(key, (*shape, 2), jnp.uint32))

  def of_tiles(self, tiles, first, temperature: float):
    numbers = jnp.broadcast_to(first + jnp.arange(tiles.shape[1]), tiles.shape[:2])
    return jnp.max(tiles / temperature + self._noise(numbers, tiles.shape[2]), axis=2)

  def of_tokens(self, logits, tile, temperature: float):
    return logits / temperature + self._noise(tile[:, None], logits.shape[1])[:, 0]

  def _noise(self, numbers, size: int):
    """float32[R, n, size] for tiles number int[R, n]."""

    def of_a_tile(seed, number):
      key = jax.random.fold_in(jax.random.wrap_key_data(seed, impl="threefry2x32"), number)
      words = jax.random.bits(key, ((size + 1) // 2,), jnp.uint32)
      return official_gumbel(jnp.concatenate([words & 0xFFFF, words >> 16])[:size])

    return jax.vmap(jax.vmap(of_a_tile, (None, 0)))(self.seeds, numbers)


def official_gumbel(bits):
  """Noise float32[…] of sixteen random bits each: of a uniform number that is rounded as bfloat16 is."""
  uniform = (bits.astype(jnp.float32) + 0.5) / 2**16
  uniform = jax.lax.reduce_precision(uniform, exponent_bits=8, mantissa_bits=7)  # XLA may undo a cast and back.
  return jnp.where(uniform < 1, -jnp.log(-jnp.log(uniform)), _NEVER)
