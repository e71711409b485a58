"""method_teacher.png: the student's distribution of a token, and the teacher's, which weighs it by the advantage.

  python docs/pictures/method_teacher.py

The state is a real rollout in which two tokens are masked again: the last digit of the calculation's result, and that
of the answer. The reward hangs on the latter alone. So each of its digits is a completion with an advantage: its reward
less the mean reward in this state. The teacher's scores are those of `teacher_scores`.
"""

import re

import card
import numpy as np
from rollouts import Model, SAMPLER, TASK

import gdsd_jax

PSI = 0.04  # per token, as the paper has it
DIGITS = [str(digit) for digit in range(10)]
CLOSEST = 0.5  # to this probability of the right digit is the problem that is shown


def state(model: Model, example):
  """(text of a state, probabilities of its ten digits, their rewards); None of a rollout that has another form."""
  rollout, told = model.answer(example)
  text = "".join(told["tokens"])
  form = re.match(r"<reasoning>(\d+[+-]\d+)=(\d+)</reasoning><answer>(\d+)</answer>", text)
  if not form or not len(form[2]) == len(form[3]) == len(str(example["answer"])):
    return None
  places = [number for number, piece in enumerate(told["tokens"]) if piece.startswith("</")]
  masked = np.array(rollout.tokens[0])
  masked[[place - 1 for place in places[:2]]] = model.denoiser.config.mask_token_id
  ids = [model.tokenizer.convert_tokens_to_ids(digit) for digit in DIGITS]
  expected = model.distribution(example, masked)[places[1] - 1][ids]
  texts = [text[:form.end(3) - 1] + digit + text[form.end(3):].replace("<|endoftext|>", "") for digit in DIGITS]
  rewards = [sum(TASK.score(each, example).values()) for each in texts]
  text = f"{form[1]}={form[2][:-1]}?  …  <answer>{form[3][:-1]}?</answer>".replace("-", "−")
  return text, expected / expected.sum(), np.array(rewards)


def teacher(probability, advantages):
  """p exp(ψ L A) / Z, float[10]."""
  length = SAMPLER.completion_length
  scores = np.asarray(gdsd_jax.teacher_scores(np.log(probability)[:, None] / length, advantages, PSI))[:, 0] * length
  weights = np.exp(scores - scores.max())
  return weights / weights.sum()


def draw(text: str, probability, rewards):
  """The figure of one state."""
  advantages = rewards - probability @ rewards
  colors = [card.GREEN if advantage > 0 else card.ORANGE for advantage in advantages]
  figure, ax = card.card(4.6)
  places = np.arange(len(DIGITS))
  ax.bar(places - 0.2, probability, 0.4, color="#c3c8d2", label="student")
  ax.bar(places + 0.2, teacher(probability, advantages), 0.4, color=colors)
  best, worst = np.argmax(advantages), np.argmin(advantages)
  for color, name, place in ((card.GREEN, "right", best), (card.ORANGE, "wrong", worst)):
    ax.bar(0, 0, color=color, label=f"teacher, {name}: A = {advantages[place]:+.2f}".replace("-", "−"))
  ax.set_xticks(places, DIGITS)
  ax.set(ylabel="probability", xlabel=f"last digit of the answer:  {text}")
  ax.legend(frameon=False, loc="upper left" if best > 4 else "upper right")
  return figure


def main():
  flags = card.arguments(__doc__, "method_teacher.png")
  model, states = Model("tiny"), []
  for example in TASK.examples("validation")[:30]:
    if found := state(model, example):
      states.append(found)
  _, number = min((abs(probability[np.argmax(rewards)] - CLOSEST), number)
                  for number, (_, probability, rewards) in enumerate(states))
  card.save(draw(*states[number]), flags.out)


if __name__ == "__main__":
  main()
