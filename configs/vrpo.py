"""Fine-tuning on preferences by VRPO, of LLaDA 1.5 (arXiv 2505.19223): of two replies to a prompt, one was chosen.

tiny:      python launch/pretrain.py --config=configs/vrpo.py --out=DIR
llada_8b:  python launch/pretrain.py --config=configs/vrpo.py:llada_8b --config.data.train_source=pairs.jsonl --out=DIR
           (or another published model: docs/llada.md)
Data:      rows with `prompt`, `chosen` and `rejected`, texts or lists of turns, or whole chats as `chosen` and
           `rejected` (docs/data.md). tiny has rows of its own (gdsd_jax/tasks/preferences.py), right solutions beside
           wrong ones.
Hardware:  tiny: two CPU cores, two minutes; llada_8b and dream_7b: eight devices of 80 GB.
Result:    DIR holds the model, or with --config.model.lora.rank=128 a PEFT adapter; see configs/sft.py for what can be
           done with them. Of tiny, the share of pairs whose margin is positive is 0.92 on 64 that were not learnt, and
           greedy accuracy on the 400 test problems goes from 0.64 to 0.745 (launch/evaluate.py --config=gdsd_math
           --model=DIR).
Expected:  of LLaDA-8B, the paper's GSM8K + 4.7, HumanEval + 3.0, MBPP + 1.8 over LLaDA-8B-Instruct, from 350,000 pairs
           that are not public. Not run by us at this size.

The reference is the model that the run starts from, without the adapter where there is one.
"""

from gdsd_jax.runs.recipes import check_preset, finetuning_config
from gdsd_jax.tasks.preferences import FILE


def get_config(preset: str = "tiny"):
  check_preset(preset)
  config = finetuning_config(preset)
  config.kind = "vrpo"
  # The paper's, as is all that is set for the published models below.
  config.objective = dict(beta=0.2, num_mc=8, per_token=False, truncated=False)
  return _tiny(config) if preset == "tiny" else _published(config)


def _published(config):
  config.steps = 5469  # one pass over the paper's 350,000 pairs
  config.batch_size = 64
  config.model.lora.rank = 0  # all parameters are trained, and a copy of them is the reference
  config.optimizer.learning_rate = 5e-7
  config.optimizer.schedule = "cosine"
  config.optimizer.warmup_steps = 15
  config.optimizer.b2 = 0.95
  return config


def _tiny(config):
  config.data.train_source = str(FILE)
  config.data.validation_size = 64
  config.steps = 60
  config.batch_size = 16
  config.eval.every = 20
  config.checkpoint.every = 20
  config.optimizer.learning_rate = 1e-4  # 0.4 M parameters stand more than eight billion
  return config
