"""Evaluation on held-out problems: accuracy and reward of sampled or greedy completions."""

import jax
import numpy as np

from gdsd_jax.generation.rollout import RolloutSampler
from gdsd_jax.parallel.processes import share_work


def evaluate(sampler: RolloutSampler, params, examples, key, batch_size: int) -> dict[str, float]:
  """Greedy accuracy and reward, and the mean reward of sampled completions, over `examples`.

  Args:
    sampler: of the run, at its training temperature.
    params: of the denoiser.
    examples: held-out problems; a last batch is filled up with repetitions, which do not count.
    key: random key of the sampled completions.
    batch_size: completions at a time.

  Returns:
    accuracy and reward (greedy), reward by name (greedy), sampled_reward.
  """
  greedy = sampler.with_config(temperature=0.0)
  correct, rewards, sampled = [], {}, []
  for start in range(0, len(examples), batch_size):
    part = list(examples[start:start + batch_size])
    filled = [part[i % len(part)] for i in range(batch_size)]
    scored = greedy(params, filled, key)

    def accuracies(rows, completions=scored.completions, part=part):
      return [float(sampler.task.accuracy(completions[row], part[row])) for row in rows]

    correct += share_work(len(part), accuracies)
    for name, values in {"reward": scored.total_reward, **_prefixed(scored.rewards)}.items():
      rewards.setdefault(name, []).extend(values[:len(part)])
    if sampler.config.temperature > 0:
      batch_key = jax.random.fold_in(key, start)
      sampled.extend(sampler(params, filled, batch_key).total_reward[:len(part)])
  result = {"accuracy": float(np.mean(correct)), **{name: float(np.mean(v)) for name, v in rewards.items()}}
  if sampled:
    result["sampled_reward"] = float(np.mean(sampled))
  return result


def _prefixed(rewards):
  return {f"reward/{name}": values for name, values in rewards.items()}
