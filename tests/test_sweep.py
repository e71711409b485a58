"""Sweeps: which flags make a grid, how its runs go on, are skipped, fail and stop, and the table at the end."""

import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time

from conftest import REPOSITORY
import numpy as np
import pytest

from gdsd_jax.parallel.processes import is_one_of_several
from gdsd_jax.runs.config_dict import config_json
from gdsd_jax.runs.files import read_rows
from gdsd_jax.runs.given import load_config
from gdsd_jax.training import sweep_runs
from gdsd_jax.training.sweep_grid import make_runs, split_grid
from gdsd_jax.training.sweep_progress import SweepProgress
from gdsd_jax.training.sweep_table import summarize, table

RECIPE = "--config=gdsd_math:tiny"
# Stands for launch/train.py: a run of two steps that fails, waits or ends by what its flags say.
CHILD = """
import json, os, pathlib, signal, sys, time
flags = dict(argument.split("=", 1) for argument in sys.argv[1:])
folder, seed = pathlib.Path(flags["--workdir"]), int(flags["--config.seed"])
print("began")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
if flags.get("--wait"):
  (folder / "waits").touch()
  time.sleep(60)
if flags.get("--config.model.path") == "broken":
  sys.exit("error: model.path: is broken")
rows = [{"step": 0, "eval/reward": 9.0, "eval/accuracy": 1.0}]
rows += [{"step": step, "eval/reward": seed + step, "eval/accuracy": 0.5 * seed} for step in (2, 1)]
(folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
"""


@pytest.fixture
def stand_in(monkeypatch):
  monkeypatch.setattr(sweep_runs, "_CHILD", CHILD)


# ------------------------------------------------------------------------------------------------------- the grid


@pytest.mark.parametrize("flag", [
  "--config.eval.lengths=16,32", "--config.eval.lengths=(16,32)", "--config.task.system_prompt=Be brief, please",
  "--config.task.system_prompt=yes,no", "--config.eval.prefill=so,then", "--config.model.path=a folder,another",
  "--config.no_such_field=1,2", "--config.seed=1", "--workdir=a,b", "--config.task.rewards=('a.py:b','c.py:d')",
])
def test_a_comma_alone_makes_no_sweep(flag):
  assert split_grid([RECIPE, flag]) == ([RECIPE, flag], {})


def test_numbers_switches_and_names_with_commas_are_swept():
  shared = [RECIPE, "--config.steps=3", "--jobs=2"]
  swept = ["--config.seed=0,1", "--config.optimizer.learning_rate", "1e-4,3e-4", "--config.async_rollouts=true,false",
           "-config.objective.name=gdsd,gdsd_tlc", "--config.objective.epsilon=0.1,0.2"]
  assert split_grid([*swept, *shared]) == (shared, {
    "seed": ["0", "1"], "optimizer.learning_rate": ["1e-4", "3e-4"], "async_rollouts": ["true", "false"],
    "objective.name": ["gdsd", "gdsd_tlc"], "objective.epsilon": ["0.1", "0.2"]})


OWN = """
import dataclasses
import gdsd_jax

@dataclasses.dataclass(frozen=True)
class Mine(gdsd_jax.Objective):
  gain: float = 1.0
  shape: tuple = (1, 2)
  firm: bool = False
  mode: str = "1"
  beta: float = 0.1

class Numbers(gdsd_jax.Task):
  def __init__(self, longest=9, sizes=(3, 4), hard=False):
    pass

def sampler(denoiser, params, prompt, prompt_mask, key, config, *, sharpness: float = 1.0):
  pass
"""


