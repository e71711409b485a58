"""What is in a folder that a model is written to: its own earlier export is replaced, and nothing else."""

import dataclasses
import json

import jax
import pytest

import gdsd_jax
from gdsd_jax.huggingface.origin import NAME
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.models.lora import LoraConfig
from gdsd_jax.runs.export import check_out, origin_of_run, write_model
from gdsd_jax.runs.model_config import ModelConfig
from gdsd_jax.supervised.pretraining import pretrain

TINY = ModelConfig(path="tiny")


@pytest.fixture(scope="module")
def model():
  return gdsd_jax.load_pretrained("tiny")


def export(out, workdir, model):
  check_out(out, workdir, TINY)
  write_model(out, *model, TINY, origin=origin_of_run(workdir, TINY))


def snapshot(folder):
  return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_a_run_replaces_its_own_export_and_no_other_does(tmp_path, model):
  out, run = tmp_path / "out", tmp_path / "run"
  export(out, run, model)
  (out / "README.md").write_text("my own words")
  export(out, run, model)
  assert (out / "README.md").read_text() == "my own words"
  before = snapshot(out)
  with pytest.raises(OSError) as caught:
    export(out, tmp_path / "other", model)
  assert str(caught.value) == f"--out: {out} holds the model of the run {run}; choose another folder"
  with pytest.raises(OSError, match="holds the model of the run"):
    check_out(out, run, dataclasses.replace(TINY, lora=LoraConfig(rank=2)))  # its adapter is something else
  with pytest.raises(OSError, match="holds the model of the run"):
    gdsd_jax.save_pretrained(out, *model)
  assert snapshot(out) == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints", "sweep.json", "generations.jsonl"])
def test_no_model_is_written_over_a_run_or_an_evaluation(tmp_path, model, name):
  (tmp_path / name).touch()
  (tmp_path / "config.json").write_text(json.dumps({"seed": 0}))
  before = snapshot(tmp_path)
  for write in (lambda: export(tmp_path, tmp_path / "run", model), lambda: gdsd_jax.save_pretrained(tmp_path, *model)):
    with pytest.raises(OSError, match=f"{tmp_path} holds a run or an evaluation \\({name}\\); choose another folder"):
      write()
  assert snapshot(tmp_path) == before


@pytest.mark.parametrize("names, shown", [(["notes.txt"], "notes.txt"), (list("edcba"), "a, b, c, …")])
def test_a_folder_with_other_files_is_refused(tmp_path, names, shown):
  for name in names:
    (tmp_path / name).touch()
  with pytest.raises(OSError) as caught:
    check_out(tmp_path, tmp_path / "run", TINY)
  assert str(caught.value) == f"--out: {tmp_path} holds other files ({shown}); choose an empty folder, or another one"


@pytest.mark.parametrize("names", [[], [".git", ".gitattributes"], ["README.md"], [".model.safetensors.incomplete"]])
def test_a_folder_in_which_nothing_is_lost_is_taken(tmp_path, names):
  for name in names:
    (tmp_path / name).touch()
  check_out(tmp_path, tmp_path / "run", TINY)


def test_a_program_replaces_what_it_saved_and_no_other_model(tmp_path, model):
  for _ in range(2):
    gdsd_jax.save_pretrained(tmp_path / "saved", *model)
  config = DenoiserConfig(
    vocab_size=64, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_size=48,
    rope_theta=10000.0, norm_epsilon=1e-5, max_positions=128, mask_token_id=60, eos_token_id=61, pad_token_id=61)
  other = gdsd_jax.Denoiser(config)
  before = snapshot(tmp_path / "saved")
  with pytest.raises(OSError, match="holds another model \\(config.json\\); choose another folder"):
    gdsd_jax.save_pretrained(tmp_path / "saved", other, other.init(jax.random.key(0)))
  assert snapshot(tmp_path / "saved") == before
  gdsd_jax.save_pretrained(tmp_path / "saved", *gdsd_jax.load_pretrained(tmp_path / "saved"))  # where it came from


def test_pretraining_is_refused_before_it_begins(tmp_path):
  (tmp_path / NAME).write_text("the model of the run elsewhere\n")
  with pytest.raises(OSError, match="holds the model of the run elsewhere"):
    pretrain(None, tmp_path / "run", tmp_path)
