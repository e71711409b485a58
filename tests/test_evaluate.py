"""The evaluation command: the papers' protocol, resumable, for runs, folders and adapters, with clear refusals."""

import json
import shutil
import signal
import subprocess
import time

from commands import Command, run_command
from conftest import all_devices, files_of_at_most, slow
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdsd_jax
from gdsd_jax.diffusion.config import SamplerConfig
from gdsd_jax.evaluation.protocol import evaluate_model, fingerprint
from gdsd_jax.evaluation.records import confidence_interval, mean_reward, summarize
from gdsd_jax.generation.generator import Generator
from gdsd_jax.generation.rollout import RolloutSampler
from gdsd_jax.huggingface.tokenizer import load_tokenizer
from gdsd_jax.models.quantised import QuantizeConfig
from gdsd_jax.parallel.mesh import make_mesh
from gdsd_jax.runs.checkpoints import Checkpoints
from gdsd_jax.runs.chosen_model import ChosenModel
from gdsd_jax.runs.config import evaluation_samplers
from gdsd_jax.runs.config_dict import base_config, config_json, run_config
from gdsd_jax.runs.export import export_run
from gdsd_jax.runs.loop import resume, save
from gdsd_jax.runs.saved_config import contradictions
from gdsd_jax.runs.weights import find_step, load_run
from gdsd_jax.tasks import get_task
from gdsd_jax.tasks.arithmetic import ArithmeticTask
from gdsd_jax.tasks.base import Grade
from gdsd_jax.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("quick_runs")

EXAMPLES = 40
# Prompts of both widths are among the examples, so that neither has full batches alone.
SMALL = {
  "eval.lengths": (8, 16), "eval.steps_per_token": 0.5, "eval.block_length": 8, "eval.prompt_buckets": (30, 36),
  "eval.batch_size": 8,
}
RUN = {
  "steps": 4, "group_size": 4, "prompts_per_step": 2, "sampler.completion_length": 8, "sampler.block_length": 8,
  "sampler.steps": 8, "sampler.prompt_buckets": (40,), "eval.num_examples": 8, "checkpoint.keep": 2,
}
LORA = {"model.lora.rank": 2, "model.lora.targets": ("q", "up")}


def small_config(**changes):
  config = base_config()
  config.update_from_flattened_dict({**SMALL, **changes})
  return run_config(config)


def make_run(workdir, **changes):
  """What a run leaves behind, without its training: the best checkpoint is 2, the latest ones are 3 and 4."""
  trainer = Trainer(small_config(**{**RUN, **changes}), workdir)
  (workdir / "config.json").write_text(config_json(trainer.config))
  checkpoints = Checkpoints(workdir / "checkpoints", trainer.config.checkpoint.keep)
  for step, reward in ((1, 0.2), (2, 0.7), (3, 0.5), (4, None)):
    params = jax.tree.map(lambda leaf: leaf + 0.001, trainer.state.params)
    trainer.state = trainer.state.replace(step=jnp.asarray(step), params=params)
    save(trainer, checkpoints, reward)
  checkpoints.close()
  return workdir


def evaluate(out, evaluated=None, num_examples=EXAMPLES, **changes):
  return evaluate_model(small_config(**changes), evaluated or ChosenModel(), out, num_examples)


def command(*arguments, **changes):
  overrides = [f"--config.{name}={value}" for name, value in {**SMALL, **changes}.items()]
  return ["launch/evaluate.py", "--config=configs/gdsd_math.py", *overrides, *arguments]


def records(out):
  return [json.loads(line) for line in (out / "generations.jsonl").read_text().splitlines()]


