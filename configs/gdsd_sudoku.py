"""GDSD-TLC on 4x4 Sudoku: the paper's recipe, by preset; `:tiny` scales it to an embedded model, by plain GDSD.

tiny:      python launch/train.py --config=configs/gdsd_sudoku.py
Hardware:  two CPU cores, 6 minutes.
Result:    empty cells filled right by sampled completions from 0.65 to 0.91 (the mean of the last ten steps), by greedy
           ones on held-out puzzles from 0.75 to 0.96
The model, 0.4 M parameters in LLaDA's layout, was pretrained on puzzles with half of the empty cells filled wrong
(configs/pretrain_tiny.py). The puzzles are generated, with 8 givens as the public test's; their prompt is the puzzle
alone (task.variant="small").

llada_8b:  python launch/train.py --config=configs/gdsd_sudoku.py:llada_8b
dream_7b:  python launch/train.py --config=configs/gdsd_sudoku.py:dream_7b
sdar_8b, sdar_1.7b, llada2_mini, illada_8b, llada_moe: these models by the same numbers (docs/llada.md). Not run by us.
Data:      generated, disjoint from the official test, which comes by
           --config.task.test_source=4x4_test_sudoku.csv (of launch/evaluate.py, too)
Hardware:  eight devices of 80 GB (the official runs'), or a pod slice with as much memory.
Expected:  LLaDA-8B 92.0 %, Dream-7B 91.7 % (the paper's GDSD with TLC, best over lengths 128, 256, 512). Not run by us
           at this size.
The numbers are those of the authors' script for Dream (run_gdsd_dream_sudoku.sh); for LLaDA theirs is a demonstration.

released_llada, released_dream: the models that the authors released, to be evaluated
           python launch/evaluate.py --config=configs/gdsd_sudoku.py:released_llada \
             --config.task.test_source=4x4_test_sudoku.csv
Hardware:  one device of 24 GB or more.
Expected:  LLaDA-8B 92.0 %, Dream-7B 91.7 %, as above: greedy, half a step a token, on 256 of the official puzzles by
           the official prompt, with the official parser (docs/protocol.md). Not run by us.
"""

from gdsd_jax.runs.config_dict import base_config
from gdsd_jax.runs.recipes import check_preset, published_config, RELEASED, with_released


def get_config(preset: str = "tiny"):
  check_preset(preset, more=RELEASED)
  if preset in RELEASED:
    return with_released(_published(RELEASED[preset]), "sudoku", preset)
  return _tiny() if preset == "tiny" else _published(preset)


def _published(preset: str):
  config = published_config(preset, per_device_batch=8, accumulation=4)
  config.steps = 1000
  config.task.name = "sudoku"
  config.task.variant = "official"
  config.task.prompt = "gdsd"  # GDSD's own; "espo" is ESPO's, which is longer
  config.sampler.steps = 128
  if preset == "llada_8b":
    config.sampler.remasking = "random"  # in its sampler and forward process; Dream's has none
  config.sampler.prompt_buckets = (256, 400)  # prompts are equally long; GDSD's fit the former, ESPO's the latter
  # Both models are evaluated greedily, half a step a token, on 256 puzzles (GaryBall/GDSD, math_eval/eval.py); all 500
  # of the public file by --config.eval.test_size=None.
  config.eval.test_size = 256
  config.eval.prefill = "<reasoning>"  # as the official evaluation begins every completion
  config.objective.name = "gdsd_tlc"
  config.objective.center_top_k = 8
  config.objective.num_iterations = 1
  config.objective.num_mc = 2
  config.objective.beta = 1e-3
  config.objective.psi = 0.04
  config.optimizer.learning_rate = 1e-5
  if preset == "dream_7b":  # which samples without blocks, and whose official masks have them all the same
    config.masks.kind = "blocks"
    config.masks.block_length = 32
    config.masks.remasking = "random"
  return config


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
  config.sampler.prompt_buckets = (28,)  # prompts have 26 tokens

  # Rewards of a group differ by a cell or two of eight, so advantages are small. At 0.04 the reward rose by 0.17 in 80
  # steps, at 0.1 by 0.25.
  config.objective.psi = 0.1
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
  config.eval.prompt_buckets = (28,)  # prompts have 26 tokens
  config.checkpoint.every = 5
  config.log.rollouts_every = 25
  config.log.keep_every = 5  # so that rollouts.jsonl shows how it learns, in less than a megabyte
  config.log.keep_groups = 4
  return config
