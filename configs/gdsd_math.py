"""GDSD on mathematics."""

from gdsd_jax.training.config import base_config

PRESETS = ("tiny",)


def get_config(preset: str = "tiny"):
  if preset not in PRESETS:
    raise ValueError(f"--config: unknown preset {preset!r}, known are {', '.join(PRESETS)}")
  config = base_config()
  config.steps = 150
  config.group_size = 8
  config.prompts_per_step = 8
  config.model.path = preset
  config.task.name = "arithmetic"
  config.sampler.completion_length = 16
  config.sampler.block_length = 8
  config.sampler.steps = 16
  config.sampler.prompt_buckets = (36,)
  config.objective.num_iterations = 2
  config.optimizer.learning_rate = 5e-5
  config.eval.every = 25
  config.eval.num_examples = 256
  config.eval.batch_size = 64
  config.checkpoint.every = 25
  return config
