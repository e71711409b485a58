"""What must not look like success: weights that are not finite, runs that made no update, steps that teach nothing."""

import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_train import failing_reward, screen, small_config  # noqa: F401  (a fixture)

import gdsd_jax
from gdsd_jax.generation.rollout import GradedCompletions
from gdsd_jax.huggingface.adapters import load_adapter, save_adapter
from gdsd_jax.huggingface.finite import require_finite
from gdsd_jax.huggingface.folder import resolve_path
from gdsd_jax.models.lora import add_adapter, LoraConfig
from gdsd_jax.objectives.gdsd import Gdsd
from gdsd_jax.parallel.mesh import make_mesh
from gdsd_jax.runs.checkpoints import CheckpointError, Checkpoints
from gdsd_jax.runs.digits import significant
from gdsd_jax.runs.files import read_rows
from gdsd_jax.runs.finite import not_finite
from gdsd_jax.runs.loop import resume, save, TrainingError
from gdsd_jax.runs.optimizer import OptimizerConfig, updates_made
from gdsd_jax.runs.weights import load_run
from gdsd_jax.supervised.rows import row_of
from gdsd_jax.training.idle import IdleSteps
from gdsd_jax.training.report import Learning
from gdsd_jax.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("quick_runs")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, jnp.bfloat16])
def test_any_weight_that_is_not_finite_is_refused_by_name(dtype):
  weight = np.zeros((3, 5), dtype)
  weight[0, 0], weight[2, 4] = jnp.finfo(dtype).max, -jnp.finfo(dtype).max
  require_finite(weight, "model.path", "w")
  for value in (np.inf, -np.inf, np.nan):
    spoiled = weight.copy()
    spoiled[1, 3] = value
    with pytest.raises(ValueError, match="^model.path: w in f has values that are infinite or not a number"):
      require_finite(spoiled, "model.path", "w in f")
  with pytest.raises(ValueError, match="zero throughout"):
    require_finite(-np.zeros((2, 2), dtype), "model.path", "w", may_be_zero=False)


@pytest.fixture
def folder(tmp_path):
  return shutil.copytree(resolve_path("tiny"), tmp_path / "model")


def overwrite_from_the_middle(file, byte: bytes):
  """What a copy leaves that stopped half-way, into a file that had its size already."""
  data = file.read_bytes()
  start = len(data) // 2
  file.write_bytes(data[:start] + (byte * len(data))[:len(data) - start])


@pytest.mark.parametrize("byte", [b"\x00", b"\xff"])
def test_a_half_overwritten_file_is_refused(folder, byte):
  overwrite_from_the_middle(folder / "model.safetensors", byte)
  with pytest.raises(ValueError, match=r"model.path: model\.transformer\S* in \S*model.safetensors ") as caught:
    gdsd_jax.load_pretrained(folder)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_one_bad_number_is_found_wherever_it_lies_on_a_mesh(folder, value):
  weights = load_file(folder / "model.safetensors")
  name = "model.transformer.blocks.1.ff_proj.weight"
  weights[name][-1, -1] = value
  save_file(weights, folder / "model.safetensors")
  mesh = make_mesh(fsdp=2, tensor=2, devices=jax.local_devices()[:4])
  with pytest.raises(ValueError, match=f"model.path: {name} in {folder}/model.safetensors has values that are inf"):
    gdsd_jax.load_pretrained(folder, mesh=mesh)


def test_an_adapter_that_is_not_finite_is_refused(tmp_path, tiny_denoiser, tiny_params):
  denoiser, params = add_adapter(tiny_denoiser, tiny_params, LoraConfig(rank=2), jax.random.key(0))
  save_adapter(tmp_path, denoiser, params, "base")
  weights = load_file(tmp_path / "adapter_model.safetensors")
  name = sorted(weights)[-1]
  weights[name][0, 0] = np.inf
  save_file(weights, tmp_path / "adapter_model.safetensors")
  with pytest.raises(ValueError, match=f"model.lora.path: {name} in .* infinite or not a number"):
    load_adapter(tmp_path, tiny_denoiser, tiny_params)


