"""What an objective is: which scores of rollouts it asks for, and what they cost."""

from flax import struct
import jax
import jax.numpy as jnp

from gdsd_jax.objectives.scores import Scores, token_weights
from gdsd_jax.objectives.token_scores import Scoring


@struct.dataclass
class ScoredRollouts:
  """N rollouts and their scores under M mask samples: what a loss is a function of.

  The G rollouts of a prompt are neighbours. Scores are float32[N, M, L], one for each token, if the objective's
  `scoring` is `per_token`, and otherwise float32[N, M], one for each completion. A token is scored in that pass of a
  coupled pair in which it is masked.
  """

  student: Scores  # under the student as it is now; a loss has its gradient by these
  old: Scores  # under the student before the first of the updates on these rollouts, on the same masks
  ref: Scores | None  # under the reference, on the same masks; None unless the objective `needs_reference`
  masks: jax.Array  # bool[N, M, L], the first mask of each coupled pair; its complement is the second
  tokens: jax.Array  # int32[N, L], the completions
  lengths: jax.Array  # int32[N], tokens of each up to its first end of text, which is among them
  rewards: jax.Array  # float32[N]
  advantages: jax.Array  # float32[N], leave-one-out, as `objective.scale_rewards` says
  group_size: int = struct.field(pytree_node=False)  # G

  @property
  def weights(self) -> jax.Array:
    """float32[N, M, L], the weights of tokens by the forward process, see `token_weights`."""
    return token_weights(self.masks)

  @property
  def counted(self) -> jax.Array:
    """bool[N, L], the tokens of a completion up to its first end of text, which is among them."""
    return jnp.arange(self.masks.shape[-1]) < self.lengths[:, None]


class Objective:
  """What the student is trained on; subclass it as a frozen dataclass, whose fields are `--config.objective.FIELD`.

  It is traced by `jax.jit`, and a static argument of it, so that it must be hashable. The gradient by the parameters is
  made one sample at a time from the loss's gradient by the student's scores (`training/gradient.py`).
  """

  needs_reference = False  # whether there are scores of the reference; it costs a copy of what is trained
  # Scores of single tokens, or with `per_token=False` their weighted sums; with `center_top_k` centred ones besides.
  scoring = Scoring(per_token=True)

  def loss(self, batch: ScoredRollouts):
    """The loss, a float32 scalar, or (loss, metrics) with scalars by name, which are means over a step's updates."""
    raise NotImplementedError(f"{type(self).__name__} must have `loss`")
