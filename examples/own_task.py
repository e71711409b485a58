"""A task and rewards of one's own, in one file to copy. On a laptop it trains in one to three minutes, by either of

  python examples/own_task.py
  gdsd-train --config=gdsd_math:tiny --workdir=runs/shopping --config.steps=25 \
    --config.task.name=examples/own_task.py:Shopping --config.task.rewards='("task","examples/own_task.py:steady")'

Problems that lie in a file need no class (docs/own_tasks.md): reward functions are enough, and those written for TRL's
GRPO trainer run unchanged.
"""

import re

import gdsd_jax


class Shopping(gdsd_jax.Task):
  """Word problems, as long as the embedded model can read."""

  def examples(self, split):
    """Problems as dicts with whatever the other functions need; a tenth of those to train on is kept for validation."""
    names = ("Sam", "Eva") if split == "test" else ("Tom", "Ana", "Ben", "Mia")
    return [
      {"question": f"{name} has {left} books and buys {right} more. How many books does {name} have?",
       "answer": str(left + right)}
      for left in range(2, 13) for right in range(1, 10) for name in names
    ]

  def messages(self, example):
    return [{"role": "user", "content": example["question"]}]

  def score(self, completion, example):
    """Rewards by name; their sum is what training raises."""
    return {"right": self.accuracy(completion, example), "answered": 0.2 * ("</answer>" in completion)}

  def accuracy(self, completion, example):
    return float(f"<answer>{example['answer']}</answer>" in completion)


def steady(completions, **columns):
  """A reward function: 0.2 where the answer is what the reasoning ends in, None where it has nothing to say."""
  pattern = re.compile(r"=(-?\d+)</reasoning><answer>(-?\d+)</answer>")
  found = map(pattern.search, completions)
  return [0.2 * (match[1] == match[2]) if match else None for match in found]


if __name__ == "__main__":
  gdsd_jax.log_to_stdout()
  config = gdsd_jax.load_config("gdsd_math:tiny", {"steps": 25})
  trainer = gdsd_jax.Trainer(config, "runs/own_task", task=Shopping(), rewards=["task", steady])
  trainer.train()
  question = "Eva has 11 books and buys 9 more. How many books does Eva have?"
  print(question, *trainer.sample([question], temperature=0.0))
