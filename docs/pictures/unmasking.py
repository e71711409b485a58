"""unmasking.png: an answer as it comes to be, its tokens colored by the step that unmasked them.

  python launch/export.py --workdir=runs/gdsd_math_tiny --out=exported   # after training by the recipe gdsd_math:tiny
  python docs/pictures/unmasking.py --model=exported
"""

import card
import numpy as np
from rollouts import Model, SAMPLER, TASK

SHOWN = (2, 4, 6, 8, 10, 12, 14, 16)  # after how many steps
PROBLEM = 10  # its index in the test split; its answer has two digits
LABEL = 4  # letters for the number of steps


def draw(told, question: str) -> card.Rows:
  """The card of one completion, as `told_tokens` has it."""
  pieces, steps = told["tokens"], np.array(told["unmasked"])
  color = lambda step: card.COLORS(0.12 + 0.8 * step / (SAMPLER.steps - 1))
  rows = card.Rows(rows=len(SHOWN) + 2.8, letters=LABEL + card.letters_of(pieces) + 0.5)
  rows.say(0.4, 0.7, question, scale=0.9, weight="bold")
  rows.say(0.4, 1.75, "step; framed: new since the row above; ▪ end of text", scale=0.85, color=card.GRAY)
  for row, (before, count) in enumerate(zip((0, *SHOWN), SHOWN)):
    rows.say(LABEL - 0.7, 2.7 + row, str(count), scale=0.9, color=card.GRAY, ha="right")
    colors = [color(step) if step < count else None for step in steps]
    rows.tokens(LABEL, 2.7 + row, pieces, colors, framed=np.flatnonzero((steps >= before) & (steps < count)))
  return rows


def main():
  flags = card.arguments(__doc__, "unmasking.png", model="tiny")
  model, example = Model(flags.model), TASK.examples("test")[PROBLEM]
  _, told = model.answer(example)
  card.save(draw(told, example["question"]).figure, flags.out)


if __name__ == "__main__":
  main()
