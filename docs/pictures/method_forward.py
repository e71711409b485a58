"""method_forward.png: in which states a rollout is scored, by the consistent forward process and by uniform masks.

  python docs/pictures/method_forward.py
"""

import card
import jax
import jax.numpy as jnp
import numpy as np
from rollouts import Model, SAMPLER, TASK

from gdsd_jax.diffusion.forward import masks_from_counts

COUNTS = (14, 11, 8, 5, 2)  # masked tokens of the 16
LABEL = 4


def masks(confidence, **process):
  """bool[5, L], a mask of each of COUNTS."""
  confidence = jnp.broadcast_to(confidence, (len(COUNTS), confidence.shape[-1]))
  return np.asarray(masks_from_counts(jax.random.key(0), jnp.array(COUNTS), confidence, **process))


def draw(rollout, told) -> card.Rows:
  """The card of one rollout, by both processes."""
  pieces = told["tokens"]
  rows = card.Rows(rows=14.6, letters=LABEL + card.letters_of(pieces) + 0.5)
  for top, title, process in (
    (0.8, "GDSD's masks: states like those of the sampler", SAMPLER.forward_process),
    (8.3, "Uniform masks: any tokens", dict(block_length=None, remasking="random")),
  ):
    rows.say(0.4, top, title, weight="bold")
    for row, (count, mask) in enumerate(zip(COUNTS, masks(rollout.confidence, **process)), start=1):
      y = top + 0.1 + row
      rows.say(LABEL - 0.7, y, str(count), scale=0.9, color=card.GRAY, ha="right")
      rows.tokens(LABEL, y, pieces, ["#bcd3fb" if is_clean else None for is_clean in ~mask])
  rows.say(0.4, 6.9, "On the left: how many of the 16 tokens are masked.", scale=0.9, color=card.GRAY)
  return rows


def main():
  flags = card.arguments(__doc__, "method_forward.png")
  rollout, told = Model("tiny").answer(TASK.examples("validation")[0])
  card.save(draw(rollout, told).figure, flags.out)


if __name__ == "__main__":
  main()
