"""What a recipe says of a model whose config.json names no special tokens and no length of blocks, in every command."""

import dataclasses
import json
import shutil

from block_folder import SAMPLED, write_block_folder
from commands import run_command
import jax
import pytest

import gdsd_jax
from gdsd_jax.huggingface.folder import load_config
from gdsd_jax.huggingface.published import architecture
from gdsd_jax.huggingface.tokenizer import decode_completions, load_tokenizer
from gdsd_jax.models.lora import add_adapter, LoraConfig
from gdsd_jax.parallel.mesh import make_mesh
from gdsd_jax.planning.plan import AbstractRun
from gdsd_jax.runs.chosen_model import ChosenModel
from gdsd_jax.runs.config_dict import base_config, run_config
from gdsd_jax.runs.export import write_model
from gdsd_jax.runs.model_config import ModelConfig

SAID = {"mask_token_id": 413, "eos_token_id": 409, "block_length": 2}  # of the embedded tokenizer; SDAR's own is 4
NAMES = ("mask_token_id", "eos_token_id", "pad_token_id", "block_size")


def silent(folder, *also):
  """The folder with files that name no mask token, no end of text and no length of blocks, nor the fields `also`."""
  for name, lost in {"config.json": (*NAMES, *also), "tokenizer_config.json": ("mask_token", "eos_token", "pad_token"),
                     "special_tokens_map.json": ("mask_token", "eos_token", "pad_token")}.items():
    if (folder / name).is_file():
      fields = json.loads((folder / name).read_text())
      (folder / name).write_text(json.dumps({key: value for key, value in fields.items() if key not in lost}))
  return folder


@pytest.fixture(scope="module")
def named(tmp_path_factory):
  """A folder whose config.json says it all."""
  return write_block_folder(tmp_path_factory.mktemp("named"), block_length=2)


@pytest.fixture(scope="module")
def folder(named, tmp_path_factory):
  return silent(shutil.copytree(named, tmp_path_factory.mktemp("silent") / "model"))


def recipe_of(folder, **said):
  config = base_config()
  config.update_from_flattened_dict({
    **SAMPLED, "sampler.block_length": 2, "eval.block_length": 2, "model.path": str(folder), "steps": 1,
    "group_size": 2, "prompts_per_step": 2, "eval.batch_size": 4, "eval.num_examples": 4,
    **{f"model.{name}": value for name, value in said.items()}})
  return config


def test_an_id_that_the_tokenizers_files_tell_otherwise_is_refused(named, tmp_path):
  folder = shutil.copytree(named, tmp_path / "model")
  fields = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps({key: fields[key] for key in fields if key not in NAMES[:3]}))
  assert load_config(folder).eos_token_id == 409
  with pytest.raises(ValueError, match=r"^model.eos_token_id: 7 is given, but .* says 409; leave the field out$"):
    load_config(folder, stated={"eos_token_id": 7})


def test_a_model_is_what_is_stated_of_it(named, folder):
  whole = load_config(named)
  assert (whole.mask_token_id, whole.eos_token_id, whole.block_length) == tuple(SAID.values())
  stated = {"mask_token_id": 413, "eos_token_id": 409, "block_size": 2}
  model = ModelConfig(str(folder), **SAID)
  assert model.stated == stated and model.architecture == whole
  assert load_config(folder, stated=stated) == architecture(str(folder), stated=stated) == whole
  assert ModelConfig(str(named), **SAID).architecture == whole  # said twice alike
  tokenizer = load_tokenizer(folder, whole)
  assert decode_completions(tokenizer, [[409, 5]]) == [""]


def test_the_card_of_an_adapter_says_it_again(folder, tmp_path):
  base, lora = ModelConfig(str(folder), **SAID), LoraConfig(rank=2)
  denoiser, params = gdsd_jax.load_pretrained(folder, stated=base.stated)
  denoiser, params = add_adapter(denoiser, params, lora, jax.random.key(0))
  write_model(tmp_path / "out", denoiser, params, dataclasses.replace(base, lora=lora))
  [command] = [line for line in (tmp_path / "out" / "README.md").read_text().splitlines() if "gdsd-evaluate" in line]
  assert command.split()[-3:] == [f"--config.model.{name}={value}" for name, value in SAID.items()]


def test_every_command_gets_it_from_the_recipe(folder):
  config = run_config(recipe_of(folder, **SAID))
  expected = tuple(SAID.values())
  ids = lambda model: (model.mask_token_id, model.eos_token_id, model.block_length)
  chosen, _ = ChosenModel().base(config.model)
  by_name, _ = ChosenModel(model=str(folder)).base(config.model)
  denoiser, _, _ = ChosenModel().load(config.model, None)
  assert {ids(chosen.architecture), ids(by_name.architecture), ids(denoiser.config)} == {expected}
  mesh = make_mesh()
  assert ids(AbstractRun(config, mesh).denoiser.config) == expected


