"""Fine-tuning on preferences: which rows are read and how, what is learnt, how it resumes, and what bad rows say."""

import csv
import json

from conftest import load_recipe, only_devices, slow, without_times
import jax
import numpy as np
import pytest

import gdsd_jax
from gdsd_jax.huggingface.adapters import load_adapter
from gdsd_jax.huggingface.tokenizer import chat_prompt, load_tokenizer
from gdsd_jax.objectives.vrpo import Vrpo
from gdsd_jax.runs.config_dict import typed
from gdsd_jax.runs.files import read_rows
from gdsd_jax.runs.weights import load_run
from gdsd_jax.supervised.config import PreferenceConfig
from gdsd_jax.supervised.finetuning import finetune
from gdsd_jax.supervised.preference_rows import read_preferences
from gdsd_jax.supervised.preferences import PreferenceFinetuning
from gdsd_jax.tasks import preferences

pytestmark = pytest.mark.usefixtures("quick_runs")

SYSTEM, USER = {"role": "system", "content": "Add."}, {"role": "user", "content": "1 + 1"}
RIGHT, WRONG = {"role": "assistant", "content": "2"}, {"role": "assistant", "content": "3"}
TEXTS = {"prompt": "1 + 1", "chosen": "2", "rejected": "3"}


def recipe(source=None, **changes):
  config = load_recipe("vrpo").get_config("tiny")
  small = {"steps": 4, "batch_size": 4, "checkpoint.every": 100, "data.prompt_buckets": (36,), "eval.every": 100,
           "data.completion_buckets": (16,), "log.tensorboard": False, "log.plot_seconds": 1000.0,
           "objective.num_mc": 2, "data.validation_size": 0}
  config.update_from_flattened_dict(small)
  if source is not None:
    config.data.train_source = str(source)
  config.update_from_flattened_dict(changes)
  return config


def config_of(source=None, **changes):
  return typed(PreferenceConfig, recipe(source, **changes))


@pytest.fixture(scope="module")
def tokenizer():
  denoiser, _ = gdsd_jax.load_pretrained("tiny")
  return load_tokenizer("tiny", denoiser.config)


# The formats of TRL's documentation (Dataset formats: preference), UltraFeedback's and ShareGPT's.
@pytest.mark.parametrize("row, prompt", [
  (TEXTS, [USER]),
  ({"prompt": [SYSTEM, USER], "chosen": [RIGHT], "rejected": [WRONG]}, [SYSTEM, USER]),
  ({"prompt": [SYSTEM, USER], "chosen": "2", "rejected": "3"}, [SYSTEM, USER]),
  ({"prompt": "1 + 1", "chosen": [RIGHT], "rejected": [WRONG]}, [USER]),
  ({"chosen": [SYSTEM, USER, RIGHT], "rejected": [SYSTEM, USER, WRONG]}, [SYSTEM, USER]),
  ({"chosen": [USER, WRONG, USER, RIGHT], "rejected": [USER, WRONG, USER, WRONG]}, [USER, WRONG, USER]),
  ({"prompt": None, "chosen": [USER, RIGHT], "rejected": [USER, WRONG]}, [USER]),
  ({"prompt": "1 + 1", "chosen": [USER, RIGHT], "rejected": [USER, WRONG], "score_chosen": 9.0}, [USER]),
  ({"conversations": [{"from": "human", "value": "1 + 1"}], "chosen": {"from": "gpt", "value": "2"},
    "rejected": {"from": "gpt", "value": "3"}}, [USER]),
  ({"question": "1 + 1", "chosen": "2", "rejected": "3"}, [USER]),
])
def test_rows_of_every_layout_are_read(tmp_path, tokenizer, row, prompt):
  (tmp_path / "pairs.jsonl").write_text(json.dumps(row))
  columns = "prompt=question" if "question" in row else None
  config = config_of(tmp_path / "pairs.jsonl", **{"data.columns": columns})
  ([found], too_long), validation = read_preferences(config.data, tokenizer)
  assert tokenizer.decode(found.prompt) == chat_prompt(tokenizer, prompt)
  assert tokenizer.decode(found.chosen) == "2<|eot_id|>" and tokenizer.decode(found.rejected) == "3<|eot_id|>"
  assert too_long == 0 and validation is None


