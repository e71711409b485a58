"""GDSD on 4x4 Sudoku, scaled to an embedded model.

tiny:      python launch/train.py --config=configs/gdsd_sudoku.py
Hardware:  two CPU cores, 5 minutes.
Result:    TODO
"""

from gdsd_jax.training.config import base_config

PRESETS = ("tiny",)


def get_config(preset: str = "tiny"):
  if preset not in PRESETS:
    raise ValueError(f"--config: unknown preset {preset!r}, known are {', '.join(PRESETS)}")
  return _tiny()


def _tiny():
  config = base_config()
  config.model.path = "tiny_sudoku"
  config.task.name = "sudoku"
  config.task.variant = "small"

  config.steps = 100
  config.group_size = 8
  config.prompts_per_step = 8

  # As in pretraining: the grid in its tags has 18 tokens, and one block lets the sampler begin with the surest cells.
  config.sampler.completion_length = 20
  config.sampler.steps = 20
  config.sampler.block_length = 20
  config.sampler.prompt_buckets = (28,)

  # The reasons for these are in configs/gdsd_math.py.
  config.objective.num_iterations = 4
  config.objective.epsilon = 0.2
  config.optimizer.learning_rate = 1e-4

  config.eval.every = 25
  config.eval.num_examples = 256
  config.eval.batch_size = 64
  config.eval.lengths = (20,)  # by launch/evaluate.py, as in training
  config.eval.steps_per_token = 1.0
  config.eval.block_length = 20
  config.eval.prompt_buckets = (28,)
  config.checkpoint.every = 5
  config.log.rollouts_every = 25
  return config
