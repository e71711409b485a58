"""GDSD on Countdown, three numbers: the paper's recipe, by preset (Dream's is GDSD-TLC); `:tiny` scales it down.

tiny:      python launch/train.py --config=configs/gdsd_countdown.py
Hardware:  two CPU cores, 5 minutes.
Result:    reward of sampled completions from 0.38 to 0.63 (means of the first three and the last ten steps; at most
           1.0); on held-out problems sampled from 0.33 to 0.67, greedy accuracy from 0.32 to 0.71
The model, 0.4 M parameters in LLaDA's layout, was pretrained on three numbers up to 15 with + and -, with a wrong
operator in two thirds of the solutions (configs/pretrain_tiny.py). This is task.variant="small", whose prompt is
"3 5 7 = 9".

llada_8b:  python launch/train.py --config=configs/gdsd_countdown.py:llada_8b
dream_7b:  python launch/train.py --config=configs/gdsd_countdown.py:dream_7b
sdar_8b, sdar_1.7b, llada2_mini, illada_8b, llada_moe: these models by the same numbers (docs/llada.md). Not run by us.
Data:      generated, disjoint from the official test, which comes by
           --config.task.test_source=countdown_cd3_test.jsonl (of launch/evaluate.py, too)
Hardware:  eight devices of 80 GB (the official runs'), or a pod slice with as much memory.
Expected:  LLaDA-8B 84.0 % (the paper's GDSD), Dream-7B 84.8 % (GDSD with TLC), best over lengths 128, 256, 512. Not
           run by us at this size.

released_llada, released_dream: the models that the authors released, both trained with TLC, to be evaluated
           python launch/evaluate.py --config=configs/gdsd_countdown.py:released_llada \
             --config.task.test_source=countdown_cd3_test.jsonl
Hardware:  one device of 24 GB or more.
Expected:  LLaDA-8B 85.6 %, Dream-7B 84.8 % (the paper's GDSD with TLC, best over lengths 128, 256, 512): greedy, half a
           step a token, on the 256 official problems by the official prompt, with the official parser
           (docs/protocol.md). Not run by us.
"""

from gdsd_jax.runs.config_dict import base_config
from gdsd_jax.runs.recipes import check_preset, published_config, RELEASED, with_released


def get_config(preset: str = "tiny"):
  check_preset(preset, more=RELEASED)
  if preset in RELEASED:
    return with_released(_published(RELEASED[preset]), "countdown", preset)
  return _tiny() if preset == "tiny" else _published(preset)


def _published(preset: str):
  config = published_config(preset, per_device_batch=8 if preset == "dream_7b" else 10, accumulation=4)
  config.steps = 1000
  config.task.name = "countdown"
  config.task.variant = "official"
  config.task.prompt = "gdsd"  # GDSD's own; "espo" is ESPO's, which is longer
  # Both models are evaluated greedily, half a step a token (GaryBall/GDSD, math_eval/eval.py), on all 256 problems.
  config.eval.prefill = "<reasoning>"  # as the official evaluation begins every completion
  config.objective.name = "gdsd"
  config.objective.num_iterations = 8
  config.objective.num_mc = 2
  config.objective.beta = 3e-3
  config.objective.psi = 0.04
  config.optimizer.learning_rate = 1e-5
  if preset == "dream_7b":  # whose official script (run_gdsd_dream_ctd.sh) trains with TLC
    config.objective.name = "gdsd_tlc"
    # As the script leaves it, at plain GDSD's. The authors' later Sudoku script has 0.2: centred scores move more.
    config.objective.epsilon = 4e-4
  return config


def _tiny():
  config = base_config()
  config.model.path = "tiny_countdown"
  config.task.name = "countdown"
  config.task.variant = "small"

  config.steps = 100
  config.group_size = 8
  config.prompts_per_step = 8

  # As in pretraining: the longest solution has 11 tokens.
  config.sampler.completion_length = 12
  config.sampler.steps = 12
  config.sampler.block_length = 12
  config.sampler.prompt_buckets = (28,)  # the longest prompt has 22 tokens

  # The reasons for these are in configs/gdsd_math.py.
  config.objective.num_iterations = 4
  config.objective.epsilon = 0.2
  config.optimizer.learning_rate = 1e-4

  config.eval.every = 25
  config.eval.num_examples = 256
  config.eval.batch_size = 64
  config.eval.lengths = (12,)  # by launch/evaluate.py, as in training
  config.eval.steps_per_token = 1.0
  config.eval.block_length = 12
  config.eval.prompt_buckets = (28,)  # the longest prompt has 22 tokens
  config.checkpoint.every = 5
  config.log.rollouts_every = 25
  config.log.keep_every = 5  # so that rollouts.jsonl shows how it learns, in less than a megabyte
  config.log.keep_groups = 4
  return config
