"""Supervised fine-tuning on chats: what is learnt, what is written, how it resumes, and what bad data says."""

import importlib.machinery
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
import types

from conftest import load_recipe, REPOSITORY, without_times
import jax
import numpy as np
import pytest

import gdsd_jax
from gdsd_jax.huggingface.adapters import load_adapter
from gdsd_jax.huggingface.folder import resolve_path
from gdsd_jax.huggingface.tokenizer import load_tokenizer
from gdsd_jax.models.lora import merge
from gdsd_jax.objectives.masked_cross_entropy import masked_cross_entropy
from gdsd_jax.runs.config_dict import typed
from gdsd_jax.runs.digits import significant
from gdsd_jax.runs.files import read_rows
from gdsd_jax.runs.metrics import Stopwatch
from gdsd_jax.runs.weights import load_run
from gdsd_jax.supervised import finetuning
from gdsd_jax.supervised.chats import batch_of, read_chats
from gdsd_jax.supervised.config import FinetuningConfig
from gdsd_jax.supervised.finetuning import finetune
from gdsd_jax.tasks.arithmetic import ArithmeticTask

pytestmark = pytest.mark.usefixtures("quick_runs")


@pytest.fixture(scope="module")
def chats_file(tmp_path_factory):
  task = ArithmeticTask()
  examples = task.examples("train")
  reply = lambda example: {"role": "assistant", "content": f"<answer>{example['answer']}</answer>"}
  rows = [{"messages": [*task.messages(example), reply(example)]} for example in (examples[i] for i in range(64))]
  path = tmp_path_factory.mktemp("data") / "chats.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def sft_recipe(source, **changes):
  config = load_recipe("sft").get_config("tiny")
  config.data.train_source = str(source)
  small = {"steps": 6, "batch_size": 8, "checkpoint.every": 100, "data.prompt_buckets": (36,),
           "data.completion_buckets": (16,), "optimizer.warmup_steps": 0, "optimizer.learning_rate": 1e-3,
           "log.tensorboard": False, "log.plot_seconds": 1000.0}
  config.update_from_flattened_dict({**small, **changes})
  return config


def sft_config(source, **changes):
  return typed(FinetuningConfig, sft_recipe(source, **changes))


@pytest.fixture(scope="module")
def tokenizer():
  denoiser, _ = gdsd_jax.load_pretrained("tiny")
  return load_tokenizer("tiny", denoiser.config)


def test_the_completion_is_the_last_turn_and_its_end(chats_file, tokenizer):
  (chats, left_out), validation = read_chats(sft_config(chats_file).data, tokenizer)
  assert len(chats) == 64 and left_out == 0 and validation is None
  message = json.loads(chats_file.read_text().splitlines()[0])["messages"]
  assert tokenizer.decode(chats[0].completion) == message[1]["content"] + "<|eot_id|>"
  assert tokenizer.decode(chats[0].prompt).endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")


