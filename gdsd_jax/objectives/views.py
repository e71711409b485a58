"""Views: the partly masked inputs in which an objective scores rollouts, and which tokens are scored in each."""

from collections.abc import Callable
import dataclasses

from flax import struct
import jax
import jax.numpy as jnp


@struct.dataclass
class Views:
  """V views of each of N rollouts."""

  masks: jax.Array  # bool[N, V, L], completion tokens that are masked in a view; of a coupled pair, in its first pass
  scored: jax.Array | None = None  # bool[N, V, L], tokens whose scores the loss takes; None for those of the mask
  weights: jax.Array | None = None  # float32[N, V, …], what the loss weighs their scores by, where it does
  prompt_masks: jax.Array | None = None  # bool[N, V, P], prompt tokens that are masked, too; None for none
  targets: jax.Array | None = None  # int32[N, V, L], what is scored in place of the completion's own tokens, if it is
  # Whether a view is a coupled pair: the mask and its complement, two passes, and each token is scored in that pass in
  # which it is masked.
  coupled: bool = struct.field(pytree_node=False, default=False)

  @property
  def counted(self) -> jax.Array:
    """bool[N, V, L], the tokens that are scored."""
    if self.scored is not None:
      return self.scored
    return jnp.ones_like(self.masks) if self.coupled else self.masks

  def goals(self, tokens) -> jax.Array:
    """int32[…, L], what is scored of sequences int32[…, P+L]."""
    return tokens[..., -self.masks.shape[-1]:] if self.targets is None else self.targets

  @property
  def inputs(self) -> "Views":
    """What of them the scores depend on."""
    return self.replace(scored=None, weights=None)


@struct.dataclass(kw_only=True)
class Rollouts:
  """N rollouts: what views are drawn from. The G rollouts of a prompt are neighbours."""

  tokens: jax.Array  # int32[N, L], the completions
  lengths: jax.Array  # int32[N], tokens of each up to its first end of text, which is among them
  rewards: jax.Array  # float32[N]; of one that no reward applies to, the mean of its group's others
  advantages: jax.Array  # float32[N]
  confidence: jax.Array  # float32[N, L], of each token when it was unmasked
  steps: jax.Array | None = None  # int32[N, L], when each token was unmasked: the first step is 0
  # float32[N, L], of each token under the distribution that it was drawn from, and the entropy of that in nats.
  logp: jax.Array | None = None
  entropy: jax.Array | None = None
  kept: jax.Array | None = None  # int32[N, L, K], the tokens that the sampler's filters left, -1 for none
  # int32[N, L], the block of each token, counted from the one that the completion begins in, if a model attends from
  # block to block; None if it does not. A view then masks each block by itself, all earlier ones being clean. And steps
  # are those of a token's own block, so that one view has a step of every block.
  blocks: jax.Array | None = None
  predictions: "Predictions | None" = None
  group_size: int = struct.field(pytree_node=False)  # G

  @property
  def counted(self) -> jax.Array:
    """bool[N, L], the tokens of a completion up to its first end of text, which is among them."""
    return jnp.arange(self.tokens.shape[-1]) < self.lengths[:, None]


@struct.dataclass
class Predictions:
  """What the sampler of N rollouts predicted at each of its S steps, wherever there was a mask."""

  tokens: jax.Array  # int32[N, S, L]
  confidence: jax.Array  # float32[N, S, L], their probabilities
  rewards: jax.Array  # float32[N, S], of the whole prediction; where none applies, as those of Rollouts


@dataclasses.dataclass(frozen=True)
class Drawing:
  """What a run tells an objective that draws views."""

  num_mc: int  # mask samples (M)
  updates: int  # on each batch of rollouts (mu)
  prompt_length: int  # P
  block_length: int | None  # K of the sampler; None for one block
  num_steps: int  # the most denoising steps that a rollout took, or where there are `blocks`, one of these
  # (key, rollouts) -> bool[N, M, L], the run's consistent forward process (section `masks`)
  consistent_masks: Callable[[jax.Array, Rollouts], jax.Array]
  end_token_ids: tuple[int, ...] = ()  # tokens that end a text


def random_prompt_masks(key, shape, share: float = 0.15) -> jax.Array | None:
  """bool[*shape], each token of a prompt with that probability; None where it is 0."""
  return jax.random.uniform(key, shape, jnp.float32) < share if share else None


def random_masks(key, counts, within) -> jax.Array:
  """bool[..., L] of `counts` tokens, int[...], at random among those of `within`, bool[..., L], which has as many."""
  priority = jnp.where(within, jax.random.uniform(key, within.shape, jnp.float32), 2)
  rank = jnp.argsort(jnp.argsort(priority, axis=-1), axis=-1)
  return rank < counts[..., None]


def views_of_steps(steps, begins, ends) -> Views:
  """View v is the state before step begins[v]: what came then or later is masked; scored are tokens before ends[v].

  Args:
    steps: int32[N, L], when each token was unmasked.
    begins, ends: int[V] or int[N, V].
  """
  each = lambda bound: jnp.broadcast_to(bound, (len(steps), jnp.shape(bound)[-1]))[..., None]
  masks = steps[:, None] >= each(begins)
  return Views(masks, scored=masks & (steps[:, None] < each(ends)))
