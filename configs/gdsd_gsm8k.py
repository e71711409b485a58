"""GDSD on GSM8K, grade-school mathematics: the paper's recipe.

llada_8b:  python launch/train.py --config=configs/gdsd_gsm8k.py:llada_8b
dream_7b:  python launch/train.py --config=configs/gdsd_gsm8k.py:dream_7b
sdar_8b, sdar_1.7b, llada2_mini, illada_8b, llada_moe: these models by the same numbers (docs/llada.md). Not run by us.
Data:      GSM8K from the hub, or --config.task.train_source=train.jsonl --config.task.test_source=test.jsonl
Hardware:  eight devices of 80 GB (the official runs'), or a pod slice with as much memory.
Expected:  LLaDA-8B: 86.4 % (the paper's GDSD, best over lengths 128, 256, 512). Not run by us at this size.

llada_8b_tlc: the same by GDSD with TLC, as a later script of the authors trains (run_gdsd_llada_gsm8k.sh)
Expected:  85.6 % (the paper's GDSD with TLC). Not run by us.

The embedded model has no preset here: its 416 tokens and 256 positions hold neither the vocabulary of GSM8K nor most of
its solutions. Word problems that it can learn are in configs/gdsd_math.py:tiny.
"""

from gdsd_jax.runs.recipes import check_preset, evaluate_as_dream, published_config


def get_config(preset: str = "tiny"):
  check_preset(preset, "GSM8K is beyond 0.4 M parameters (configs/gdsd_math.py:tiny has easier problems)",
               more=["llada_8b_tlc"])
  with_tlc = preset == "llada_8b_tlc"
  config = published_config("llada_8b" if with_tlc else preset, per_device_batch=10, accumulation=4)
  config.steps = 374  # one pass over the 7,473 problems
  config.task.name = "gsm8k_xml"  # as the official run; "gsm8k" asks for a box alone
  config.eval.prefill = "<reasoning>"  # as the official evaluation begins every completion
  if preset == "dream_7b":
    evaluate_as_dream(config)  # LLaDA is evaluated greedily, half a step a token (GaryBall/GDSD, math_eval/eval.py)
  config.objective.name = "gdsd"
  if with_tlc:
    config.objective.name = "gdsd_tlc"
    # As the script leaves it, at plain GDSD's. The authors' later Sudoku script has 0.2: centred scores move more.
    config.objective.epsilon = 4e-4
  config.objective.num_iterations = 8
  config.objective.num_mc = 2
  config.objective.beta = 1e-3
  config.objective.psi = 0.04
  config.optimizer.learning_rate = 3e-6
  return config
