"""What the tests of the tiny recipes share."""

from conftest import load_recipe
import jax
import numpy as np

import gdsd_jax
from gdsd_jax.generation.rollout import RolloutSampler
from gdsd_jax.huggingface.folder import resolve_path
from gdsd_jax.huggingface.tokenizer import load_tokenizer
from gdsd_jax.runs.config_dict import run_config
from gdsd_jax.runs.files import read_rows
from gdsd_jax.supervised.pretraining import END_OF_TURN
from gdsd_jax.tasks import get_task
from gdsd_jax.training.trainer import Trainer


def load(name: str, *preset: str):
  """Config of the recipe configs/NAME.py."""
  return load_recipe(name).get_config(*preset)


def check_embedded_model(config) -> None:
  """The model is small, and prompts and solutions of the task have room."""
  config = run_config(config)
  folder = resolve_path(config.model.path)
  assert sum(file.stat().st_size for file in folder.iterdir()) <= 1.8e6
  denoiser, params = gdsd_jax.load_pretrained(config.model.path)
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) < 1e6
  tokenizer, task = load_tokenizer(folder, denoiser.config), get_task(config.task.name, **config.task.options)
  sampler = RolloutSampler(denoiser, tokenizer, task, config.sampler, config.rollouts.prompt_buckets)
  examples = [*task.examples("train")[:500], *task.examples("test")]
  assert sampler.prompt_lengths(sampler.prompts(examples)).max() <= sampler.prompt_buckets[-1]
  solutions = [task.solution(example) + END_OF_TURN for example in examples]
  lengths = [len(ids) for ids in tokenizer(solutions, add_special_tokens=False)["input_ids"]]
  assert max(lengths) <= config.sampler.completion_length


def check_runs(config, workdir) -> None:
  """Two steps of the recipe run, with fewer rollouts and updates, and rewards come out."""
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict({
    "steps": 2, "prompts_per_step": 1, "objective.num_iterations": 1, "sampler.steps": 4, "eval.num_examples": 8,
    "eval.batch_size": 8, "log.tensorboard": False, "log.plot_seconds": 1000.0,
  })
  Trainer(run_config(config), workdir).train()
  rows = read_rows(workdir / "metrics.jsonl")
  assert [row["step"] for row in rows] == [0, 1, 2] and all(np.isfinite(row["loss"]) for row in rows[1:])
