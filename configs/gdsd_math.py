"""GDSD on mathematics: the paper's recipe, by preset; `:tiny` scales it to the embedded model.

Command:   python launch/train.py --config=configs/gdsd_math.py
Hardware:  two CPU cores, 5 minutes.
Result:    reward of sampled completions from 0.57 to 1.21 (at most 1.25), held-out greedy accuracy from 0.70 to 0.94

The model, 0.4 M parameters in LLaDA's layout, was pretrained on word problems with half of the training answers wrong
(configs/pretrain_tiny.py). The presets for LLaDA-8B and Dream-7B come with the next release.
"""

from gdsd_jax.training.config import base_config

PRESETS = ("tiny",)


def get_config(preset: str = "tiny"):
  if preset not in PRESETS:
    raise ValueError(f"--config: unknown preset {preset!r}, known are {', '.join(PRESETS)}")
  config = base_config()
  config.model.path = preset
  config.task.name = "arithmetic"

  # 64 rollouts a step: enough that a third of the groups or less has no spread, few enough for a step in seconds.
  config.steps = 100
  config.group_size = 8
  config.prompts_per_step = 8

  # As in pretraining: the longest solution has 15 tokens; one token is committed a step, as in the paper.
  config.sampler.completion_length = 16
  config.sampler.steps = 16
  config.sampler.block_length = 8
  config.sampler.prompt_buckets = (36,)  # the longest prompt has 34 tokens

  # psi, num_mc and beta are the paper's (gdsd_jax/training/config.py).
  # Updates on each batch of rollouts; half of the paper's, and half of its time a step.
  config.objective.num_iterations = 4
  # The official 4e-4 presumes updates as small as LoRA's at 1e-5. Here the first update of a batch moves log-ratios by
  # some 0.06, so that 4e-4 would clip the later ones away; at 0.2 under a tenth of the entries is clipped.
  config.objective.epsilon = 0.2
  # AdamW moves every weight by about the rate, whatever the gradient's scale. 1e-4 learns within 100 steps; at 3e-4 the
  # format broke now and then.
  config.optimizer.learning_rate = 1e-4

  config.eval.every = 25
  config.eval.num_examples = 256
  config.eval.batch_size = 64  # the size of a step's batch, so that one compiled sampler serves both
  config.checkpoint.every = 5  # a save is 5 MB; the evaluated steps are among them, so that the best one is kept
  config.log.rollouts_every = 25
  return config
