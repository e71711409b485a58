"""GDSD with token-level logit centralisation on code: the paper's recipe. Programs run in a sandbox (bubblewrap).

llada_8b:  python launch/train.py --config=configs/gdsd_code.py:llada_8b
dream_7b:  python launch/train.py --config=configs/gdsd_code.py:dream_7b
sdar_8b, sdar_1.7b, llada2_mini, illada_8b, llada_moe: these models by the same numbers (docs/llada.md). Not run by us.
Data:      --config.task.train_source=acecode.jsonl (rows with question and test_cases), and
           --config.task.test_source=HumanEval.jsonl.gz or mbpp.jsonl
Hardware:  eight devices of 80 GB (the official runs'), or a pod slice with as much memory.
Expected:  see the paper's figures; it reports rewards, no table. Not run by us at this size.

released_llada: the model that the authors released, to be evaluated
           python launch/evaluate.py --config=configs/gdsd_code.py:released_llada \
             --config.task.test_source=HumanEval.jsonl.gz --config.eval.steps_per_token=1.0
Hardware:  one device of 24 GB or more.
Expected:  no number of it is known to us, the paper shows figures alone. A step a token is how LLaDA's authors evaluate
           code. Not run by us.

The embedded model has no preset here: 0.4 M parameters, pretrained on one-line sums, write no program.
"""

from gdsd_jax.runs.recipes import check_preset, evaluate_as_dream, published_config, with_released


def get_config(preset: str = "tiny"):
  check_preset(preset, "a model of 0.4 M parameters writes no programs", more=["released_llada"])
  if preset == "released_llada":
    return with_released(_published("llada_8b"), "code", preset)
  return _published(preset)


def _published(preset: str):
  config = published_config(preset, per_device_batch=3, accumulation=20)
  config.steps = 300
  config.task.name = "code"
  config.task.prompt = "gdsd"  # GDSD's own; "espo" is ESPO's, which is longer
  if preset == "dream_7b":
    evaluate_as_dream(config)  # of LLaDA on code GDSD has no script; here it is evaluated as on the other tasks
  config.objective.name = "gdsd_tlc"
  config.objective.num_iterations = 8
  config.objective.num_mc = 4
  config.objective.beta = 5e-2
  config.objective.psi = 0.04
  # As the script leaves it, at plain GDSD's. The authors' later Sudoku script has 0.2: centred scores move more.
  config.objective.epsilon = 4e-4
  config.optimizer.learning_rate = 3e-6
  return config
