"""Evaluation on held-out problems: accuracy and reward of sampled or greedy completions."""

import math

import jax
import numpy as np

from gdsd_jax.generation.rollout import mean_that_applies, RolloutSampler


def evaluate(sampler: RolloutSampler, params, examples, key, batch_size: int) -> dict[str, float]:
  """Greedy accuracy and reward, and the mean reward of sampled completions, over `examples`.

  Args:
    sampler: the run's own, at its training temperature.
    params: parameters of the denoiser.
    examples: held-out problems; a last batch is filled up with repetitions, which do not count.
    key: random key of the sampled completions.
    batch_size: completions at a time.

  Returns:
    accuracy, if the task knows one, and reward (greedy), reward by name (greedy), and sampled_reward where the
    temperature is above 0.

  Raises:
    RewardError: the task's grader raised.
  """
  greedy, found = sampler.with_config(temperature=0.0), {}
  for start in range(0, len(examples), batch_size):
    part = list(examples[start:start + batch_size])
    filled = [part[i % len(part)] for i in range(batch_size)]
    graded = greedy(params, filled, key)
    values = {"accuracy": graded.accuracy, "reward": graded.total_reward}
    values |= {f"reward/{name}": rewards for name, rewards in graded.rewards.items()}
    if sampler.config.temperature > 0:
      values["sampled_reward"] = sampler(params, filled, jax.random.fold_in(key, start)).total_reward
    for name, of_batch in values.items():
      found.setdefault(name, []).extend(of_batch[:len(part)])
  means = {name: mean_that_applies(np.array(values)) for name, values in found.items()}
  return {name: mean for name, mean in means.items() if name != "accuracy" or not math.isnan(mean)}
