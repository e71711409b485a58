"""Makes the embedded models: masked diffusion language models, with tokenizer and chat template, in LLaDA's layout.

Command:   python launch/pretrain.py --config=configs/pretrain_tiny.py --out=gdsd_jax/models/assets/tiny --workdir=RUN
           RUN holds metrics.jsonl and checkpoints; the same command goes on where a killed one was
Hardware:  two CPU cores, 5 minutes.
Result:    on held-out problems, greedy accuracy 0.73, and a mean reward of sampled completions of 0.60 (at most 1.25)

`configs/pretrain_tiny.py:tiny_block` makes tiny_block in SDAR's layout of the same problems; it attends from block to
block. On held-out problems: greedy accuracy 0.66, mean reward of sampled completions 0.55.
Likewise `configs/pretrain_tiny.py:sudoku` makes tiny_sudoku, and `:countdown` tiny_countdown. On held-out problems:
Sudoku:    0.98 of the empty cells right after step 1000; at the end 0.75 by greedy and 0.66 by sampled completions
Countdown: 0.73 solved after step 1250; at the end 0.28 by greedy completions, mean reward of sampled ones 0.37
The split is by puzzle, not by grid: each of the 288 Sudoku grids is the solution of some training puzzle.

A model first learns from right solutions, then from careless ones, with half or more of the results wrong
(the task's `careless_solution`). It knows the problems better than its answers show, so that RL has something to find.
"""

import ml_collections

from gdsd_jax.runs.config_dict import base_config

PRESETS = ("arithmetic", "sudoku", "countdown", "tiny_block")


def get_config(preset: str = "arithmetic"):
  if preset not in PRESETS:
    raise ValueError(f"unknown preset {preset!r}, known are {', '.join(PRESETS)}")
  config = ml_collections.ConfigDict()
  config.kind = "pretraining"
  config.seed = 0
  config.task = dict(name="arithmetic")
  config.slips = 0.5
  config.model = dict(
    vocab_size=416, hidden_size=96, num_layers=3, num_heads=4, num_kv_heads=4, mlp_size=256,
    rope_theta=10000.0, norm_epsilon=1e-5, max_positions=256,
  )
  config.sampler = dict(completion_length=16, steps=16, block_length=8, temperature=1.0)
  config.max_prompt_length = 36
  config.steps = 1500
  config.careless_after = 1250
  config.batch_size = 64
  # 1e-3 learns the calculations; 3e-3 had learnt none after the same number of steps.
  config.optimizer = dict(learning_rate=1e-3, warmup_steps=100, weight_decay=0.01)
  config.eval_every = 250
  config.eval_examples = 200
  config.checkpoint = base_config().checkpoint
  config.checkpoint.every = 250
  config.log = base_config().log
  config.log.every = 50
  if preset == "sudoku":
    _sudoku(config)
  elif preset == "countdown":
    _countdown(config)
  elif preset == "tiny_block":
    _block(config)
  return config


def _sudoku(config):
  config.task = dict(name="sudoku", variant="small")
  config.model.vocab_size = 288
  # One block, so that the sampler may begin with the cells that it is surest of.
  config.sampler = dict(completion_length=20, steps=20, block_length=20, temperature=1.0)
  config.max_prompt_length = 28
  config.steps = 1250
  config.careless_after = 1000


def _countdown(config):
  config.task = dict(name="countdown", variant="small")
  config.model.vocab_size = 288
  config.slips = 0.65  # at 0.5 there was less for RL to gain: it went from 0.48 to 0.65
  config.sampler = dict(completion_length=12, steps=12, block_length=12, temperature=1.0)
  config.max_prompt_length = 28


def _block(config):
  """The problems of :arithmetic, in SDAR's layout: blocks of four tokens, each attending to all before."""
  config.model.family = "sdar"
  config.model.block_length = 4
  config.model.qk_norm = True
  config.model.positions_skip_padding = True
  config.sampler = dict(kind="block", cache="exact", completion_length=16, steps=16, block_length=4, temperature=1.0)