@pytest.mark.parametrize("ending", ["csv", "json", slow("parquet")])
def test_preferences_are_read_from_files_of_every_kind(tmp_path, tokenizer, ending):
  file, rows = tmp_path / f"pairs.{ending}", [TEXTS, {**TEXTS, "rejected": "4, or\n5"}]
  if ending == "csv":
    with file.open("w", newline="") as opened:
      writer = csv.DictWriter(opened, TEXTS)
      writer.writeheader()
      writer.writerows(rows)
  elif ending == "json":
    file.write_text(json.dumps(rows))
  else:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), file)
  (found, _), _ = read_preferences(config_of(file).data, tokenizer)
  assert [tokenizer.decode(each.rejected).removesuffix("<|eot_id|>") for each in found] == [
    row["rejected"] for row in rows]


@pytest.mark.parametrize("row, message", [
  ("not json", "line 2: not JSON"),
  ({"prompt": "1 + 1", "chosen": "2"}, "line 2: no column 'rejected', it has 'prompt', 'chosen'"),
  ({"chosen": "2", "rejected": "3"}, "line 2: `chosen`: a reply alone needs a column `prompt`"),
  ({"chosen": [RIGHT], "rejected": [WRONG]}, "line 2: `chosen`: a reply alone needs a column `prompt`"),
  ({**TEXTS, "rejected": None}, "line 2: `rejected`: column 'rejected' must be text or a list of turns, not None"),
  ({**TEXTS, "chosen": 2}, "line 2: `chosen`: column 'chosen' must be text or a list of turns, not 2"),
  ({**TEXTS, "prompt": 5}, "line 2: `chosen`: column 'prompt' must be text or a list of turns, not 5"),
  ({**TEXTS, "rejected": "2"}, "line 2: `chosen` and `rejected` are the same"),
  ({**TEXTS, "rejected": []}, "line 2: `rejected`: the last turn must be the assistant's, not of 'user'"),
  ({"chosen": [], "rejected": []}, "line 2: `chosen`: a reply alone needs a column `prompt`"),
  ({**TEXTS, "rejected": "<|mdm_mask|>"}, "line 2: `rejected`: .*mdm_mask"),
  ({"chosen": [USER, RIGHT], "rejected": [SYSTEM, USER, WRONG]}, "line 2: .*same chat up to the assistant's last turn"),
  ({"chosen": [USER, RIGHT], "rejected": [USER]}, "line 2: `rejected`: the last turn must be the assistant's"),
  ({"prompt": [USER], "chosen": [USER, RIGHT], "rejected": [USER, WRONG]},
   "line 2: `chosen`: the chat begins in `prompt`, and must go on with the assistant's turn"),
  ({"chosen": [USER, {"role": "assistant"}], "rejected": [USER, WRONG]}, "line 2: `chosen`: .*`role` and `content`"),
])
def test_bad_rows_are_named_by_file_and_line(tmp_path, tokenizer, row, message):
  path = tmp_path / "pairs.jsonl"
  path.write_text(json.dumps(TEXTS) + "\n" + (row if isinstance(row, str) else json.dumps(row)) + "\n")
  with pytest.raises(ValueError, match=f"data.train_source: .*{message}") as raised:
    read_preferences(config_of(path).data, tokenizer)
  assert str(path) in str(raised.value) and "\n" not in str(raised.value)
  (found, _), _ = read_preferences(config_of(path, **{"data.bad_rows": "skip"}).data, tokenizer)
  assert len(found) == 1


