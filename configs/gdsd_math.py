"""GDSD on mathematics: the paper's recipe, by preset; `:tiny` scales it to the embedded model.

tiny:      python launch/train.py --config=configs/gdsd_math.py
Hardware:  two CPU cores, 5 to 10 minutes.
Result:    reward of sampled completions from 0.58 to 1.22 (at most 1.25), greedy accuracy on validation problems from
           0.66 to 0.95
The model, 0.4 M parameters in LLaDA's layout, was pretrained on word problems with half of the training answers wrong
(configs/pretrain_tiny.py).

tiny_block: the same by the embedded block-causal model in SDAR's layout, its blocks sampled with their exact cache.
Result:    reward of sampled completions on validation problems by step 25, at seeds 0, 1, 2: from 0.54, 0.58, 0.47 to
           0.94, 0.94, 0.90, and greedy accuracy from 0.65 to 0.81, 0.83, 0.78, in under 250 CPU seconds with compiling.
           We stopped these runs there, on a CPU that others used; all 100 steps have not been run.

llada_8b:  python launch/train.py --config=configs/gdsd_math.py:llada_8b
dream_7b:  python launch/train.py --config=configs/gdsd_math.py:dream_7b
sdar_8b, sdar_1.7b, llada2_mini, illada_8b, llada_moe: these models by the same numbers (docs/llada.md). Not run by us.
Data:      MATH from the hub, or --config.task.train_source=train.jsonl --config.task.test_source=test.jsonl
Hardware:  eight devices of 80 GB (the official runs'), or a pod slice with as much memory.
Expected:  LLaDA-8B, MATH500: 44.6 % (the paper's GDSD, best over lengths 128, 256, 512). Not run by us at this size.
"""

from gdsd_jax.runs.config_dict import base_config
from gdsd_jax.runs.recipes import check_preset, evaluate_as_dream, published_config


def get_config(preset: str = "tiny"):
  check_preset(preset, more=("tiny_block",))
  if preset == "tiny_block":
    return _tiny_block()
  return _tiny() if preset == "tiny" else _published(preset)


def _published(preset: str):
  config = published_config(preset, per_device_batch=8, accumulation=4)
  config.steps = 750  # one pass over the 12,000 problems
  # As the official run: tagged and boxed answers, compared as text. "math" asks for a box alone, graded by math-verify.
  config.task.name = "math_xml"
  config.eval.prefill = "<reasoning>"  # as the official evaluation begins every completion
  if preset == "dream_7b":
    evaluate_as_dream(config)  # LLaDA is evaluated greedily, half a step a token (GaryBall/GDSD, math_eval/eval.py)
  config.objective.name = "gdsd"
  config.objective.num_iterations = 8
  config.objective.num_mc = 2
  config.objective.beta = 1e-4
  config.objective.psi = 0.04
  config.optimizer.learning_rate = 1e-5
  return config


def _tiny():
  config = base_config()
  config.model.path = "tiny"
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

  # psi, num_mc and beta are the paper's (gdsd_jax/runs/config.py).
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
  config.eval.lengths = (16,)  # by launch/evaluate.py, as in training
  config.eval.steps_per_token = 1.0
  config.eval.block_length = 8
  config.eval.prompt_buckets = (36,)
  config.checkpoint.every = 5  # a save is 5 MB; the evaluated steps are among them, so that the best one is kept
  config.log.rollouts_every = 25
  config.log.keep_every = 5  # so that rollouts.jsonl shows how it learns, in less than a megabyte
  config.log.keep_groups = 4
  return config


def _tiny_block():
  """As `:tiny`, but of the block-causal model, which samples its blocks of four with its exact cache."""
  config = _tiny()
  config.model.path = "tiny_block"
  config.sampler.kind = "block"
  config.sampler.cache = "exact"
  config.sampler.block_length = 4
  config.eval.block_length = 4
  return config