def test_the_first_array_that_is_not_finite_is_named():
  tree = {"step": jnp.int32(3), "params": {"a": jnp.ones(3), "b": {"c": jnp.array([1.0, jnp.nan])}}}
  assert not_finite(tree) == "params.b.c"
  assert not_finite({**tree, "params": {"a": jnp.zeros(2, jnp.bfloat16)}}) is None
  assert not_finite({"step": jnp.int32(3)}) is None


def run(workdir, **changes):
  trainer = Trainer(small_config(**{"eval.every": 100, "checkpoint.every": 1, **changes}), workdir)
  trainer.train()
  return trainer


def test_a_run_shorter_than_its_patience_fails_if_it_made_no_update(tmp_path, monkeypatch):
  failing_reward(monkeypatch, lambda call: call >= 8)  # after the evaluation of 8 problems
  with pytest.raises(TrainingError, match="nothing was learnt: none of the 1 steps .*; the last: reward of") as told:
    run(tmp_path, steps=1)
  assert "\n" not in str(told.value) and read_rows(tmp_path / "metrics.jsonl")[-1]["skipped"] == 1


@pytest.mark.slow
def test_a_short_run_whose_rewards_all_fail_fails_also_when_it_is_resumed(tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    failing_reward(patch, lambda call: True)
    for _ in range(2):  # begun, and resumed: the last step is not saved
      with pytest.raises(TrainingError, match="nothing was learnt: none of the 2 steps .*; the last: reward of task"):
        run(tmp_path, steps=2)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["skipped"]) for row in rows if row["step"]] == [(1, 1), (2, 1)]
    # Steps in a row are counted over both processes: 1 of the first run, and 2 of this one.
    with pytest.raises(TrainingError, match="giving up at step 3: 3 steps in a row"):
      run(tmp_path / "another", steps=9, max_skipped_steps=3)
    with pytest.raises(TrainingError, match="giving up at step 3: 3 steps in a row"):
      run(tmp_path / "another", steps=9, max_skipped_steps=3)
  trainer = run(tmp_path, steps=3)  # the rewards are mended: two steps of three made an update
  assert updates_made(trainer.state.opt_state) == 2
  check_that_a_checkpoint_that_is_not_finite_is_of_no_use(trainer)


def check_that_a_checkpoint_that_is_not_finite_is_of_no_use(trainer):
  params = {**trainer.state.params, "final_norm": trainer.state.params["final_norm"] / 0}
  trainer.state = trainer.state.replace(params=params, step=trainer.state.step + 1)
  checkpoints = Checkpoints(trainer.workdir / "checkpoints", 2)
  save(trainer, checkpoints, None)
  checkpoints.close()
  with pytest.raises(CheckpointError, match="--step: final_norm in the checkpoint of step 4 .* choose an earlier step"):
    load_run(trainer.workdir, "latest")
  checkpoints = Checkpoints(trainer.workdir / "checkpoints", 2)
  assert resume(trainer, checkpoints)  # from the one before
  checkpoints.close()
  assert int(trainer.state.step) == 3 and (trainer.workdir / "checkpoints" / "damaged-4").is_dir()
  assert not_finite(trainer.state.params) is None


def test_a_loss_that_is_never_finite_fails_though_its_gradient_is(tmp_path, monkeypatch):
  monkeypatch.setattr(Gdsd, "loss", lambda self, batch: (jnp.mean(batch.student.plain) + jnp.inf, {}))
  with pytest.raises(TrainingError, match="nothing was learnt: none of the 1 steps .* finite loss and gradient"):
    run(tmp_path, steps=1, **{"objective.psi": 0.123})  # compiled anew
  assert read_rows(tmp_path / "metrics.jsonl")[-1]["skipped"] == 1


@pytest.mark.slow
def test_weights_that_are_not_finite_give_up_after_the_set_number_of_steps(tmp_path):
  trainer = Trainer(small_config(**{"eval.every": 100, "max_skipped_steps": 2}), tmp_path)
  params = {**trainer.state.params, "final_norm": trainer.state.params["final_norm"] * jnp.nan}
  trainer.state = trainer.state.replace(params=params)
  with pytest.raises(TrainingError, match="giving up at step 2: 2 steps"):
    trainer.train()


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_supervised_training_ends_where_a_number_is_not_finite(name):
  numbers = {"loss": 1.0, "grad_norm": 2.0} | {name: np.float32(np.inf)}
  with pytest.raises(TrainingError, match=f"step 7: {name} is inf; lower optimizer.learning_rate") as caught:
    row_of(7, numbers, OptimizerConfig(), 9, None)
  assert caught.value.row.keys() >= numbers.keys()