@pytest.mark.parametrize("changes, message", [
  ({"data.train_source": None}, "data.train_source: name a source of preferences, whose rows have `chosen` and"),
  ({"objective.beta": 0.0}, "objective.beta: must be positive, not 0.0"),
  ({"objective.num_mc": 0}, "objective.num_mc: must lie between 1 and 1024, not 0"),
  ({"objective.psi": 0.04}, "--config.objective.psi: the config has no field 'objective.psi'"),
  ({"optimizer.accumulation": 3}, "optimizer.accumulation: 3 must divide batch_size, 4"),
  ({"data.validation_size": 480}, "data.validation_size: 480 of the 480 preferences leave none to learn"),
  ({"data.completion_buckets": (8,)}, "none of the 480 preferences fits 36 and 8 tokens"),
  ({"mesh.data": 8}, "batch_size / optimizer.accumulation: 4 preferences cannot be split over mesh.data"),
])
def test_bad_fields_are_named_before_anything_is_written(tmp_path, changes, message):
  config = recipe()
  [(name, value)] = changes.items()
  section, _, field = name.rpartition(".")
  with config[section].ignore_type():
    config[section][field] = value
  with only_devices(8 if section == "mesh" else 1), pytest.raises((ValueError, OSError), match=message):
    run(typed(PreferenceConfig, config), tmp_path)
  assert not (tmp_path / "out").exists() and not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("preset, model", [
  ("llada_8b", "GSAI-ML/LLaDA-8B-Instruct"), ("dream_7b", "Dream-org/Dream-v0-Instruct-7B"),
])
def test_the_published_recipe_has_the_papers_numbers(preset, model):
  """arXiv 2505.19223: beta 0.2, eight time steps with a mask each, all weights, 5e-7."""
  recipe = load_recipe("vrpo").get_config(preset)
  recipe.data.train_source = "pairs.jsonl"
  config = typed(PreferenceConfig, recipe)
  assert config.model.path == model and config.model.lora is None and config.model.dtype == "bfloat16"
  assert config.objective == Vrpo(beta=0.2, per_token=False, truncated=False) and config.views.num_mc == 8
  assert config.optimizer.learning_rate == 5e-7 and config.batch_size == 64


def test_the_embedded_rows_are_what_their_script_makes():
  rows = [json.loads(line) for line in preferences.FILE.read_text().splitlines()]
  assert rows == preferences.preferences()
  assert all(row["chosen"] != row["rejected"] and len(row["chosen"]) == len(row["rejected"]) for row in rows)