USER, REPLY = {"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "2"}
SYSTEM = {"role": "system", "content": "Add."}


@pytest.mark.parametrize("row, messages", [
  ({"prompt": "1 + 1", "completion": "2"}, [USER, REPLY]),
  ({"prompt": [SYSTEM, USER], "completion": [REPLY]}, [SYSTEM, USER, REPLY]),
  ({"prompt": [SYSTEM, USER], "completion": "2"}, [SYSTEM, USER, REPLY]),
  ({"conversations": [{"from": "human", "value": "1 + 1"}, {"from": "gpt", "value": "2"}]}, [USER, REPLY]),
  ({"id": 7, "conversations": [{"from": "system", "value": "Add."}, {"from": "user", "value": "1 + 1"},
                               {"from": "assistant", "value": "2"}]}, [SYSTEM, USER, REPLY]),
  ({"conversations": [SYSTEM, USER, {**REPLY, "from": None}]}, [SYSTEM, USER, REPLY]),
  ({"dialogue": [USER, REPLY]}, [USER, REPLY]),
])
def test_rows_of_other_layouts_are_the_same_chats(tmp_path, tokenizer, row, messages):
  read = []
  for name, content in (("row", row), ("messages", {"messages": messages})):
    (tmp_path / f"{name}.jsonl").write_text(json.dumps(content))
    columns = "messages=dialogue" if "dialogue" in content else None
    read.append(read_chats(sft_config(tmp_path / f"{name}.jsonl", **{"data.columns": columns}).data, tokenizer))
  assert read[0] == read[1]


def test_bad_chats_are_skipped_when_asked(chats_file, tokenizer, tmp_path):
  (tmp_path / "chats.jsonl").write_text("no json\n" + chats_file.read_text() + '{"messages": []}\n')
  config = sft_config(tmp_path / "chats.jsonl", **{"data.bad_rows": "skip"})
  assert read_chats(config.data, tokenizer) == read_chats(sft_config(chats_file).data, tokenizer)


def test_validation_chats_are_the_last_ones_or_of_a_source_of_their_own(chats_file, tokenizer, tmp_path):
  (everything, _), _ = read_chats(sft_config(chats_file).data, tokenizer)
  (train, _), (validation, _) = read_chats(sft_config(chats_file, **{"data.validation_size": 10}).data, tokenizer)
  assert train == everything[:-10] and validation == everything[-10:]
  source = {"data.validation_source": f"{chats_file}#train[-10:]"}
  (train, _), again = read_chats(sft_config(f"{chats_file}#[:54]", **source).data, tokenizer)
  assert train == everything[:-10] and again.fitting == validation


def test_what_a_chat_has_that_the_template_leaves_out_is_told(tmp_path, tokenizer, caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger("gdsd_jax"), "propagate", True)
  called = {**REPLY, "tool_calls": [{"name": "add"}], "reasoning_content": None}
  rows = [{"messages": [USER, REPLY], "tools": "[]"}, {"messages": [USER, called], "tools": [{"name": "add"}]}]
  (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  read_chats(sft_config(tmp_path / "chats.jsonl").data, tokenizer)
  assert ("data.train_source: the model is shown nothing of what some of the 2 chats have beside their words:"
          " `tool_calls` (1), `tools` (1)") in caplog.text
  caplog.clear()
  monkeypatch.setattr(tokenizer, "chat_template", tokenizer.chat_template.replace(
    "message['content'] | trim", "('7' if message.tool_calls else '') + message['content'] | trim"))
  (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": [USER, called]}) + "\n")
  read_chats(sft_config(tmp_path / "chats.jsonl").data, tokenizer)
  assert "beside their words" not in caplog.text


def test_validation_chats_that_are_learnt_too_are_told(chats_file, tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger("gdsd_jax"), "propagate", True)
  config = sft_config(f"{chats_file}#[:60]", **{"data.validation_source": f"{chats_file}#[-7:]"})
  finetuning.Finetuning(config, tmp_path / "run", tmp_path / "out")
  assert re.search("WARNING: 3 of the 7 validation chats are trained on, too, .* data.validation_source", caplog.text)


@pytest.mark.slow
def test_chats_that_fill_up_a_batch_do_not_count_in_the_validation_loss(chats_file, tmp_path):
  """Of 11 chats in batches of 8, the loss is the mean over all tokens of the 8 and the 3."""
  config = sft_config(chats_file, **{"data.validation_size": 11})
  run = finetuning.Finetuning(config, tmp_path / "run", tmp_path / "out")
  loss = run.evaluation(0, Stopwatch())["eval/loss"]
  chats, keys = run.validation.fitting, jax.random.split(jax.random.key(config.seed), 11)
  eos, total = run.denoiser.config.eos_token_id, 0.0
  for start in (0, 8):
    filled = (chats[start:] + [chats[start]] * 8)[:8]
    *batch, width = batch_of(filled, (36,), (16,), eos, eos)
    batch[1][11 - start:] = False
    mean, _ = masked_cross_entropy(run.denoiser, run.state.student_params, keys[start], *batch)
    total += float(mean) * batch[1].sum()
  assert loss == pytest.approx(total / (11 * 16), rel=1e-5)


def test_only_completions_diffuse_and_padding_is_not_attended_to(chats_file, tokenizer):
  (chats, _), _ = read_chats(sft_config(chats_file).data, tokenizer)
  eos = tokenizer.eos_token_id
  tokens, maskable, attention_mask, width = batch_of(chats[:4], (36,), (16,), eos, eos)
  assert width == 36 and tokens.shape == (4, 52)
  assert not maskable[:, :36].any() and maskable[:, 36:].all()
  for row, chat in enumerate(chats[:4]):
    assert attention_mask[row].sum() == len(chat.prompt) + 16
    assert tokens[row, 36:].tolist() == chat.completion + [eos] * (16 - len(chat.completion))


@pytest.fixture
def wandb(monkeypatch):
  """In the place of W&B's package, what it was told: `init` once, and rows by their step."""
  module = types.ModuleType("wandb")
  module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
  module.rows, module.finished = {}, []
  module.init = lambda **told: (vars(module).update(told=told), module)[1]
  module.log = lambda numbers, step: module.rows.update({step: numbers})
  module.finish = lambda: module.finished.append(True)
  monkeypatch.setitem(sys.modules, "wandb", module)
  monkeypatch.setenv("WANDB_API_KEY", "a key")
  return module


def test_lora_fine_tuning_learns_tells_the_validation_loss_and_writes_an_adapter(chats_file, tmp_path, caplog, wandb):
  caplog.set_level("INFO", "gdsd_jax")
  changes = {"steps": 30, "model.lora.rank": 8, "optimizer.learning_rate": 3e-3, "optimizer.schedule": "cosine",
             "optimizer.final_share": 0.5, "log.wandb_project": "mine", "data.validation_size": 8, "eval.every": 20,
             "log.tensorboard": True}
  finetune(sft_config(chats_file, **changes), tmp_path / "run", tmp_path / "out")
  rows = read_rows(tmp_path / "run" / "metrics.jsonl")
  losses = {row["step"]: row["eval/loss"] for row in rows if "eval/loss" in row}
  assert list(losses) == [0, 20, 30] and losses[30] < 0.6 * losses[0]
  assert f"evaluation after step 30: loss {significant(losses[30])}" in caplog.messages
  assert {"loss", "seconds/step", "seconds/update", "seconds/evaluate"} <= rows[-1].keys()
  rates = [3e-3 * (0.75 + 0.25 * np.cos(np.pi * step / 30)) for step in range(30)]
  assert [row["learning_rate"] for row in rows if row["step"] > 0] == pytest.approx(rates, rel=1e-5)
  assert wandb.told["project"] == "mine" and wandb.told["config"]["kind"] == "sft" and wandb.finished == [True]
  assert [{"step": step, **numbers} for step, numbers in wandb.rows.items()] == rows
  (events,) = (tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*")
  assert all(name.encode() in events.read_bytes() for name in ("loss", "masked_accuracy", "learning_rate"))
  loss = [row["loss"] for row in rows if row["step"] > 0]
  assert np.mean(loss[-8:]) < 0.5 * np.mean(loss[:8])  # answers without the reasoning that the model is used to
  base, params = gdsd_jax.load_pretrained("tiny")
  denoiser, adapted = load_adapter(tmp_path / "out", base, params)
  _, from_run = load_run(tmp_path / "run", "latest")
  for saved, kept in zip(jax.tree.leaves(adapted["lora"]), jax.tree.leaves(from_run["lora"])):
    np.testing.assert_array_equal(saved, kept)
  assert np.abs(merge(adapted, denoiser.lora)["blocks"]["query"] - params["blocks"]["query"]).max() > 0


def command(source, tmp_path, *arguments):
  fields = {"data.train_source": source, "steps": 6, "batch_size": 8, "checkpoint.every": 1,
            "data.prompt_buckets": "(36,)", "data.completion_buckets": "(16,)"}
  return [sys.executable, "launch/pretrain.py", "--config=configs/sft.py", f"--out={tmp_path / 'out'}",
          *(f"--config.{name}={value}" for name, value in fields.items()), *arguments]


def run(source, tmp_path, *arguments):
  return subprocess.run(command(source, tmp_path, *arguments), cwd=REPOSITORY, capture_output=True, text=True,
                        timeout=300, env={**os.environ, "JAX_PLATFORMS": "cpu"})


@pytest.mark.slow
def test_a_killed_run_ends_as_an_undisturbed_one(chats_file, tmp_path):
  straight, killed = tmp_path / "straight", tmp_path / "killed"
  assert run(chats_file, straight).returncode == 0
  process = subprocess.Popen(command(chats_file, killed), cwd=REPOSITORY, stdout=subprocess.DEVNULL,
                             env={**os.environ, "JAX_PLATFORMS": "cpu"})
  deadline = time.monotonic() + 200
  while len(read_rows(killed / "out.run" / "metrics.jsonl")) < 3 and time.monotonic() < deadline:
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not (killed / "out").exists()
  result = run(chats_file, killed)
  assert result.returncode == 0 and "RESUMING" in result.stdout, result.stderr
  rows, expected = (read_rows(path / "out.run" / "metrics.jsonl") for path in (killed, straight))
  assert without_times(rows) == without_times(expected)
  assert (killed / "out" / "model.safetensors").read_bytes() == (straight / "out" / "model.safetensors").read_bytes()
  denoiser, _ = gdsd_jax.load_pretrained(killed / "out")
  load_tokenizer(killed / "out", denoiser.config)  # the exported folder is complete


@pytest.mark.parametrize("line, message", [
  ("not json", "line 2: not JSON"),
  ('{"text": "hello"}', "line 2.*messages"),
  ('{"messages": []}', "line 2.*must be a list of turns"),
  ('{"messages": [{"role": "user", "content": 3}]}', "line 2.*`role` and `content`"),
  ('{"messages": [{"role": "user", "content": "hi"}]}', "line 2.*the last turn must be the assistant's"),
  ('{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "<|mdm_mask|>"}]}',
   "line 2.*mdm_mask"),
  ('{"messages": [{"role": "<|mdm_mask|>", "content": "hi"}, {"role": "assistant", "content": "ho"}]}',
   "line 2.*a turn's role must be one word"),
  ('{"messages": [{"role": "assistant", "content": "hi"}]}', "line 2.*a turn before the assistant's"),
  ('{"prompt": "hi"}', "line 2.*no column `messages`, nor `prompt` and `completion`, nor .*; it has 'prompt'"),
  ('{"prompt": "hi", "completion": 3}', "line 2.*column 'completion' must be text or a list of turns, not 3"),
  ('{"prompt": "hi", "completion": [{"role": "user", "content": "ho"}]}', "line 2.*the last turn must be the assi"),
  ('{"conversations": {"from": "human"}}', "line 2.*`conversations` must be a list of turns"),
  ('{"conversations": [{"from": "human", "value": "hi"}, {"from": ["gpt"], "value": "ho"}]}', "line 2.*`role` and"),
  ('{"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt"}]}', "line 2.*`role` and `content`"),
])
def test_bad_chats_are_named_by_file_and_line(chats_file, tokenizer, tmp_path, line, message):
  path = tmp_path / "bad.jsonl"
  path.write_text(chats_file.read_text().splitlines()[0] + "\n" + line + "\n")
  with pytest.raises(ValueError, match=message) as raised:
    read_chats(sft_config(path).data, tokenizer)
  assert str(path) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("changes, message", [
  ({"data.train_source": None}, "data.train_source: name a source of chats"),
  ({"batch_size": 0}, "batch_size"),
  ({"optimizer.accumulation": 3}, "optimizer.accumulation"),
  ({"data.prompt_buckets": (5,)}, "none of the 64 chats fits"),
  ({"data.completion_buckets": (300,)}, "256 positions"),
  ({"optimizer.learning_rate": 0.0}, "optimizer.learning_rate"),
  ({"optimizer.learning_rate": float("nan")}, "optimizer.learning_rate: must be a finite number"),
  ({"seed": -1}, "seed: must be a whole number from 0 to"), ({"steps": 2**31}, "steps: must lie below"),
  ({"eval.every": 0}, "eval.every: must be at least 1"),
  ({"data.validation_size": -1}, "data.validation_size: must be at least 0"),
  ({"data.validation_size": 64}, "data.validation_size: 64 of the 64 chats leave none to learn"),
  ({"data.validation_size": 1, "data.validation_source": "a.jsonl"}, "data.validation_size: must be 0 with data"),
  ({"data.validation_source": "none.jsonl"}, "data.validation_source: cannot read none.jsonl"),
  ({"model.lora.path": "adapter"}, "model.lora.path: needs model.lora.rank > 0"),
])
def test_bad_fields_are_named_before_anything_is_written(chats_file, tmp_path, changes, message):
  config = sft_recipe(chats_file)
  for name, value in changes.items():
    section, _, field = name.rpartition(".")
    with (config if not section else config[section]).ignore_type():
      (config if not section else config[section])[field] = value
  with pytest.raises((ValueError, OSError), match=message):
    finetune(typed(FinetuningConfig, config), tmp_path / "run", tmp_path / "out")
  assert not (tmp_path / "out").exists() and not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("role, message", [
  ("model", "the model that the run started from"), ("adapter", "the adapter that the run started from"),
  ("workdir", "the run's own folder"),
])
def test_an_out_that_would_overwrite_is_refused_before_training(chats_file, tmp_path, role, message):
  tiny = resolve_path("tiny")
  places = {"model": tiny, "adapter": tmp_path / "adapter", "workdir": tmp_path / "run"}
  config = sft_config(chats_file, **{"model.lora.rank": 2, "model.lora.path": str(tmp_path / "adapter")})
  with pytest.raises(ValueError, match=f"--out: .* is {message}"):
    finetune(config, tmp_path / "run", places[role])
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["{broken", "[1]"])
def test_a_damaged_config_of_the_run_is_named(chats_file, tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(ValueError, match="--workdir: .*config.json is not the config of a run"):
    finetune(sft_config(chats_file), tmp_path, tmp_path / "out")


def test_the_loss_is_the_weighted_cross_entropy_of_masked_completion_tokens(tiny_denoiser, tiny_params):
  tokens = np.random.default_rng(0).integers(0, 50, (4, 14))
  maskable = np.broadcast_to(np.arange(14) >= 6, tokens.shape)
  padding = np.arange(14) >= np.array([0, 3, 5, 1])[:, None]
  key = jax.random.key(3)
  cross_entropy = jax.jit(masked_cross_entropy, static_argnums=(0, 6))
  loss, _ = cross_entropy(tiny_denoiser, tiny_params, key, tokens, maskable, padding, 6)
  rate_key, mask_key = jax.random.split(key)
  rate = 1e-3 + (1 - 1e-3) * ((np.float64(jax.random.uniform(rate_key)) + np.arange(4) / 4) % 1)
  masked = maskable & (np.asarray(jax.random.uniform(mask_key, tokens.shape)) < rate[:, None])
  noised = np.where(masked, tiny_denoiser.config.mask_token_id, tokens)
  logits = np.asarray(jax.jit(tiny_denoiser.apply)(tiny_params, noised, padding), np.float64)
  log_prob = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  cross_entropy = -np.take_along_axis(log_prob, tokens[..., None], -1)[..., 0]
  assert masked.sum() >= 8
  assert float(loss) == pytest.approx((masked * cross_entropy / rate[:, None]).sum() / (4 * 8), rel=1e-5)
