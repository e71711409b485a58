"""Fine-tuning of block-causal models: the loss against their authors' training code, and a run."""

from block_folder import write_block_folder
from check_models import read
import numpy as np
import pytest
from test_finetuning import chats_file, sft_config  # noqa: F401  (a fixture)
from test_preferences import config_of

import gdsd_jax
from gdsd_jax.objectives.masked_cross_entropy import cross_entropy_of
from gdsd_jax.runs.files import read_rows
from gdsd_jax.supervised.finetuning import finetune
from gdsd_jax.supervised.preferences import PreferenceFinetuning

pytestmark = pytest.mark.usefixtures("quick_runs")


@pytest.mark.slow
@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("family", ["sdar", "llada2"])
def test_the_loss_is_that_of_the_authors_training_code(goldens, family, padding):
  """Of a sample that is not packed: Σ −log p / t over masked tokens, by the recorded log-probabilities of these."""
  golden = read(goldens / f"{family}_tiny")
  data, train = golden.data, golden.meta["train"]
  prompt = train["samples"][0][0]["prompt_length"] if "samples" in train else train["prompt_lengths"][0]
  row = lambda name: data[f"train/{name}"][:1]
  rate = row("noise_rate")[:, :1] if "train/noise_rate" in data else np.full((1, 1), 0.5, np.float32)
  left = lambda x: np.pad(x, [(0, 0), (padding, 0)])
  maskable = np.arange(row("input_ids").shape[1])[None] >= prompt
  loss, metrics = cross_entropy_of(
    golden.denoiser, golden.params, rate, left(row("masked")), left(row("input_ids")), left(maskable),
    left(np.ones(maskable.shape, bool)), prompt + padding, with_load=family == "llada2")
  if family == "llada2":
    np.testing.assert_allclose(np.sum(metrics["load"].chosen, axis=-1), np.ones(2), rtol=1e-5)
  logp = row("logp")[row("masked")]
  assert float(loss) == pytest.approx(-logp.sum() / rate[0, 0] / maskable.sum(), rel=1e-5)
  assert 0 <= float(metrics["masked_accuracy"]) <= 1


@pytest.mark.slow
def test_a_run_learns_and_writes_a_model_of_its_family(chats_file, tmp_path):  # noqa: F811
  folder = write_block_folder(tmp_path / "model")
  config = sft_config(chats_file, **{
    "model.path": str(folder), "steps": 30, "optimizer.learning_rate": 1e-2, "data.validation_size": 16,
    "eval.every": 30, "log.every": 1})
  finetune(config, tmp_path / "run", tmp_path / "out")
  rows = read_rows(tmp_path / "run" / "metrics.jsonl")
  assert rows[-1]["eval/loss"] < rows[0]["eval/loss"] - 0.5
  denoiser, _ = gdsd_jax.load_pretrained(tmp_path / "out")
  assert (denoiser.config.family, denoiser.config.block_length) == ("sdar", 4)


@pytest.mark.slow
def test_preferences_are_learnt_too(tmp_path):
  config = config_of(**{"model.path": str(write_block_folder(tmp_path / "model")), "steps": 1, "log.every": 1})
  finetune(config, tmp_path / "run", tmp_path / "out", kind=PreferenceFinetuning)
  row = read_rows(tmp_path / "run" / "metrics.jsonl")[-1]
  assert row["margin"] == 0 and row["grad_norm"] > 0  # student and reference are one model at first