def test_fields_of_an_objective_a_task_or_a_sampler_are_swept_as_these_declare_them(tmp_path):
  (tmp_path / "own.py").write_text(OWN)
  own = lambda name: f"{tmp_path}/own.py:{name}"
  swept = {
    "objective.eubo_beta": (["--config.objective.name=gdsd,spg"], ["1.0", "1.5"]),
    "objective.gain": ([f"--config.objective.name={own('Mine')}"], ["0.5", "2"]),
    "task.longest": ([f"--config.task.name={own('Numbers')}"], ["9", "12"]),
    "task.hard": ([f"--config.task.name={own('Numbers')}"], ["true", "false"]),
    "task.reward_late": ([], ["0", "-1"]),
    "sampler.sharpness": ([f"--config.sampler.kind={own('sampler')}"], ["1.0", "2.0"]),
  }
  for path, (flags, values) in swept.items():
    _, grid = split_grid([RECIPE, *flags, f"--config.{path}={','.join(values)}"])
    assert grid[path] == values, path
  for path in ("objective.shape", "task.sizes", "objective.no_such"):
    flags = [RECIPE, f"--config.objective.name={own('Mine')}", f"--config.task.name={own('Numbers')}"]
    assert split_grid([*flags, f"--config.{path}=3,4"])[1] == {}
  config = load_config("gdsd_math:tiny", {"objective.name": "spg", "objective.epsilon": None, "objective.psi": None})
  runs = make_runs(config, {"objective.eubo_beta": ["1.0", "1.5"]})
  assert [run.config.objective.eubo_beta for run in runs] == [1.0, 1.5]
  config = load_config("gdsd_math:tiny", {"objective.name": own("Mine"), "objective.epsilon": None})
  runs = make_runs(config, {"objective.firm": ["1", "0"], "objective.mode": ["2"], "objective.beta": ["1"]})
  told = ["--config.objective.mode='2'", "--config.objective.beta=1"]  # 2 would be no text, and 1 no switch
  assert [run.flags for run in runs] == [[f"--config.objective.firm={firm}", *told] for firm in (True, False)]


def test_a_recipe_that_is_not_there_or_of_another_command_is_left_to_its_flag():
  for flags in (["--config=no_such", "--config.seed=0,1"], ["--config.seed=0,1"], ["--config"],
                ["--config=pretrain_tiny", "--config.sampler.colour=1,2"]):
    assert split_grid(flags) == (flags, {})


def test_each_combination_is_a_run_named_by_what_differs():
  runs = make_runs(load_config("gdsd_math:tiny"), {"seed": ["0", "1"], "model.path": ["tiny", "a/b"]})
  assert [run.name for run in runs] == ["seed=0,path=tiny", "seed=0,path=a_b", "seed=1,path=tiny", "seed=1,path=a_b"]
  assert [(run.config.seed, run.config.model.path) for run in runs[:2]] == [(0, "tiny"), (0, "a/b")]
  assert runs[3].flags == ["--config.seed=1", "--config.model.path=a/b"]
  names = [run.name for run in make_runs(load_config("gdsd_math:tiny"), {"steps": ["1", "2"], "sampler.steps": ["16"]})]
  assert names == ["steps=1,sampler.steps=16", "steps=2,sampler.steps=16"]


def test_a_field_may_be_unset_in_some_of_the_runs():
  config = load_config("gdsd_math:tiny", {"model.lora.rank": 2})
  runs = make_runs(config, {"sampler.slots": ["4", "None"], "objective.num_mc": ["None", "1"]})
  assert [(run.config.sampler.slots, run.config.distillation.num_mc) for run in runs] == [
    (4, None), (4, 1), (None, None), (None, 1)]
  assert runs[2].flags == ["--config.sampler.slots=None", "--config.objective.num_mc=None"]
  with pytest.raises(ValueError, match="^model.quantize.kind: 'int3' is not one of"):
    make_runs(config, {"model.quantize.kind": ["None", "int3"]})


