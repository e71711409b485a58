"""Pretraining: what is written, and that a run which goes on ends as one that was never interrupted."""

import functools
import itertools
import json
import math

import pytest
import recipes

import gdsd_jax
from gdsd_jax.runs.files import read_rows
from gdsd_jax.runs.interruption import Interrupted, Interruption
from gdsd_jax.supervised.config import pretraining_config
from gdsd_jax.supervised.pretraining import pretrain
from gdsd_jax.tasks.sudoku import SudokuTask

pytestmark = pytest.mark.usefixtures("quick_runs")


def small_config():
  config = recipes.load("pretrain_tiny", "sudoku")
  config.update(steps=3, careless_after=1, batch_size=8, eval_every=2, eval_examples=8)
  config.log.tensorboard = False
  return pretraining_config(config)


@pytest.fixture(scope="module", autouse=True)
def few_problems():
  """The first of each split: to make tokens of all takes most of a short run's time."""
  examples = SudokuTask.examples
  few = functools.cache(lambda task, split: list(itertools.islice(examples(task, split), 200)))
  with pytest.MonkeyPatch.context() as monkeypatch:
    monkeypatch.setattr(SudokuTask, "examples", lambda task, split: few(task, split))
    yield


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  """(workdir, out) of three steps that nobody disturbs."""
  folder = tmp_path_factory.mktemp("straight")
  pretrain(small_config(), folder / "run", folder / "out")
  return folder / "run", folder / "out"


@pytest.mark.slow
def test_steps_and_evaluations_are_written_down(straight):
  workdir, _ = straight
  rows = read_rows(workdir / "metrics.jsonl")
  assert [row["step"] for row in rows] == [1, 2, 3]
  assert ["eval/accuracy" in row for row in rows] == [False, True, True]
  assert json.loads((workdir / "config.json").read_text())["batch_size"] == 8


@pytest.mark.slow
def test_the_model_loads(straight):
  denoiser, _ = gdsd_jax.load_pretrained(straight[1])
  assert denoiser.config.vocab_size == small_config().model.vocab_size


@pytest.mark.slow
def test_an_interrupted_run_resumes_bit_for_bit(straight, tmp_path, monkeypatch):
  workdir, out = straight
  with monkeypatch.context() as asked:
    asked.setattr(Interruption, "asked", lambda self: True)
    with pytest.raises(Interrupted, match="saved step 1 of 3"):
      pretrain(small_config(), tmp_path / "run", tmp_path / "out")
  assert not (tmp_path / "out").exists()
  for _ in range(2):  # the second time nothing is left to do but to write the model again
    pretrain(small_config(), tmp_path / "run", tmp_path / "out")
    assert read_rows(tmp_path / "run" / "metrics.jsonl") == read_rows(workdir / "metrics.jsonl")
    for file in out.glob("[!.]*"):
      assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


def test_the_runs_own_folder_is_refused_for_the_model(tmp_path):
  with pytest.raises(ValueError, match="--out: .* is the run's own folder"):
    pretrain(small_config(), tmp_path / "run", tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_block_causal_model_is_made_in_its_published_layout(tmp_path):
  config = recipes.load("pretrain_tiny", "sudoku")
  config.update(steps=2, careless_after=1, batch_size=8, eval_every=2, eval_examples=8)
  config.model.update(block_length=4, positions_skip_padding=True, qk_norm=True, family="sdar")
  config.sampler = {**config.sampler, "kind": "block", "cache": "exact", "block_length": 4}
  config.log.tensorboard = False
  pretrain(pretraining_config(config), tmp_path / "run", tmp_path / "out")
  assert math.isfinite(read_rows(tmp_path / "run" / "metrics.jsonl")[-1]["loss"])
  denoiser, _ = gdsd_jax.load_pretrained(tmp_path / "out")
  assert (denoiser.config.family, denoiser.config.block_length) == ("sdar", 4)
