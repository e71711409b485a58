"""Validation while training: accuracy and reward of completions of held-out problems, asked as in training."""

from collections.abc import Mapping
import math
from typing import Any

import jax
import numpy as np

from gdsd_jax.generation.rollout import mean_that_applies, RolloutSampler
from gdsd_jax.waiting import waiting


def evaluate(
  sampler: RolloutSampler, params, examples, key, batch_size: int, judged: Mapping[str, Any] | None = None
) -> dict[str, float]:
  """Accuracy and reward of completions that are `judged`, greedy ones unless it says otherwise, over `examples`.

  Beside them the mean reward of completions as training samples them. Problems are asked by the training prompt: the
  run learns to answer that, and its best checkpoint is the one that does. The prompts of published evaluations are for
  test problems, launch/evaluate.py's.

  Args:
    sampler: the run's own, at its training temperature.
    params: parameters of the denoiser.
    examples: held-out problems; a last batch is filled up with repetitions, which do not count.
    key: random key of the sampled completions.
    batch_size: completions at a time.
    judged: what is other in their sampler than in training's; None for a temperature of 0.

  Returns:
    accuracy and accuracy_lenient, if the task knows them, reward, if any applies, and reward by name; and
    sampled_reward where training's temperature is above 0.

  Raises:
    RewardError: the task's grader raised.
  """
  judge, found = sampler.with_config(**(judged or {"temperature": 0.0})), {}
  with waiting("evaluating", len(examples), "problems", last_word=False) as wait:
    for start in range(0, len(examples), batch_size):
      part = list(examples[start:start + batch_size])
      filled = [part[i % len(part)] for i in range(batch_size)]
      # Greedy completions have no use for a key; drawn ones have another than those that are sampled as in training.
      drawn = judge.config.temperature > 0
      graded = judge(params, filled, jax.random.fold_in(jax.random.fold_in(key, start), 1) if drawn else key)
      values = {"accuracy": graded.accuracy, "accuracy_lenient": graded.accuracy_lenient, "reward": graded.total_reward}
      values |= {f"reward/{name}": rewards for name, rewards in graded.rewards.items()}
      if sampler.config.temperature > 0:
        values["sampled_reward"] = sampler(params, filled, jax.random.fold_in(key, start)).total_reward
      for name, of_batch in values.items():
        found.setdefault(name, []).extend(of_batch[:len(part)])
      wait.advance(len(part))
  means = {name: mean_that_applies(np.array(values)) for name, values in found.items()}
  return {name: mean for name, mean in means.items() if name.startswith("reward/") or not math.isnan(mean)}