def test_a_published_models_blocks_may_be_stated_where_its_files_name_none():
  assert architecture("inclusionAI/LLaDA2.0-mini").block_length == 32
  assert architecture("inclusionAI/LLaDA2.0-mini", stated={"block_size": 16}).block_length == 16
  with pytest.raises(ValueError, match="^model.block_length: 8 is given, but JetLM/SDAR-8B-Chat says 4; leave"):
    architecture("JetLM/SDAR-8B-Chat", stated={"block_size": 8})


@pytest.mark.parametrize("said, message", [
  ({"mask_token_id": 7}, "model.mask_token_id: 7 is given, but {}/config.json says 413; leave the field out"),
  ({"eos_token_id": 7}, "model.eos_token_id: 7 is given, but {}/config.json says 409; leave the field out"),
  ({"block_length": 4}, "model.block_length: 4 is given, but {}/config.json says 2; leave the field out"),
])
def test_what_contradicts_the_files_is_said_in_a_line(named, said, message):
  with pytest.raises(ValueError) as caught:
    _ = ModelConfig(str(named), **said).architecture
  assert str(caught.value) == message.format(named)


def test_what_contradicts_other_words_of_the_files_is_refused_too(goldens, tmp_path):
  fields = json.loads((goldens / "llada2_tiny" / "hf" / "config.json").read_text())
  (tmp_path / "config.json").write_text(json.dumps({**fields, "block_length": 8, "mask_token_id": 510,
                                                    "eos_token_id": [500, 501]}))
  assert ModelConfig(str(tmp_path), eos_token_id=500, block_length=8).architecture.block_length == 8
  for said in ({"block_length": 4}, {"eos_token_id": 501}):
    with pytest.raises(ValueError, match=f"^model.{next(iter(said))}: .* is given, but .*config.json says"):
      _ = ModelConfig(str(tmp_path), **said).architecture


@pytest.mark.parametrize("said, message", [
  ({}, "model.path: .*config.json: mask_token_id .151669. must lie in the vocabulary of 416"),
  ({"mask_token_id": 416, "eos_token_id": 1},
   "model.path: .*config.json with model.mask_token_id=416, model.eos_token_id=1: mask_token_id .416. must lie in"),
  ({"mask_token_id": 5, "eos_token_id": 5}, "model.path: .*eos_token_id is 5, which holds the mask token"),
  ({"mask_token_id": -1}, "model.mask_token_id: must be an integer of at least 0, not -1"),
  ({"block_length": 0}, "model.block_length: must be an integer of at least 1, not 0"),
])
def test_values_that_no_model_has_are_said_in_a_line(folder, said, message):
  with pytest.raises(ValueError, match=f"^{message}") as caught:
    _ = ModelConfig(str(folder), **said).architecture
  assert "\n" not in str(caught.value)


def test_a_family_without_ids_of_its_own_says_what_gives_them(tmp_path):
  gdsd_jax.save_pretrained(tmp_path, *gdsd_jax.load_pretrained("tiny"))
  silent(tmp_path)
  with pytest.raises(ValueError, match="lacks the field 'mask_token_id'; --config.model.mask_token_id can say it$"):
    load_config(tmp_path)
  model = ModelConfig(str(tmp_path), mask_token_id=413, eos_token_id=409)
  assert model.architecture == gdsd_jax.load_pretrained("tiny")[0].config
  with pytest.raises(ValueError, match="^model.block_length: 4 is given, but .* has none: all tokens of a model"):
    _ = ModelConfig(str(tmp_path), mask_token_id=413, eos_token_id=409, block_length=4).architecture


def test_only_what_config_json_may_lack_is_stated(folder):
  with pytest.raises(ValueError, match="^stated: 'hidden_size' is not one of mask_token_id, eos_token_id"):
    load_config(folder, stated={"hidden_size": 3})


@pytest.mark.slow
def test_a_run_its_evaluation_sample_and_export_know_what_was_stated_when_it_began(folder, tmp_path):
  flags = [f"--config.{path}={value}" for path, value in {
    **SAMPLED, "sampler.block_length": 2, "eval.block_length": 2, "model.path": folder, "steps": 1, "group_size": 4,
    "prompts_per_step": 2, "objective.num_iterations": 1, "eval.batch_size": 8, "eval.num_examples": 8,
    "eval.test_size": 8, **{f"model.{name}": value for name, value in SAID.items()}}.items()]
  run, out = f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'exported'}"

  def succeeds(command, *given):
    done = run_command(f"launch/{command}.py", *given)
    assert done.returncode == 0, done.stderr
    return done.stdout

  succeeds("train", "--config=configs/gdsd_math.py", run, *flags)
  assert "accuracy" in json.loads(succeeds("evaluate", run, f"--out={tmp_path / 'evaluated'}").splitlines()[-1])
  succeeds("sample", run, "--prompt=How many?")
  succeeds("export", run, out)
  fields = json.loads((tmp_path / "exported" / "config.json").read_text())
  assert (fields["mask_token_id"], fields["eos_token_id"], fields["block_size"]) == tuple(SAID.values())
  other = run_command("launch/train.py", "--config=configs/gdsd_math.py", run, *flags, "--config.model.eos_token_id=1")
  assert other.returncode != 0 and "model.eos_token_id: 409 → 1" in other.stderr