@pytest.mark.parametrize("grid, message", [
  ({"seed": ["0", "None"]}, "seed: must not be None"),
  ({"seed": ["0", "x"]}, "--config.seed=0,x: 'x' is no whole number"),
  ({"seed": ["0", ""]}, "--config.seed=0,: '' is no whole number"),
  ({"seed": ["0", "0"]}, "--config.seed=0,0: '0' is there twice"),
  ({"optimizer.learning_rate": ["1e-4", "0.0001"]}, "--config.optimizer.learning_rate=1e-4,0.0001: '0.0001' is there"),
  ({"async_rollouts": ["true", "1"]}, "--config.async_rollouts=true,1: '1' is there twice"),
  ({"async_rollouts": ["true", "maybe"]}, "--config.async_rollouts=true,maybe: 'maybe' is no true or false"),
  ({"objective.psi": ["0.01", "-1"]}, "objective.psi: must be positive, not -1.0"),
])
def test_a_value_that_does_not_fit_is_one_line_before_any_run_starts(tmp_path, stand_in, grid, message):
  with pytest.raises(ValueError) as caught:
    sweep_runs.run_sweep(load_config("gdsd_math:tiny"), grid, tmp_path / "sweep", [], 1)
  assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
  assert not (tmp_path / "sweep").exists()


# ------------------------------------------------------------------------------------------------------- the runs


def finish(run, folder: Path, **changes) -> None:
  """What a run leaves in its folder when it ends."""
  (folder / "checkpoints" / str(run.config.steps)).mkdir(parents=True)
  (folder / "config.json").write_text(config_json(run.config))
  (folder / "metrics.jsonl").write_text(json.dumps({"step": run.config.steps, **changes}) + "\n")


def test_one_run_that_fails_does_not_stop_the_others(tmp_path, stand_in, capfd):
  grid = {"model.path": ["tiny", "broken"], "seed": ["0", "1", "2"]}
  flags = ["--config.steps=2", "--jobs=4", "--workdir", "elsewhere"]
  config = load_config("gdsd_math:tiny", {"steps": 2})
  assert sweep_runs.run_sweep(config, grid, tmp_path, flags, 2) == 1
  shown = capfd.readouterr()
  assert "path=broken,seed=1: FAILED with status 1: error: model.path: is broken" in shown.out
  assert shown.err == ("error: 3 of 6 runs failed: path=broken,seed=0; path=broken,seed=1; path=broken,seed=2\n")
  assert "began" in (tmp_path / "path=tiny,seed=2" / "output.log").read_text()
  summary = json.loads((tmp_path / "sweep.json").read_text())
  assert [row["status"] for row in summary["runs"]] == [0, 0, 0, 1, 1, 1]
  tiny, broken = summary["settings"]
  assert (tiny["model.path"], tiny["seeds"], broken["model.path"], broken["seeds"]) == ("tiny", 3, "broken", 0)
  # The last row is step 1, the best is step 2; what was evaluated before the first step is neither.
  final, accuracy = np.array([1, 2, 3]), np.array([0, 0.5, 1])
  for name, values in (("final_reward", final), ("best_reward", final + 1), ("best_accuracy", accuracy)):
    assert tiny[name] == pytest.approx({"mean": values.mean(), "std": values.std(ddof=1)})
  assert broken["final_reward"] == {"mean": None, "std": None}
  assert "tiny        3      2.000 ± 1.000  0.500 ± 0.500" in shown.out and "broken      0      –" in shown.out


def test_the_line_of_progress_counts_runs_and_foresees_their_end(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(time, "monotonic", lambda: now[0])
  progress = SweepProgress(total=7, jobs=2)
  progress.finished_before()
  for name, began in (("a", 0), ("b", 10)):
    now[0] = began
    progress.started(name)
  now[0] = 60
  assert progress.ended("a", True, ["b"]) == "2 of 7 runs done, about 2m05s left; under way: b"
  now[0] = 100  # b has ten seconds left above, and four wait; what fails says nothing of how long a run takes
  assert progress.ended("b", False, []) == "2 of 7 runs done, 1 failed, about 2m00s left"


def test_finished_runs_are_skipped_and_others_started(tmp_path, stand_in, capfd):
  config = load_config("gdsd_math:tiny", {"steps": 2})
  runs = make_runs(config, {"seed": ["0", "1", "2", "3"]})
  folders = [tmp_path / run.name for run in runs]
  for run, folder in zip(runs[:3], folders):
    finish(run, folder)
  (folders[1] / "checkpoints" / "2").rmdir()  # killed before it was saved
  (folders[2] / "config.json").write_text(config_json(make_runs(config, {"group_size": ["4"]})[0].config))
  assert sweep_runs.run_all(runs, tmp_path, [], 1) == dict.fromkeys((run.name for run in runs), 0)
  assert [(folder / "output.log").exists() for folder in folders] == [False, True, True, True]
  assert "seed=0: finished before" in capfd.readouterr().out


def test_sigterm_stops_all_runs_and_starts_no_more(tmp_path, stand_in):
  def ask():
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*/waits"))) < 2 and time.monotonic() < deadline:
      time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)

  before = signal.getsignal(signal.SIGTERM)
  threading.Thread(target=ask).start()
  config, grid = load_config("gdsd_math:tiny", {"steps": 2}), {"seed": ["0", "1", "2"]}
  assert sweep_runs.run_sweep(config, grid, tmp_path, ["--wait=1"], 2) == 75
  assert signal.getsignal(signal.SIGTERM) is before
  assert [row["status"] for row in json.loads((tmp_path / "sweep.json").read_text())["runs"]] == [75, 75, None]


