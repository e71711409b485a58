"""RL post-training of masked diffusion language models by Guided Denoiser Self-Distillation (arXiv 2605.29398)."""

import importlib

__version__ = "0.1.0"

# Loaded on first use, so that host-side code (tasks, rewards) starts without JAX.
_PUBLIC = {
  "Denoiser": "gdsd_jax.models.denoiser",
  "DenoiserConfig": "gdsd_jax.models.config",
  "Layout": "gdsd_jax.huggingface.layouts",
  "weight_names": "gdsd_jax.huggingface.layouts",
  "load_pretrained": "gdsd_jax.huggingface.weights",
  "save_pretrained": "gdsd_jax.huggingface.weights",
  "QuantizeConfig": "gdsd_jax.models.quantised",
  "Rollout": "gdsd_jax.diffusion.config",
  "SamplerConfig": "gdsd_jax.diffusion.config",
  "sample": "gdsd_jax.diffusion.blockwise",
  "replay": "gdsd_jax.diffusion.replay",
  "consistent_masks": "gdsd_jax.diffusion.forward",
  "Objective": "gdsd_jax.objectives.objective",
  "ScoredRollouts": "gdsd_jax.objectives.objective",
  "Scoring": "gdsd_jax.objectives.token_scores",
  "Views": "gdsd_jax.objectives.views",
  "Scores": "gdsd_jax.objectives.scores",
  "sequence_scores": "gdsd_jax.objectives.scores",
  "leave_one_out_advantages": "gdsd_jax.objectives.advantages",
  "teacher_scores": "gdsd_jax.objectives.gdsd",
  "gdsd_loss": "gdsd_jax.objectives.gdsd",
  "espo_loss": "gdsd_jax.objectives.espo",
  "get_task": "gdsd_jax.tasks",
  "Trainer": "gdsd_jax.training.trainer",
  "Callback": "gdsd_jax.training.callbacks",
  "load_config": "gdsd_jax.runs.given",
  "log_to_stdout": "gdsd_jax.runs.metrics",
  "load_tokenizer": "gdsd_jax.huggingface.tokenizer",
  "chat_prompt": "gdsd_jax.huggingface.tokenizer",
  "encode_prompts": "gdsd_jax.huggingface.tokenizer",
  "decode_completions": "gdsd_jax.huggingface.tokenizer",
  "Task": "gdsd_jax.tasks.base",
  "Grade": "gdsd_jax.tasks.base",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
  if name not in _PUBLIC:
    raise AttributeError(f"module 'gdsd_jax' has no attribute {name!r}")
  return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__():
  return [*globals(), *_PUBLIC]
