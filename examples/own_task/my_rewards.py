"""Rewards of one's own, on problems of one's own: this file and problems.jsonl are all of it.

From this folder, on a laptop, in one to three minutes (--config.steps=100 goes on from there):

  gdsd-train --config=gdsd_math:tiny --workdir=run --config.steps=25 --config.task.name=prompts \
    --config.task.train_source=problems.jsonl --config.task.prompt_column=question \
    --config.task.rewards='("my_rewards.py:right","my_rewards.py:steady")' --config.task.reward_weights='(1.0,0.2)'

A reward function is called with all completions of a step and, by keyword, the columns of their rows. It returns a
number for each completion, or None where it has nothing to say. Functions written for TRL's GRPO trainer run unchanged.
"""

import re


def right(completions, answer, **columns):
  """1 where the answer is that of the row."""
  return [float(f"<answer>{wanted}</answer>" in text) for text, wanted in zip(completions, answer)]


def steady(completions, **columns):
  """1 where the reasoning ends in the number that is then given as the answer."""
  pattern = re.compile(r"=(-?\d+)</reasoning><answer>(-?\d+)</answer>")
  found = map(pattern.search, completions)
  return [float(match[1] == match[2]) if match else None for match in found]