def test_after_a_stop_no_later_runs_are_started_even_where_none_was_cut_short(tmp_path, stand_in):
  config, progress = load_config("gdsd_math:tiny", {"steps": 2}), SweepProgress(total=2, jobs=1)
  first, later = make_runs(config, {"seed": ["0", "1"]})
  done_just_then = lambda run, folder: os.kill(os.getpid(), signal.SIGTERM) is None
  assert sweep_runs.run_all([first], tmp_path, [], 1, progress, done_just_then) == {first.name: 0}
  assert sweep_runs.run_all([later], tmp_path, [], 1, progress) == {later.name: None}
  assert not (tmp_path / later.name).exists()


def test_among_several_processes_a_sweep_is_refused(tmp_path, monkeypatch):
  assert not is_one_of_several()
  monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
  with pytest.raises(ValueError, match="^--config: a sweep starts its runs by itself"):
    sweep_runs.run_sweep(load_config("gdsd_math:tiny"), {"seed": ["0"]}, tmp_path, [], 1)


def test_a_setting_with_one_run_has_no_deviation(tmp_path):
  [run] = make_runs(load_config("gdsd_math:tiny", {"steps": 2}), {"objective.psi": ["0.01"]})
  finish(run, tmp_path / run.name, **{"eval/reward": 0.25, "eval/accuracy": None})
  shown = table(summarize([run], {run.name: 0}, tmp_path)).splitlines()
  assert shown[0].split() == ["objective.psi", "seeds", "final", "reward", "final", "accuracy", "best", "reward",
                              "best", "accuracy"]
  assert shown[1].split() == ["0.01", "1", "0.250", "–", "0.250", "–"]


@pytest.mark.slow
def test_the_command_sweeps_and_goes_on(tmp_path):
  fields = {
    "steps": 1, "group_size": 2, "prompts_per_step": 2, "sampler.completion_length": 8, "sampler.steps": 4,
    "objective.num_iterations": 1, "objective.num_mc": 1, "eval.num_examples": 4, "eval.batch_size": 4,
    "log.tensorboard": False, "log.plot_seconds": 1000.0, "seed": "0,1", "model.path": "tiny,nowhere",
  }
  command = [sys.executable, "launch/train.py", RECIPE, f"--workdir={tmp_path}", "--jobs=2",
             *(f"--config.{path}={value}" for path, value in fields.items())]

  def run():
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=900,
                          env=os.environ | {"JAX_PLATFORMS": "cpu"})

  result = run()
  assert result.returncode == 1 and "error: 2 of 4 runs failed" in result.stderr, result.stderr
  assert [row["step"] for row in read_rows(tmp_path / "seed=1,path=tiny" / "metrics.jsonl")] == [0, 1]
  again = run()
  assert again.returncode == 1 and again.stdout.count("finished before") == 2
  alone = subprocess.run([*command[:3], f"--workdir={tmp_path}", "--jobs=2"], cwd=REPOSITORY, capture_output=True,
                         text=True, timeout=300)
  assert alone.stderr == "error: --jobs: is for sweeps, such as --config.seed=0,1,2\n"
