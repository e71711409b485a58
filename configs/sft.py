"""Masked-diffusion supervised fine-tuning on chats, before RL: any loaded model, by LoRA or all parameters.

Command:   python launch/pretrain.py --config=configs/sft.py --config.data.train_source=chats.jsonl --out=DIR
           … --config=configs/sft.py:llada_8b (or another preset) for the published models
Data:      rows with `messages`, a list of {"role", "content"} that ends with the assistant's turn, which is learnt;
           with `prompt` and `completion`, texts or such lists; or ShareGPT's `conversations`. Loss on chats that are
           not learnt: --config.data.validation_source=FILE, or so many of the last ones: --config.data.validation_size
Hardware:  tiny: two CPU cores; the published models: eight devices of 80 GB.
Result:    DIR holds a PEFT adapter (LoRA) or the full model; train from it by --config.model.lora.path=DIR or
           --config.model.path=DIR. RL that goes on with an adapter is held to the base model, without the adapter
           (objective.beta). To be held to the fine-tuned model, start from that:
           python launch/export.py --workdir=DIR.run --out=MERGED --merge, then --config.model.path=MERGED.
Full:      --config.model.lora.rank=0 trains all parameters.
"""

from gdsd_jax.runs.recipes import check_preset, finetuning_config


def get_config(preset: str = "tiny"):
  check_preset(preset)
  config = finetuning_config(preset)
  config.kind = "sft"
  config.steps = 1000
  config.batch_size = 64 if preset == "tiny" else 32
  config.optimizer.learning_rate = 1e-4 if preset == "tiny" else 2.5e-5  # LLaDA's own SFT; LoRA stands more
  config.optimizer.warmup_steps = 50
  return config