def run(config, tmp_path):
  finetune(config, tmp_path / "run", tmp_path / "out", kind=PreferenceFinetuning)
  return without_times(read_rows(tmp_path / "run" / "metrics.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize("truncated", [False, True])
def test_margins_are_those_of_likelihood_bounds_in_shared_views(tmp_path, truncated):
  """−log σ(β [(ℓ − ℓ_ref)_chosen − (ℓ − ℓ_ref)_rejected]) in float64, from logits of the same partly masked inputs."""
  config = config_of(None, **{"objective.truncated": truncated, "optimizer.learning_rate": 1e-3})
  training = PreferenceFinetuning(config, tmp_path / "run", tmp_path / "out")
  training.step(1, gdsd_jax.runs.metrics.Stopwatch())
  pairs = training.stream.examples[:3]
  scoring, scored = training._scored(pairs, jax.random.key(5))
  tokens, masks = np.asarray(scoring.tokens), np.asarray(scored.views.masks)
  lengths = np.array([len(reply) for pair in pairs for reply in (pair.chosen, pair.rejected)])
  real = np.arange(16) < (lengths if truncated else np.full(6, 16))[:, None]
  attended = np.asarray(scoring.attention_mask)
  assert (attended[:, 36:] == real).all() and not (masks & ~real[:, None]).any()
  bounds = {}
  for name, params in (("student", training.state.student_params), ("ref", training.state.reference_params)):
    bounds[name] = np.zeros(6)
    for view in range(2):
      noised = tokens.copy()
      noised[:, 36:][masks[:, view]] = training.denoiser.config.mask_token_id
      logits = np.asarray(jax.jit(training.denoiser.apply)(params, noised, attended), np.float64)[:, 36:]
      log_prob = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
      of_tokens = np.take_along_axis(log_prob, tokens[:, 36:, None], -1)[..., 0]
      share = real.sum(1) / masks[:, view].sum(1)
      bounds[name] += share * (of_tokens * masks[:, view]).sum(1) / 2
  gains = (bounds["student"] - bounds["ref"]).reshape(3, 2)
  margins = gains[:, 0] - gains[:, 1]
  assert np.abs(margins).min() > 1e-3
  np.testing.assert_allclose(config.objective.margins(scored), margins, atol=2e-4)
  sums, count = training.validate(pairs[:2], 4, jax.random.key(5))  # two that count, and two that fill up
  assert count == 2 and set(sums) == {"loss", "margin", "preference_accuracy"}


@pytest.mark.slow
def test_the_margin_rises_on_pairs_that_are_not_learnt_and_an_adapter_is_written(tmp_path):
  config = config_of(None, **{
    "steps": 24, "batch_size": 16, "objective.num_mc": 4, "model.lora.rank": 8, "optimizer.learning_rate": 3e-4,
    "data.validation_size": 64, "eval.every": 12})
  rows = run(config, tmp_path)
  told = {row["step"]: row for row in rows if "eval/loss" in row}
  assert list(told) == [0, 12, 24]
  assert told[0]["eval/loss"] == pytest.approx(np.log(2)) and told[0]["eval/margin"] == 0
  margins = [row["eval/margin"] for row in told.values()]
  assert 0.2 < margins[1] < margins[2] and told[24]["eval/loss"] < 0.64 and told[24]["eval/preference_accuracy"] > 0.65
  assert rows[1]["loss"] == pytest.approx(np.log(2)) and "skipped" not in rows[1]
  base, params = gdsd_jax.load_pretrained("tiny")
  _, adapted = load_adapter(tmp_path / "out", base, params)
  jax.tree.map(np.testing.assert_array_equal, adapted["lora"], load_run(tmp_path / "run", "latest")[1]["lora"])


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 4])
def test_a_resumed_run_is_the_undisturbed_one(tmp_path, rank):
  changes = {"model.lora.rank": rank, "model.lora.dropout": 0.1, "data.validation_size": 8, "eval.every": 2}
  expected = run(config_of(None, **changes), tmp_path / "straight")
  run(config_of(None, steps=2, **changes), tmp_path / "resumed")
  assert run(config_of(None, **changes), tmp_path / "resumed") == expected
  states = [load_run(tmp_path / name / "run", "latest")[1] for name in ("straight", "resumed")]
  jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.slow
@pytest.mark.parametrize("devices, changes", [
  (1, {"optimizer.accumulation": 2}), (8, {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}),
  (2, {"mesh.data": 1, "mesh.fsdp": 2, "optimizer.accumulation": 2, "model.lora.rank": 4,
       "model.lora.dropout": 0.0}),  # each microbatch drops others
])
def test_meshes_and_microbatches_leave_the_numbers_as_they_are(tmp_path, devices, changes):
  alone = {name: value for name, value in changes.items() if name.startswith("model.lora.")}
  rows = run(config_of(None, steps=3, **alone), tmp_path / "one")
  with only_devices(devices):
    others = run(config_of(None, steps=3, **changes), tmp_path / "other")
  for row, other in zip(rows, others, strict=True):
    assert row.keys() == other.keys()
    for name in ("loss", "margin", "grad_norm"):
      assert other.get(name) == pytest.approx(row.get(name), rel=1e-3, abs=1e-4)