class Scored:
  """The rollouts of a step, as far as `IdleSteps` looks at them."""

  def __init__(self, rewards, texts=("a", "b"), lengths=(1, 2)):
    count = len(rewards)
    self.total_reward, self.completions = np.array(rewards, np.float32), [texts[i % len(texts)] for i in range(count)]
    self.lengths, self.sampled = np.resize(lengths, count), self
    self.rollout = self
    self.tokens = np.zeros((count, 4))

  spreads = GradedCompletions.spreads


LEARNABLE, EQUAL = Scored([0, 1] * 32), Scored([0, 0, 1, 1] * 16)


@pytest.mark.parametrize("steps, warned", [
  ([LEARNABLE] * 50, []),
  ([LEARNABLE, EQUAL, LEARNABLE], ["step 6 all rewards"]),
  ([EQUAL] * 99, ["step 5 all rewards", "10 of the last 10 steps all rewards"]),
  ([LEARNABLE, EQUAL] * 100,
   ["step 6 all rewards", "10 of the last 20 steps all rewards", "100 of the last 200 steps all rewards"]),
  ([Scored([0, 0])], ["step 5 all rewards"]),
  ([Scored([0, 1] * 32, ["", " "]), LEARNABLE], ["step 5 every completion was empty"]),
  ([Scored([0, 0], ["", " "], [4])] * 9, ["step 5 every completion was empty"]),  # which explains all else
  ([Scored([0, 0], lengths=[4]), EQUAL], ["step 5 every completion was cut", "step 6 all rewards"]),
  ([Scored([0, 1] * 32, lengths=[4, 4, 4, 3])] * 3, []),
])
def test_what_teaches_nothing_is_told_at_once_and_then_seldom(steps, warned, screen):  # noqa: F811
  idle = IdleSteps(group_size=2)
  for number, scored in enumerate(steps, start=5):
    idle.see(number, scored)
  said = [record.getMessage() for record in screen.records if record.levelno == logging.WARNING]
  assert [line[:len(start) + 12] for line, start in zip(said, warned, strict=True)] == [
    f"WARNING: in {start}" for start in warned]


@pytest.mark.parametrize("first", [float("nan"), None])  # as it is found, and as a resumed run reads it from the disk
def test_a_reward_that_applies_to_no_validation_problem_is_told_without_a_gain(first):
  learning = Learning()
  learning.see({"step": 0, "reward": 0.5, "eval/reward": 0.5, "eval/reward/never": first})
  found = {"reward": 0.75, "reward/never": float("nan")}
  assert [learning.since(name, found) for name in found] == [" (+0.25)", ""]


@pytest.mark.parametrize("value, shown", [
  (0.00042, "0.0004200"), (1e-9, "1.000e-09"), (12345.678, "12346"), (0.0, "0"), (float("nan"), "nan"),
  (-3.14159, "-3.142"), (2.5e7, "2.500e+07"),
])
def test_numbers_show_digits_that_say_something(value, shown):
  assert significant(value) == shown


def test_chats_that_say_nothing_are_refused(tmp_path, screen):  # noqa: F811
  from test_finetuning import sft_config

  from gdsd_jax.huggingface.tokenizer import load_tokenizer
  from gdsd_jax.supervised.chats import read_chats

  path = resolve_path("tiny")
  tokenizer = load_tokenizer(path, gdsd_jax.huggingface.folder.load_config(path))
  file = tmp_path / "chats.jsonl"
  rows = [{"prompt": "hi", "completion": text} for text in ("", " ", "ho")]
  file.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
  with pytest.raises(ValueError, match="data.train_source: the assistant's last turn is empty in all 2 chats"):
    read_chats(sft_config(file).data, tokenizer)
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  read_chats(sft_config(file).data, tokenizer)
  assert "empty in 2 of 3 chats" in screen.text
