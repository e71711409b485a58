"""A run whose objective, sampler and layout are the user's own: the examples, from flags to exported files."""

import dataclasses
import json
import zlib

from conftest import REPOSITORY
import jax
import numpy as np
import pytest

import gdsd_jax
from gdsd_jax.runs.export import export_run
from gdsd_jax.runs.files import read_rows

pytestmark = pytest.mark.usefixtures("quick_runs")
EXAMPLES = REPOSITORY / "examples"
LAYOUT = f"{EXAMPLES}/own_layout.py:GptNames"


def config(**changes):
  return gdsd_jax.load_config("gdsd_math:tiny", {
    "steps": 2, "group_size": 4, "prompts_per_step": 2, "sampler.completion_length": 8, "sampler.steps": 8,
    "sampler.block_length": 8, "objective.num_iterations": 2, "objective.num_mc": 1, "eval.every": 2,
    "eval.num_examples": 4, "eval.batch_size": 4, "eval.lengths": (8,), "eval.block_length": 8,
    "log.tensorboard": False,
    "objective.name": f"{EXAMPLES}/own_objective.py:TokenPPO", "objective.beta": 0.1,
    "sampler.kind": f"{EXAMPLES}/own_sampler.py:sliding_window", "sampler.window": 2,
    "masks.kind": "uniform", **changes})


def any_spread(completions, **columns):
  return [float(zlib.crc32(completion.encode()) % 7) for completion in completions]


@pytest.mark.slow
@pytest.mark.parametrize("fresh", [True, False])
def test_the_examples_train_resume_and_export(tmp_path, fresh):
  denoiser, params = gdsd_jax.load_pretrained("tiny")
  denoiser = dataclasses.replace(denoiser, config=dataclasses.replace(denoiser.config, family=LAYOUT))
  model = tmp_path / "model"
  gdsd_jax.save_pretrained(model, denoiser, params, tokenizer=gdsd_jax.load_tokenizer("tiny"))
  given = {"model.path": str(model), "model.layout": LAYOUT, "masks.fresh": fresh}
  gdsd_jax.Trainer(config(steps=1, **given), tmp_path / "run", rewards=[any_spread]).train()
  trainer = gdsd_jax.Trainer(config(**given), tmp_path / "run", rewards=[any_spread])
  trainer.train()
  rows = read_rows(tmp_path / "run" / "metrics.jsonl")
  assert [row["step"] for row in rows] == [0, 1, 2]
  assert all(np.isfinite(row["loss"]) and row["grad_norm"] > 0 and row["skipped"] == 0 for row in rows[1:]), rows
  assert all(row["kl"] > -1e-6 and 0 <= row["clip_fraction"] <= 1 for row in rows[1:]), rows
  saved = json.loads((tmp_path / "run" / "config.json").read_text())
  assert saved["sampler"]["window"] == 2 and saved["objective"]["beta"] == 0.1
  export_run(tmp_path / "run", "latest", tmp_path / "out", merged=False)
  assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "gpt_diffusion"
  _, exported = gdsd_jax.load_pretrained(tmp_path / "out", layout=LAYOUT)
  jax.tree.map(np.testing.assert_array_equal, exported, trainer.state.params)
  with pytest.raises(ValueError, match="sampler.window: 2 → 3"):
    gdsd_jax.Trainer(config(**given, **{"sampler.window": 3}), tmp_path / "run", rewards=[any_spread])


@pytest.mark.parametrize("changes, message", [
  ({"sampler.steps": 4}, "sampler.kind: .*own_sampler.py, line 17: ValueError: sampler.steps: must be comp"),
  ({"masks.kind": "sampler"}, "masks.kind: which states .*sliding_window visits is not known here"),
  ({"objective.psi": 0.1}, "objective.psi: .*TokenPPO has no such setting; it has epsilon, beta"),
  ({"model.layout": LAYOUT}, "model.layout: .*own_layout.py, line 25: KeyError: 'n_embd'"),
])
def test_what_does_not_fit_is_told_before_anything_is_compiled(tmp_path, monkeypatch, changes, message):
  monkeypatch.setattr("gdsd_jax.training.prepare.init_state", lambda *_: pytest.fail("it came so far"))
  with pytest.raises(ValueError, match=message):
    gdsd_jax.Trainer(config(**changes), tmp_path)