def without_times(summary):
  lengths = {name: {k: v for k, v in values.items() if k != "tokens_per_second"}
             for name, values in summary["lengths"].items()}
  return {**summary, "lengths": lengths}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  """Folder and summary of an evaluation that nobody disturbs."""
  out = tmp_path_factory.mktemp("straight")
  return out, evaluate(out)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run of full parameters."""
  return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory):
  return make_run(tmp_path_factory.mktemp("lora_run"), **LORA)


def state_of(workdir, **changes):
  """Parameters that the run itself would continue with."""
  trainer = Trainer(small_config(**{**RUN, **changes}), workdir)
  assert resume(trainer, Checkpoints(workdir / "checkpoints", 2))
  return trainer.state.student_params


def assert_trees_equal(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_every_length_and_example_is_recorded_once(straight):
  rows = records(straight[0])
  assert sorted((row["length"], row["index"]) for row in rows) == [(n, i) for n in (8, 16) for i in range(EXAMPLES)]
  assert all({"prompt", "completion", "tokens", "rewards", "accuracy_lenient"} <= row.keys() for row in rows)


@pytest.mark.parametrize("length", [8, 16])
def test_completions_are_those_of_the_training_sampler(straight, length):
  denoiser, params = gdsd_jax.load_pretrained("tiny")
  test = get_task("arithmetic").examples("test")
  examples = [test[i] for i in range(EXAMPLES)]
  config = SamplerConfig(completion_length=length, steps=length // 2, block_length=8, temperature=0.0)
  sampler = RolloutSampler(denoiser, load_tokenizer("tiny", denoiser.config), get_task("arithmetic"), config, (36,))
  expected = sampler(params, examples, jax.random.key(0))
  rows = sorted((row for row in records(straight[0]) if row["length"] == length), key=lambda row: row["index"])
  assert [row["completion"] for row in rows] == expected.completions
  assert [row["tokens"] for row in rows] == expected.lengths.tolist()
  assert [sum(row["rewards"].values()) for row in rows] == expected.total_reward.tolist()


def test_summary_is_the_mean_of_the_records(straight):
  out, summary = straight
  assert json.loads((out / "summary.json").read_text()) == summary
  for length, values in summary["lengths"].items():
    rows = [row for row in records(out) if row["length"] == int(length)]
    assert values["n"] == EXAMPLES
    assert values["accuracy"] == pytest.approx(np.mean([row["accuracy"] for row in rows]))
    assert values["tokens"] == pytest.approx(np.mean([row["tokens"] for row in rows]))
    assert values["rewards"]["format"] == pytest.approx(np.mean([row["rewards"]["format"] for row in rows]))
    assert values["tokens_per_second"] > 0
  assert 0 < summary["accuracy"] == max(values["accuracy"] for values in summary["lengths"].values())


@pytest.mark.parametrize("share", [0.0, slow(0.1), 0.33, slow(0.77)])
def test_evaluation_cut_anywhere_ends_the_same(straight, tmp_path, share):
  whole = (straight[0] / "generations.jsonl").read_bytes()
  (tmp_path / "settings.json").write_bytes((straight[0] / "settings.json").read_bytes())
  (tmp_path / "generations.jsonl").write_bytes(whole[:int(share * len(whole))])
  summary = evaluate(tmp_path)
  assert (tmp_path / "generations.jsonl").read_bytes() == whole
  assert without_times(summary) == without_times(straight[1])


@pytest.mark.slow
def test_killed_evaluation_ends_as_an_undisturbed_one(straight, tmp_path):
  arguments = [f"--out={tmp_path}", f"--num_examples={EXAMPLES}"]
  killed, generations = Command(*command(*arguments)), tmp_path / "generations.jsonl"
  while killed.process.is_alive() and (not generations.is_file() or not generations.stat().st_size):
    time.sleep(0.002)
  killed.process.kill()
  assert killed.finish().returncode == -signal.SIGKILL, "the evaluation ended before it was killed"
  before = len(records(tmp_path))
  assert 0 < before < 2 * EXAMPLES
  result = run_command(*command(*arguments))
  assert result.returncode == 0, result.stderr
  assert f"{before} of {2 * EXAMPLES} completions are there" in result.stdout
  assert generations.read_bytes() == (straight[0] / "generations.jsonl").read_bytes()
  last = json.loads(result.stdout.splitlines()[-1])
  assert last["accuracy"] == straight[1]["accuracy"]
  assert last["lengths"].keys() == {"8", "16"} and last["best_length"] == straight[1]["best_length"]


def test_finished_evaluation_generates_nothing_more(straight, monkeypatch):
  monkeypatch.setattr(Generator, "sample", lambda *args: pytest.fail("generated again"))
  assert evaluate(straight[0]) == straight[1]


@pytest.mark.parametrize("changes, words", [
  ({"eval.steps_per_token": 1.0}, "samplers.8.steps: 4 → 8"),
  ({"eval.lengths": (8,)}, "samplers.16"),
  ({"eval.prefill": "<reasoning>"}, "prefill: '' → '<reasoning>'"),
  ({"num_examples": 30}, "num_examples: 40 → 30"),
])
def test_other_settings_in_the_same_folder_are_refused(straight, changes, words):
  before = (straight[0] / "generations.jsonl").read_bytes()
  with pytest.raises(ValueError, match=f"^--out: .*{words}"):
    evaluate(straight[0], **changes)
  assert (straight[0] / "generations.jsonl").read_bytes() == before


def test_other_weights_in_the_same_folder_are_refused(straight, run):
  with pytest.raises(ValueError, match="model.weights"):
    evaluate(straight[0], ChosenModel(run))


def test_same_weights_by_another_path_are_accepted(straight):
  folder = gdsd_jax.huggingface.weights.resolve_path("tiny")
  assert evaluate(straight[0], ChosenModel(model=str(folder)))["accuracy"] == straight[1]["accuracy"]


def test_damaged_line_is_named(straight, tmp_path):
  for name in ("settings.json", "generations.jsonl"):
    (tmp_path / name).write_bytes((straight[0] / name).read_bytes())
  lines = (tmp_path / "generations.jsonl").read_text().splitlines(keepends=True)
  (tmp_path / "generations.jsonl").write_text("".join([*lines[:2], "no JSON\n", *lines[3:]]))
  with pytest.raises(ValueError, match="generations.jsonl, line 3: no completion"):
    evaluate(tmp_path)


def test_line_without_an_accuracy_is_named(straight, tmp_path):
  for name in ("settings.json", "generations.jsonl"):
    (tmp_path / name).write_bytes((straight[0] / name).read_bytes())
  with (tmp_path / "generations.jsonl").open("a") as file:
    file.write('{"length": 8, "index": 1}\n')
  with pytest.raises(ValueError, match=f"generations.jsonl, line {2 * EXAMPLES + 1}: no completion"):
    evaluate(tmp_path)


def test_completions_of_unknown_settings_are_refused(straight, tmp_path):
  (tmp_path / "generations.jsonl").write_bytes((straight[0] / "generations.jsonl").read_bytes())
  with pytest.raises(ValueError, match="^--out: .*lacks its settings.json"):
    evaluate(tmp_path)
  assert not (tmp_path / "settings.json").exists()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"lengths": []}'])
def test_damaged_summary_is_written_again(straight, tmp_path, text):
  for name in ("settings.json", "generations.jsonl"):
    (tmp_path / name).write_bytes((straight[0] / name).read_bytes())
  (tmp_path / "summary.json").write_text(text)
  assert without_times(evaluate(tmp_path)) == without_times(straight[1])


def test_sampler_of_another_family_is_refused_unless_one_insists(tmp_path):
  dream = {"num_examples": 8, "sampler.kind": "dream", "eval.lengths": (8,)}
  with pytest.raises(ValueError, match="^sampler.kind: 'dream' is not how tiny is sampled"):
    evaluate(tmp_path / "out", **dream)
  assert not (tmp_path / "out").exists()
  assert evaluate(tmp_path / "out", **dream, **{"sampler.other_family": True})["n"] == 8


def test_drawn_completions_are_the_same_every_time_and_told(straight, tmp_path):
  drawn = {"num_examples": 24, "eval.lengths": (8,), "eval.temperature": 1.0}
  summary = evaluate(tmp_path / "whole", **drawn)
  whole = (tmp_path / "whole" / "generations.jsonl").read_bytes()
  assert summary["protocol"] == {
    "problems": "the first 24 of all 400 test problems", "prompt": "evaluation", "prefill": "",
    "completions": "drawn at temperature 1.0, each batch of 8 by a random key made of the seed 0, the length and the"
                   " batch's first problem",
  }
  shutil.copytree(tmp_path / "whole", tmp_path / "cut")
  (tmp_path / "cut" / "generations.jsonl").write_bytes(whole[:len(whole) // 2])
  evaluate(tmp_path / "cut", **drawn)
  assert (tmp_path / "cut" / "generations.jsonl").read_bytes() == whole
  greedy = {row["index"]: row["completion"] for row in records(straight[0]) if row["length"] == 8}
  assert any(row["completion"] != greedy[row["index"]] for row in records(tmp_path / "whole"))
  with pytest.raises(ValueError, match="seed: 0 → 1"):
    evaluate(tmp_path / "whole", **drawn, seed=1)
  assert straight[1]["protocol"]["completions"] == "greedy"


@pytest.mark.parametrize("model", [None, "tiny"])
def test_a_model_is_read_as_the_fields_say(model):
  given = {"model.mlp_tokens": 8, "model.quantize.kind": "int8", "model.quantize.block_size": 32}
  config = small_config(**given)
  chosen = ChosenModel.of_flags(None, None, model, given)
  denoiser, *_ = chosen.load(config.model, None)
  assert denoiser.mlp_tokens == 8 and denoiser.quantize == QuantizeConfig("int8", 32)
  assert chosen.describe(config.model) == {"source": "tiny", "dtype": "float32", "quantize": {
    "kind": "int8", "block_size": 32, "head": False, "embedding": False}}


def test_fewer_problems_than_slots_are_filled_up(tmp_path):
  one = evaluate(tmp_path / "slots", num_examples=3, **{"sampler.slots": 4, "eval.batch_size": 4, "eval.lengths": (8,)})
  other = evaluate(tmp_path / "batch", num_examples=3, **{"eval.batch_size": 4, "eval.lengths": (8,)})
  assert one["n"] == 3 and one["accuracy"] == other["accuracy"]


def test_problems_drawn_as_officially_are_told(straight, tmp_path):
  summary = evaluate(tmp_path, num_examples=8, **{"eval.test_size": 9, "eval.lengths": (8,)})
  assert summary["protocol"]["problems"] == (
    "the first 8 of 9 of the 400 test problems, drawn by numpy's seed 42 as the official evaluation does")
  assert summary["n"] == 8


def test_settings_of_before_samplers_had_a_field_are_the_same(straight, tmp_path):
  shutil.copytree(straight[0], tmp_path / "old")
  settings = json.loads((tmp_path / "old" / "settings.json").read_text())
  del settings["samplers"]["8"]["early_stop"], settings["samplers"]["8"]["alg_temp"]
  (tmp_path / "old" / "settings.json").write_text(json.dumps(settings))
  with pytest.raises(ValueError, match=r"settings \(samplers.8.early_stop: False → True\)"):
    evaluate(tmp_path / "old")


@pytest.mark.slow
def test_any_mesh_gives_the_same_completions(straight, tmp_path):
  with all_devices():
    evaluate(tmp_path, **{"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2})
  assert (tmp_path / "generations.jsonl").read_bytes() == (straight[0] / "generations.jsonl").read_bytes()


def test_graders_know_which_completions_the_model_ended(monkeypatch, tmp_path):
  ended = lambda task, completion, example: Grade({"ended": completion.ended}, completion.ended, 1.0)
  monkeypatch.setattr(ArithmeticTask, "grade_one", ended)
  summary = evaluate(tmp_path, num_examples=8)
  assert {(row["accuracy"], row["tokens"] < row["length"]) for row in records(tmp_path)} == {(0.0, False), (1.0, True)}
  assert summary["lengths"]["8"]["accuracy_lenient"] == 1.0 > summary["lengths"]["8"]["accuracy"]
  denoiser, _ = gdsd_jax.load_pretrained("tiny")
  config = SamplerConfig(completion_length=8, steps=8, block_length=8)
  sampler = RolloutSampler(denoiser, load_tokenizer("tiny", denoiser.config), ArithmeticTask(), config, (36,))
  assert [accuracy for _, accuracy, _ in sampler._grade(["a", "b"], [{}, {}], [[1] * 7, [1] * 8])] == [1.0, 0.0]


def test_prefill_begins_every_completion(tmp_path):
  evaluate(tmp_path, num_examples=8, **{"eval.prefill": "<reasoning>", "eval.lengths": (16,)})
  for row in records(tmp_path):
    assert row["prompt"].endswith("<reasoning>") and row["completion"].startswith("<reasoning>")
  assert np.mean([row["accuracy"] for row in records(tmp_path)]) > 0.3  # the model knows how to go on


@pytest.mark.parametrize("mesh_sizes", [None, (2, 2, 2)])
def test_weights_of_a_run_are_those_it_would_continue_with(run, mesh_sizes):
  with all_devices():
    denoiser, params = load_run(run, "latest", mesh_sizes and make_mesh(*mesh_sizes))
  assert_trees_equal(params, state_of(run))
  assert denoiser.lora is None


def test_weights_of_a_lora_run_are_base_and_adapter(lora_run):
  with all_devices():
    denoiser, params = load_run(lora_run, 4, make_mesh())
  expected = state_of(lora_run, **LORA)
  assert_trees_equal(params, expected)
  assert denoiser.lora.rank == 2 and np.abs(params["lora"]["query"]["b"]).max() > 0


def test_step_is_the_latest_the_best_or_a_number(run):
  assert [find_step(run, step) for step in ("latest", "best", "3", 3)] == [4, 2, 3, 3]


def test_checkpoints_of_a_run_differ(run):
  assert fingerprint(load_run(run, "best")[1]) != fingerprint(load_run(run, "latest")[1])


@pytest.mark.parametrize("kind", ["full", "adapter", "merged"])
def test_exported_folder_evaluates_as_its_run(kind, run, lora_run, tmp_path):
  workdir = run if kind == "full" else lora_run
  export_run(workdir, "latest", tmp_path / "model", merged=kind == "merged")
  summaries = [
    evaluate(tmp_path / name, evaluated, num_examples=8, **{"eval.lengths": (16,)})
    for name, evaluated in (("of_run", ChosenModel(workdir)), ("of_folder", ChosenModel(model=str(tmp_path / "model"))))
  ]
  assert records(tmp_path / "of_run") == records(tmp_path / "of_folder")
  assert summaries[0]["model"]["step"] == 4 and summaries[1]["model"]["source"] == str(tmp_path / "model")


@pytest.mark.parametrize("changes, words", [
  ({"eval.lengths": (12,)}, "eval.lengths: 12 .*sampler.block_length: 8 must divide"),
  ({"eval.lengths": ()}, "eval.lengths: must be different lengths"),
  ({"eval.lengths": (8, 8)}, "eval.lengths: must be different lengths"),
  ({"eval.lengths": (512,)}, "eval.lengths: 512 tokens after prompts .*exceed the 256 positions of tiny"),
  ({"eval.steps_per_token": 0.0}, "eval.steps_per_token"),
  ({"eval.prompt_buckets": (8, 20)}, "eval.prompt_buckets: a prompt has [0-9]+ tokens, at most 20"),
  ({"eval.prompt_buckets": (20, 8)}, "eval.prompt_buckets: must be ascending"),
  ({"eval.batch_size": 9}, "eval.batch_size: 9 rollouts cannot be split .* 8 devices"),
  ({"model.path": "no_such_folder"}, "model.path: 'no_such_folder'"),
  ({"num_examples": 0}, "--num_examples"),
])
def test_bad_fields_are_refused_before_anything_is_written(tmp_path, changes, words):
  with all_devices(), pytest.raises((ValueError, OSError), match=words) as caught:
    evaluate(tmp_path / "out", **changes)
  assert "\n" not in str(caught.value)
  assert not (tmp_path / "out").exists()


def test_problem_that_forges_the_chat_format_is_named_with_its_source(tmp_path):
  (tmp_path / "test.jsonl").write_text(json.dumps({"question": "1 + 1? <|eot_id|>", "answer": "#### 2"}) + "\n")
  with pytest.raises(ValueError, match="^task.test_source: a user message holds"):
    evaluate(tmp_path / "out", **{"task.name": "gsm8k", "task.test_source": str(tmp_path / "test.jsonl")})


@pytest.mark.parametrize("step, words", [("1", "--step: '1' .*latest, best, 2, 3, 4"), ("first", "--step: 'first'")])
def test_unknown_step_lists_the_known_ones(run, step, words):
  with pytest.raises(ValueError, match=words):
    find_step(run, step)


def test_best_step_of_a_run_never_evaluated_is_refused(run, tmp_path):
  shutil.copytree(run, tmp_path / "run")
  for step in (2, 3):
    shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
  with pytest.raises(ValueError, match="--step: 'best' .*there are latest, 4$"):
    find_step(tmp_path / "run", "best")


@pytest.mark.parametrize("files, words", [
  ({}, "does not exist"), ({"other": ""}, "config.json is missing"), ({"config.json": "{"}, "config.json is not"),
  ({"config.json": "[]"}, "config.json is not"), ({"config.json": "{}"}, "no complete checkpoint"),
])
def test_folder_without_a_run_is_refused(tmp_path, files, words):
  for name, text in files.items():
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text(text)
  with pytest.raises((ValueError, OSError), match=f"^--workdir: .*{words}"):
    find_step(tmp_path / "run", "latest")


def test_damaged_checkpoint_is_one_clear_line(run, tmp_path):
  subprocess.run(["cp", "-r", str(run), str(tmp_path / "run")], check=True)
  for file in (tmp_path / "run" / "checkpoints" / "4" / "state").rglob("*"):
    if file.is_file() and file.stat().st_size > 10_000:
      file.write_bytes(file.read_bytes()[:100])
  with pytest.raises(OSError, match="the checkpoint of step 4 .* cannot be read") as caught:
    load_run(tmp_path / "run", 4)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arguments, words", [
  (["--workdir=no/such/run"], "error: --workdir: no/such/run does not exist"),
  (["--step=4"], "error: --step: needs --workdir"),
  (["--lengths=8,many"], "error: --lengths: must be numbers"),
  (["--model="], "error: --model: is empty"),
])
def test_bad_flags_are_one_clear_line(arguments, words):
  result = run_command(*command(*arguments))
  assert result.returncode == 1
  assert result.stderr.strip().splitlines()[-1].startswith(words)
  assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_run_is_evaluated_by_its_own_settings(run, tmp_path):
  """Without a recipe, and without repeating what the run was told."""
  with_recipe = evaluate(tmp_path / "with", ChosenModel(run), num_examples=8)
  result = run_command("launch/evaluate.py", "--config.eval.lengths=(8,)", f"--workdir={run}", "--num_examples=8")
  assert result.returncode == 0, result.stderr
  alone = json.loads(result.stdout.splitlines()[-1])
  assert alone["out"] == str(run / "evaluation" / f"{run.name}_step_4") and alone["lengths"].keys() == {"8"}
  assert alone["accuracy"] == with_recipe["lengths"]["8"]["accuracy"] and alone["model"] == with_recipe["model"]
  expected = [row for row in records(tmp_path / "with") if row["length"] == 8]
  assert records(run / "evaluation" / f"{run.name}_step_4") == expected


@pytest.mark.parametrize("arguments, words", [
  (["--workdir=no/such/run"], "error: --workdir: no/such/run does not exist"),
  (["--workdir", "launch"], "error: --workdir: launch holds no run: config.json is missing"),
  (["--num_examples=3"], "error: --config: is not given"),
])
def test_without_a_recipe_there_must_be_a_run(arguments, words):
  result = run_command("launch/evaluate.py", *arguments)
  assert result.returncode == 1 and words in result.stderr.strip().splitlines()[-1]
  assert "Traceback" not in result.stderr


def test_each_completion_is_graded_once(tmp_path, monkeypatch):
  calls, grade = [], ArithmeticTask.grade_one
  monkeypatch.setattr(ArithmeticTask, "grade_one", lambda *args: calls.append(args) or grade(*args))
  evaluate(tmp_path, num_examples=12)
  assert len(calls) == len(records(tmp_path)) == 2 * 12


def test_scoring_that_raises_names_the_task_and_keeps_what_is_there(tmp_path, monkeypatch):
  calls, grade = iter(range(10**6)), ArithmeticTask.grade_one

  def sometimes(self, completion, example):
    if next(calls) == 20:
      raise ZeroDivisionError("no such luck")
    return grade(self, completion, example)

  monkeypatch.setattr(ArithmeticTask, "grade_one", sometimes)
  with pytest.raises(ValueError, match="task.name: reward of arithmetic: ZeroDivisionError: no such luck"):
    evaluate(tmp_path)
  assert len(records(tmp_path)) == 16


def test_full_disk_is_one_clear_line_and_loses_nothing(straight, tmp_path):
  with files_of_at_most(10_000), pytest.raises(OSError, match="--out: cannot write .*generations.jsonl"):
    evaluate(tmp_path)
  evaluate(tmp_path)
  assert (tmp_path / "generations.jsonl").read_bytes() == (straight[0] / "generations.jsonl").read_bytes()


def test_official_protocol_is_the_default():
  samplers = evaluation_samplers(run_config(base_config()))
  assert [(s.completion_length, s.steps, s.block_length, s.temperature) for s in samplers.values()] == [
    (128, 64, 32, 0.0), (256, 128, 32, 0.0), (512, 256, 32, 0.0)
  ]


def test_dream_is_evaluated_by_entropy_without_a_nucleus():
  config = base_config()
  config.sampler.update({"kind": "dream", "top_p": 0.95, "alg": "origin"})
  sampler = evaluation_samplers(run_config(config))[256]
  assert (sampler.kind, sampler.steps, sampler.alg, sampler.top_p, sampler.temperature) == (
    "dream", 128, "entropy", None, 0.0
  )


@pytest.mark.parametrize("kind, alg", [("llada", "entropy"), ("dream", "maskgit_plus")])
def test_fast_samplers_of_a_run_are_those_of_its_evaluation(kind, alg):
  config = base_config()
  config.sampler.update({"kind": kind, "alg": alg, "cache": "dual", "threshold": 0.9})
  sampler = evaluation_samplers(run_config(config))[256]
  assert (sampler.cache, sampler.threshold, sampler.factor, sampler.alg) == ("dual", 0.9, None, alg)


def test_batches_of_texts_that_have_ended_are_cut_short_where_there_are_blocks():
  config = base_config()
  assert all(sampler.early_stop for sampler in evaluation_samplers(run_config(config)).values())
  config.sampler.kind = "dream"
  assert not any(sampler.early_stop for sampler in evaluation_samplers(run_config(config)).values())


def test_runs_resume_whatever_they_are_evaluated_by():
  saved = json.loads(config_json(run_config(base_config())))
  assert contradictions(saved, small_config(**{"eval.batch_size": saved["eval"]["batch_size"]})) == []


@pytest.mark.parametrize("values, expected", [
  ([0] * 10, (0.0, 0.27753)),  # Wilson's interval as statsmodels and R's binom give it
  ([1] * 10, (0.72247, 1.0)),
  ([1] * 5 + [0] * 5, (0.23659, 0.76341)),
  ([0.25, 0.75] * 50, (0.45076, 0.54924)),  # 0.5 ± 1.95996 · 0.251259 / 10
])
def test_confidence_interval(values, expected):
  assert confidence_interval(values) == pytest.approx(expected, abs=1e-4)


def test_what_does_not_apply_counts_in_no_mean():
  rows = {(8, i): {"accuracy": accuracy, "rewards": {"r": reward, "s": None}, "tokens": 1}
          for i, (accuracy, reward) in enumerate([(None, None), (1.0, 2.0), (0.0, 1.0), (None, 3.0)])}
  summary = summarize(rows, {"task": {"name": "t"}, "model": {}})
  assert summary["accuracy"] == 0.5 and summary["interval"] == confidence_interval([1, 0])
  assert summary["lengths"]["8"]["reward"] == summary["lengths"]["8"]["rewards"]["r"] == 2.0
  assert mean_reward([rows[8, 0]]) == 0
  rows[4, 0] = rows[8, 0]  # nothing is known of this length
  assert summarize(rows, {"task": {"name": "t"}, "model": {}})["best_length"] == 8


def test_best_length_is_the_shortest_of_equal_ones():
  rows = {(length, i): {"accuracy": accuracy, "rewards": {"r": 1.0}, "tokens": 1}
          for length, accuracies in {8: (0.0, 0.0), 16: (1.0, 0.0), 32: (0.0, 1.0)}.items()
          for i, accuracy in enumerate(accuracies)}
  summary = summarize(rows, {"task": {"name": "t"}, "model": {}})
  assert (summary["accuracy"], summary["best_length"], summary["n"]) == (0.5, 16, 2)
  assert summary["accuracy_is"].startswith("the best of ")
